"""What a candidate is worth.

``training`` and plain accuracy; ``fusion``, ``evaluation``, ``masking`` and
``capture``, which give the same sooner; the ``objective`` of all methods, and the
``outcome`` of a candidate.
"""

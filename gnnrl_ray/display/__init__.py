"""What people look at.

The ``panel`` of a search, the ``report`` of a run, the ``drawing`` of a graph.
"""

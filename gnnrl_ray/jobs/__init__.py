"""What people start.

``searching``, ``finetuning`` and a ``sweep``, with ``trackers`` where they are wanted.
"""

"""The hierarchical computational graph.

The ``regions`` of a network that repeat, and the ``hierarchy`` of them.
"""

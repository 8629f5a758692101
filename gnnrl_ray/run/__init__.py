"""One search on disk, and at work.

The ``journal`` of its episodes, its ``directory``, and the ``task`` that its method is
given.
"""

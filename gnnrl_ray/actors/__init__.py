"""Ray, as far as all methods need it.

The ``connection`` to a cluster, ``placement`` of actors on it, ``sharing`` of the
objective, ``dispatch`` of episodes to actors that fail, and the ``scorer`` of proposed
candidates.
"""

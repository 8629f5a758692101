"""GNN-RL: the environment, the m-GNN, and DDPG on RLlib.

``env`` is the DNN-Graph environment, ``mgnn`` the networks of actor and critic,
``ddpg`` the algorithm with its ``replay`` and ``settings``; the ``method`` lets it
search.
"""

"""The commands of ``gnnrl-ray``, each in a file of its own; ``cli`` puts them together."""

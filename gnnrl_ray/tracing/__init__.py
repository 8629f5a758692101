"""From a network to channel groups.

``symbolic`` writes the calls of a network down, ``operations`` says what is kept of each,
``effects`` sends ``labels`` of channels through them, and ``groups`` finds out which of
these share one fate.
"""

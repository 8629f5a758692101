"""From channel groups and widths to smaller networks.

``costs`` of a candidate in closed form, the ``budget`` that it has to meet, the
``importance`` of its channels, and the ``removal`` of those that it does not keep.
"""

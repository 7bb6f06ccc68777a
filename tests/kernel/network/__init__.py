"""The bridge host of a configuration, its guests and its neighbours.

:mod:`.plan` reads the guests of a configuration and says what there is and with which addresses; it touches
nothing. :mod:`.build` makes it of namespaces, veth pairs and bridges, inside the lab's guest.
"""

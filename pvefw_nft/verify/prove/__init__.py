"""The prover: two rulesets treat every packet alike, or packets that they treat differently.

The stages, in the order a proof runs them::

    network     guests, bridges and interfaces of both hosts, and those that only rules name    → ends
    flows       which ways through the host there are, and the base chains on them          path.py's stages
    residual    those chains specialised for one protocol and one set of interfaces         → programs
    actions     effects of rules on this packet and later ones: marks, sets, helpers, headers
    counters    pairs of limits, one on each side, that count alike
    congruent   programs that are the same step by step need no more
    atoms       per field, the classes of values that the programs tell apart               → bit masks
    evaluate    a program as a decision diagram (diagram) from classes to outcomes          → node numbers
    compare     the same node on both sides: equal; else the packets between                → Report
    explain     those packets as few, readable classes, one packet each
    render      the report as text or JSON

``zones`` lists possible differences of rulesets that divide connections into other zones, ``documented`` unavoidable
differences between the tools, ``known`` reads the user's own list of differences to expect.
:mod:`~pvefw_nft.verify.prove.dead_rules` uses the same parts to find rules that never match or change nothing.
"""

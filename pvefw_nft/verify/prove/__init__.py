"""The prover: two rulesets treat every packet alike, or packets that they treat differently.

The stages, in the order a proof runs them::

    network          guests, bridges and interfaces of both hosts, and those that only rules name → ends
    exploration      the ways between the ends, and what packets meet on them
    flows            the base chains on a way                                     path.py's stages
    specialise       those chains, for one protocol and one set of interfaces                    → programs
    actions          effects of rules on this packet and later ones: marks, sets, helpers, headers
    counters         pairs of limits, one on each side, that count alike
    nic_keys         NICs that differ in names and numbers alone (by key_parts): one proof for all of them
    segments         every segment of every way, on both sides                                   → pairs of flows
    pairs            the two flows of a segment treat every packet alike, or do not
    structural       programs that are the same step by step need no more
    shapes           neither do those that differ in addresses and ports alone from proved ones
    atoms            per field, the classes of values that the programs tell apart               → bit masks
    evaluate         a program as a decision diagram (diagram) from classes to outcomes          → node numbers
    differences      what differs, followed on whole ways
    counterexamples  those packets as few, readable classes, one packet each
    compare          all of this in order                                                        → Report
    render           the report as text or JSON

``zones`` lists possible differences of rulesets that divide connections into other zones, ``backend_differences``
unavoidable differences between the tools, ``expected_differences`` reads the user's own list of differences to expect.
:mod:`~pvefw_nft.verify.prove.dead_rules` uses the same parts to find rules that never match or change nothing.
"""

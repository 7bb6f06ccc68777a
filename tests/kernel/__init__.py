"""The kernel lab: rulesets loaded into a real kernel, and its verdicts on packets.

``guest``       a throw-away virtual machine with a kernel that has what both rulesets need ``network``     the bridge
host, its guests and its neighbours, as network namespaces in that machine ``packets``     probes, as bytes ``probes``
sending probes and seeing what became of them ``generate``    probes made from a ruleset: just inside and just outside
of each condition ``cases``       packets with expected verdicts, from ``tests/cases`` ``lab``         all of it
together, and the command line
"""

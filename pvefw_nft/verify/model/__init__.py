"""The ruleset model: readers produce it, simulator and prover evaluate it.

A :class:`RulesetModel` is a set of tables of chains of rules, whichever tool they came from: iptables,
ip6tables, ebtables (ipsets resolved) and nftables. It holds only the parts that decide about packets.

**Fields.** A packet, at one hook, is a partial map from :class:`Field` to an integer from 0 up to the field's
``size``. Everything a rule can look at is such a field: addresses, ports, the interface (its name as a 16
byte big-endian number, so that ``fwln+`` is one interval), the TCP flags (8 bits), ICMP type and code (``type
<< 8 | code``), each bit of the packet mark and of the connection mark (fields of size 2), the kind of
address, connection state, and so on. Two kinds of fields are made on demand: :func:`rate_field`, 1 where the
stated rate is exceeded, and :func:`unknown_field`, for a match the readers do not know; both are of
size 2 and, to the prover, free. So are :func:`helper_field`, :func:`label_field` and :func:`route_field`.

**Conditions.** :class:`Test` says ``field in set``. *A test of a field that the packet lacks is false*,
whatever its set: that is how both kernels' matches behave (a port match fails for a packet without ports,
negated or not). So negating a match means the complement of its set (:func:`negate`), while :class:`Not` is
the plain Boolean not, used where a kernel inverts a whole lookup. :class:`All` and :class:`Any` complete the
logic; nearly every rule is just a list of tests. Readers make dependencies explicit: a test of ports comes
with a test of the protocol, a test of ``SADDR4`` in a table that also sees IPv6 with a test of ``PROTOCOL``.
Which fields exist for which packets: :data:`PRESENCE`. It is derived from the fields' declarations, like all other
tables of fields: :func:`declare`. Tests, sets and fields are interned: compare them with
``is``.

**Rules.** A rule applies where all its conditions hold. Then its ``effects`` happen in order (a log line, a
mark set, or a :class:`Guard`, which ends the rule where its condition does not hold), and then its
``verdict`` decides; ``None`` means on to the next rule.

**Chains.** A packet that falls off the end of a chain gets its ``policy``: :class:`Return` for an ordinary
chain, the policy of a base chain, and what ``ebtables -P`` says for its user chains. Jump and goto name
chains of the same table. After a *goto* a return goes to the chain that last *jumped*. A return from a base
chain (also after a goto) applies the base chain's policy.

**Hooks.** A packet meets, at each point of its path, the base chains of that family and point in the order of
their priorities. *Accept* ends only the base chain, and the next one sees the packet; *drop* and *reject* are
final. A :class:`~pvefw_nft.verify.network.path.Path` lists the points a packet passes.

``inet`` chains see IPv4 and IPv6 packets at the IP hooks; a table of family ``ip`` sees IPv4 only.
"""

# ruff: noqa: F403 - the package offers what its modules define

from __future__ import annotations

from pvefw_nft.verify.model.conditions import *
from pvefw_nft.verify.model.effects import *
from pvefw_nft.verify.model.fields import *
from pvefw_nft.verify.model.ruleset import *
from pvefw_nft.verify.model.summary import *
from pvefw_nft.verify.model.verdicts import *

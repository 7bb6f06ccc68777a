"""Which side opened a connection: only the other side answers it.

Connection tracking accepts any packet with the right addresses as an answer, from any port of the bridge. So an
attacker on the guest's network could send a packet in the guest's name, to a port that the guest's rules let in, and
then reach any port of the guest from there: these packets are "answers" in that connection, and established. A guest
without an IP filter could get past ``policy_out`` likewise. So each connection gets a label for each side whose first
packets were let through, and an "answer" from the only side that opened it is dropped. In the table of family bridge::

    chain sides { type filter hook forward priority -140
      ct state new,related jump opened }
    chain opened {
      ct state related meta l4proto { icmp, icmpv6 } return
      iifname "fwln*" ct label set 126
      meta ibrname "fwbr*" iifname != "fwln*" ct label set 127
      meta ibrname != "fwbr*" ct label set 125 }
    chain answers { type filter hook prerouting priority -158
      meta ibrname "fwbr*" ct direction reply jump answered }
    chain answered {
      iifname "fwln*" ct label 127 return
      iifname != "fwln*" ct label 126 return
      ct label { 126 or 127 } drop }

The host shares its connections with the guests' bridges. A neighbour could send a packet in the host's name across the
bridge, to itself, and then reach any port of the host from there. The host's own packets do not cross the bridge's
forward hook, so in the table of family inet::

    chain sides { type filter hook output priority -140
      ct state new,related jump opened }
    chain opened {
      ct state related meta l4proto { icmp, icmpv6 } return
      ct label set 124 }
    chain routed { type filter hook forward priority -140
      ct state new,related jump routed-opened }
    chain routed-opened {
      ct state related meta l4proto { icmp, icmpv6 } return
      ct label set 125 }
    chain answers { type filter hook input priority -158
      ct direction reply jump answered
      ct state related jump answered }
    chain answered {
      ct label 124 return
      ct label 125 drop }

The neighbour could have the host itself route such a packet back to it, so routed connections get the label of those
that cross a bridge. An ICMP error about a connection that only crossed a bridge is no answer, but comes from the same
neighbour.

The first packets of a connection that a helper expects are *related*, and open it like new ones: a neighbour makes
the kernel expect one by asking the guest, and could open that in the guest's name as well. An ICMP error is related,
too, but belongs to a connection that is there and opens none.

A connection without a label is older than the ruleset, or its guest moved here.

The chain ``answers`` also drops IP that connection tracking refuses, such as a length beyond the frame's end: such a
packet keeps the template by which it was given a zone (``IPS_TEMPLATE`` of include/uapi/linux/netfilter/
nf_conntrack_common.h; nf_ct_bridge_pre of net/bridge/netfilter/nf_conntrack_bridge.c, Linux 6.1), and so has the state
*new* instead of *invalid*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pvefw_nft.backends.nft.syntax import statements as nft
from pvefw_nft.backends.nft.syntax.expressions import anonymous_set, bits, ct, meta
from pvefw_nft.backends.nft.syntax.objects import Hook, Rule

if TYPE_CHECKING:
    from pvefw_nft.backends.nft.syntax.objects import Family

SIDES: Final = "sides"
"""The chain that labels connections, of both tables."""
OPENED: Final = "opened"
"""The chain with the labels, of both tables."""
SIDES_HOOKS: Final = {"bridge": Hook("forward", -140), "inet": Hook("output", -140)}

ROUTED: Final = "routed"
"""The chain that labels connections which the host routes, of the table of family inet."""
ROUTED_OPENED: Final = "routed-opened"
ROUTED_HOOK: Final = Hook("forward", -140)

ANSWERS: Final = "answers"
"""The chain that drops answers from the wrong side, of both tables."""
ANSWERS_HOOKS: Final = {"bridge": Hook("prerouting", -158), "inet": Hook("input", -158)}
ANSWERED: Final = "answered"

_BY_HOST: Final = "124"
_BY_BRIDGE: Final = "125"
_BY_NETWORK: Final = "126"
_BY_GUEST: Final = "127"
"""The labels, as bits: opened by the host itself, across a bridge of guests or routed, from the guest's bridge to the
guest, by the guest. Others' labels begin at 0.
"""

_TEMPLATE: Final = 1 << 11
"""``IPS_TEMPLATE``."""

_HERE = nft.match(meta("ibrname"), "fwbr*")
_ELSEWHERE = nft.match(meta("ibrname"), "fwbr*", "!=")
_FROM_NETWORK = nft.match(meta("iifname"), "fwln*")
_FROM_GUEST = nft.match(meta("iifname"), "fwln*", "!=")
_OPENING = nft.match(ct("state"), ["new", "related"], "in")
_RELATED = nft.match(ct("state"), ["related"], "in")
_ERROR = (_RELATED, nft.match(meta("l4proto"), anonymous_set([1, 58])))
_ANSWER = nft.match(ct("direction"), "reply")
_LABEL = ct("label")


def side_rules() -> tuple[Rule, ...]:
    """Return the rules of the chain :data:`SIDES`."""
    return (Rule((_OPENING, nft.jump(OPENED)), "opened"),)


def routed_rules() -> tuple[Rule, ...]:
    """Return the rules of the chain :data:`ROUTED`."""
    return (Rule((_OPENING, nft.jump(ROUTED_OPENED)), "routed"),)


def routed_opened_rules() -> tuple[Rule, ...]:
    """Return the rules of the chain :data:`ROUTED_OPENED`."""
    return (
        Rule((*_ERROR, nft.RETURN), "errors open nothing"),
        Rule((nft.mangle(_LABEL, _BY_BRIDGE),), "not opened by the host"),
    )


def opened_rules(family: Family) -> tuple[Rule, ...]:
    """Return the rules of the chain :data:`OPENED` of the table of a family, bridge or inet."""
    error = Rule((*_ERROR, nft.RETURN), "errors open nothing")
    if family == "inet":
        return error, Rule((nft.mangle(_LABEL, _BY_HOST),), "opened by the host")
    return (
        error,
        Rule((_FROM_NETWORK, nft.mangle(_LABEL, _BY_NETWORK)), "opened from the network"),
        Rule((_HERE, _FROM_GUEST, nft.mangle(_LABEL, _BY_GUEST)), "opened by the guest"),
        Rule((_ELSEWHERE, nft.mangle(_LABEL, _BY_BRIDGE)), "opened across a bridge of guests"),
    )


def answer_rules(family: Family) -> tuple[Rule, ...]:
    """Return the rules of the chain :data:`ANSWERS` of the table of a family, bridge or inet."""
    if family == "inet":
        return (
            Rule((_ANSWER, nft.jump(ANSWERED)), "answers"),
            Rule((_RELATED, nft.jump(ANSWERED)), "errors"),
        )
    refused = nft.match(bits(ct("status"), _TEMPLATE), _TEMPLATE)
    return (
        Rule((_HERE, refused, nft.COUNTER, nft.DROP), "malformed"),
        Rule((_HERE, _ANSWER, nft.jump(ANSWERED)), "answers"),
    )


def answered_rules(family: Family) -> tuple[Rule, ...]:
    """Return the rules of the chain :data:`ANSWERED` of the table of a family, bridge or inet."""
    if family == "inet":
        return (
            Rule((_labelled(_BY_HOST), nft.RETURN), "opened by the host"),
            Rule((_labelled(_BY_BRIDGE), nft.COUNTER, nft.DROP), "no answer to the host"),
        )
    return (
        Rule((_FROM_NETWORK, _labelled(_BY_GUEST), nft.RETURN), "opened by the guest"),
        Rule((_FROM_GUEST, _labelled(_BY_NETWORK), nft.RETURN), "opened from the network"),
        *(
            Rule((_labelled(label), nft.COUNTER, nft.DROP), "no answer of the other side")
            for label in (_BY_NETWORK, _BY_GUEST)
        ),
    )


def _labelled(label: str) -> nft.Statement:
    return nft.match(_LABEL, label, "in")

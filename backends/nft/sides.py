"""Which side of a firewall bridge opened a connection: only the other side answers it.

Connection tracking takes any packet of the right addresses for an answer, whichever port it comes by. So somebody on
the guest's network could send a packet in the guest's name, to a port that the guest's rules let in, and then reach any
port of the guest from there: what he sends is an "answer" in that connection, and established. A guest without an IP
filter could get past ``policy_out`` likewise. So each connection has a label for each side whose first packets were let
by::

    chain sides { type filter hook forward priority -140
      ct state new iifname "fwln*" ct label set 126
      ct state new meta ibrname "fwbr*" iifname != "fwln*" ct label set 127 }

and what comes by the only side that opened it is no answer::

    chain answers { type filter hook prerouting priority -158
      meta ibrname "fwbr*" ct direction reply jump answered }
    chain answered {
      iifname "fwln*" ct label 127 return
      iifname != "fwln*" ct label 126 return
      ct label { 126 or 127 } drop }

A connection without a label is one from before the ruleset, of a guest that moved here, or one that a helper expected.

The chain ``answers`` also drops IP that connection tracking refuses, such as a length beyond the frame's end: such a
packet keeps the template by which it was given a zone (``IPS_TEMPLATE`` of include/uapi/linux/netfilter/
nf_conntrack_common.h; nf_ct_bridge_pre of net/bridge/netfilter/nf_conntrack_bridge.c, Linux 6.1), and so has the state
*new* instead of *invalid*.
"""

from __future__ import annotations

from typing import Final

from pvefw_nft.backends.nft.syntax import statements as nft
from pvefw_nft.backends.nft.syntax.expressions import bits, ct, meta
from pvefw_nft.backends.nft.syntax.objects import Hook, Rule

SIDES: Final = "sides"
"""The chain that labels connections, of the table of family bridge."""
SIDES_HOOK: Final = Hook("forward", -140)

ANSWERS: Final = "answers"
"""The chain that drops answers from the wrong side."""
ANSWERS_HOOK: Final = Hook("prerouting", -158)
ANSWERED: Final = "answered"

_BY_NETWORK: Final = "126"
_BY_GUEST: Final = "127"
"""The labels, as bits: opened from the guest's bridge, opened by the guest. Others' labels begin at 0."""

_TEMPLATE: Final = 1 << 11
"""``IPS_TEMPLATE``."""

_HERE = nft.match(meta("ibrname"), "fwbr*")
_FROM_NETWORK = nft.match(meta("iifname"), "fwln*")
_FROM_GUEST = nft.match(meta("iifname"), "fwln*", "!=")
_NEW = nft.match(ct("state"), ["new"], "in")
_LABEL = ct("label")


def side_rules() -> tuple[Rule, ...]:
    """Return the rules of the chain :data:`SIDES`."""
    return (
        Rule((_NEW, _FROM_NETWORK, nft.mangle(_LABEL, _BY_NETWORK)), "opened from the network"),
        Rule((_NEW, _HERE, _FROM_GUEST, nft.mangle(_LABEL, _BY_GUEST)), "opened by the guest"),
    )


def answer_rules() -> tuple[Rule, ...]:
    """Return the rules of the chain :data:`ANSWERS`."""
    refused = nft.match(bits(ct("status"), _TEMPLATE), _TEMPLATE)
    return (
        Rule((_HERE, refused, nft.COUNTER, nft.DROP), "malformed"),
        Rule((_HERE, nft.match(ct("direction"), "reply"), nft.jump(ANSWERED)), "answers"),
    )


def answered_rules() -> tuple[Rule, ...]:
    """Return the rules of the chain :data:`ANSWERED`."""
    return (
        Rule((_FROM_NETWORK, nft.match(_LABEL, _BY_GUEST, "in"), nft.RETURN), "opened by the guest"),
        Rule((_FROM_GUEST, nft.match(_LABEL, _BY_NETWORK, "in"), nft.RETURN), "opened from the network"),
        *(
            Rule((nft.match(_LABEL, label, "in"), nft.COUNTER, nft.DROP), "no answer of the other side")
            for label in (_BY_NETWORK, _BY_GUEST)
        ),
    )

"""The facts about each backend that the host side needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """Facts of one backend.

    ``tools`` are the programs that apply and list its rulesets, ``modules`` the kernel modules that its rules use.
    ``needs_br_netfilter``: its rules see bridged packets only through br_netfilter (ebtables-nft excepted).
    ``sets_zones``: its ruleset tracks each filtered NIC in a zone of its own; the other one tracks all in one zone, so
    that NAT of guests needs a rule beside it (:mod:`.nat_zone`).
    ``one_document``: the pieces of its artefact are cuts of one text, which may be cut elsewhere next time.
    """

    name: str
    tools: tuple[str, ...]
    modules: tuple[str, ...]
    needs_br_netfilter: bool
    sets_zones: bool
    one_document: bool


_KNOWN = {
    info.name: info
    for info in (
        BackendInfo(
            "iptables",
            tools=("iptables", "iptables-restore", "ip6tables-restore", "ipset", "ebtables-restore"),
            modules=("br_netfilter",),
            needs_br_netfilter=True,
            sets_zones=False,
            one_document=True,
        ),
        BackendInfo(
            "nft",
            tools=("nft",),
            # not br_netfilter: it would send bridged packets through iptables' chains too
            modules=("nf_conntrack_bridge", "nft_meta_bridge", "nft_reject_bridge"),
            needs_br_netfilter=False,
            sets_zones=True,
            one_document=False,
        ),
    )
}
BACKENDS = tuple(_KNOWN)
"""The names of the backends whose rulesets can be loaded on a host."""


def info(backend: str) -> BackendInfo:
    """Return the facts of a backend. Raises KeyError for a name that is not in :data:`BACKENDS`."""
    return _KNOWN[backend]

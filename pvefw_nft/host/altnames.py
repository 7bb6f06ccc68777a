"""Alternative names of links (ip-link(8), ``ip link property add … altname``), which rules may use."""

from __future__ import annotations

from .links import open_route


def real_name(name: str) -> str | None:
    """Return the name of the link that has this alternative name.

    None if none has it, or pyroute2 is not installed. Raises HostError if the kernel cannot be asked.
    """
    try:
        # deferred: it takes longer to import than most rulesets take to compile
        from pyroute2.netlink.exceptions import NetlinkError
    except ImportError:
        return None
    with open_route() as netlink:
        try:
            (link,) = netlink.link("get", altname=name)
        except NetlinkError:  # no link has this alternative name: use the word as it is
            return None
        found = link.get_attr("IFLA_IFNAME")
        return found if isinstance(found, str) else None

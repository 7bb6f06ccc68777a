"""What this host's kernel filters with now, as its tools print it: input for ``pvefw simulate`` and ``compare``."""

from __future__ import annotations

import shutil
import subprocess

from pvefw_nft.errors import HostError

_TIMEOUT = 60
_IPTABLES = (("ipset", "save"), ("iptables-save",), ("ip6tables-save",), ("ebtables-save",))
_NFT = (("nft", "-j", "list", "ruleset"),)


def saved_rulesets(backend: str | None) -> list[tuple[str, str]]:
    """Return what is loaded, as (command, its output): by iptables and its kin, by nft, or (None) by both.

    A tool that is not installed can have loaded nothing; it is left out. Raises HostError where a tool fails, or
    where none is there.
    """
    commands = {"iptables": _IPTABLES, "nft": _NFT, None: _IPTABLES + _NFT}[backend]
    found = [(" ".join(command), _run(command)) for command in commands if shutil.which(command[0])]
    if not found:
        raise HostError("none of the tools that list rulesets is installed", "install iptables, ipset or nftables")
    return found


def _run(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{command[0]} cannot be run: {error}") from None
    if done.returncode:
        reason = done.stderr.strip() or f"exit code {done.returncode}"
        raise HostError(f"{' '.join(command)} failed: {reason}", "listing the ruleset needs root")
    return done.stdout

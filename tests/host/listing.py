"""The rules in the kernel, and pvefw's records, in a form that can be compared."""

from __future__ import annotations

import re
import subprocess
from typing import Any

from pvefw_nft.host import sysctl
from pvefw_nft.host.records import record
from pvefw_nft.host.records.pending import pending
from pvefw_nft.host.settings import needed_first


def everything() -> dict[str, Any]:
    """Return the rules in the kernel and the records, without their history."""
    found = everything_in_the_kernel()
    for path in (record.running_path(), record.confirmed_path()):
        loaded = record.load(path)
        found[path.name] = loaded and loaded.fingerprint
    found["waits"] = pending()
    return found


def everything_in_the_kernel() -> dict[str, Any]:
    """Return the rules in the kernel and the settings that they need, without their history."""
    found: dict[str, Any] = {tool: tables(listed(f"{tool}-save")) for tool in ("iptables", "ip6tables", "ebtables")}
    found["ipset"] = sorted(
        re.sub(r" (initval|hashsize) \S+", "", line) for line in listed("ipset", "save").split("\n")
    )
    for family in ("bridge", "inet"):
        found[family] = things(listed("nft", "list", "table", family, "pvefw"))
    for backend in ("iptables", "nft"):
        found |= {key: sysctl.read(key) for key in needed_first(backend)}
    return found


def listed(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "No such file" in done.stderr, done.stderr
    return done.stdout


def tables(text: str) -> dict[str, list[str]]:
    """Return the rules of a save command's output by chain, in their order."""
    found: dict[str, list[str]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line
        elif line.startswith(":"):
            found.setdefault(f"{table} {line.split()[0][1:]}", []).append(re.sub(r"\[\d+:\d+\]", "", line))
        elif line.startswith("-A"):
            found.setdefault(f"{table} {line.split()[1]}", []).append(line)
    return found


def things(text: str) -> dict[str, Any]:
    """Return chains by name, and sets, whose elements have no order. Notes have none either.

    Those that packets add are left out.
    """
    found: dict[str, Any] = {}
    for block in re.findall(r"^\t\S.*?^\t}$", text, re.MULTILINE | re.DOTALL):
        name, _, body = re.sub(r"counter packets \d+ bytes \d+", "counter", block).partition("{")
        if re.search(r"flags [a-z,]*dynamic", body):
            body = re.sub(r"elements = \{.*?\}", "", body, flags=re.DOTALL)
        ordered = "chain" in name and "digests" not in name
        found[name] = body if ordered else sorted(re.split(r"[,\s]+", body))
    return found

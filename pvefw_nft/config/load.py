"""Finding and reading the files of a configuration: below a root folder, or on a host (root ``/``).

Where files lie follows Proxmox VE's cluster file system.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from pvefw_nft.cache import NO_CACHE
from pvefw_nft.config import budget, grammar, netdb, resolve, sdn
from pvefw_nft.config.corosync import read_corosync
from pvefw_nft.config.files import FILES, Files
from pvefw_nft.config.findings import Findings
from pvefw_nft.config.model import (
    ClusterConfig,
    Corosync,
    GroupRule,
    Guest,
    GuestConfig,
    GuestKind,
    Nic,
    NodeConfig,
    VnetConfig,
)
from pvefw_nft.config.option_readers import read_boolean
from pvefw_nft.config.option_values import Policy
from pvefw_nft.config.options import ClusterHardening, GuestHardening, HostHardening, VnetOptions
from pvefw_nft.config.rules import Names
from pvefw_nft.config.values import BadValue, Prefix, read_mac, read_prefix
from pvefw_nft.errors import ConfigurationError, Span, UnreadableError, UnusableFileError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from pathlib import Path

    from pvefw_nft.cache import Cache
    from pvefw_nft.errors import Diagnostic

COMPANION_SUFFIX = ".pvefw"
"""End of a companion file's name, instead of ``.fw`` of Proxmox's file."""

GUEST = "guest"
"""Stage of the cache: by VMID, the guest as read, which depends on its files' texts among others."""

_Hardening = TypeVar("_Hardening", ClusterHardening, HostHardening)

_VMID = re.compile(r"[1-9][0-9]{0,8}")
_VNET = re.compile(r"[A-Za-z][A-Za-z0-9]{0,14}")
_BRIDGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_MAX_INTERFACE = 15
_MAX_VLAN = 4094
_MAX_NICS = 32
_NO_MAC_KEYS = frozenset(("bridge", "firewall", "tag", "trunks", "mtu", "queues", "rate", "link_down", "model", "name"))


@dataclass(frozen=True, slots=True)
class Root:
    """The folder that holds ``etc/pve``, the node whose configuration counts, and the access to files."""

    path: Path
    node: str
    files: Files = FILES

    @property
    def pve(self) -> Path:
        """The folder ``etc/pve``."""
        return self.path / "etc" / "pve"

    @property
    def node_folder(self) -> Path:
        """The node's own folder below ``etc/pve/nodes``."""
        return self.pve / "nodes" / self.node

    def host_file(self) -> Path:
        """Return the path of host.fw, whether it exists or not."""
        local = self.pve / "local"
        own = self.files.is_folder(local) and not self._leads_to_another_node(local)
        return (local if own else self.node_folder) / "host.fw"

    def guest_files(self, kind: GuestKind) -> dict[int, str]:
        """Return the paths of the guest configs of this node by VMID."""
        folder = "qemu-server" if kind is GuestKind.VM else "lxc"
        files: dict[int, str] = {}
        for place in (self.node_folder / folder, self.pve / folder):
            if not self._leads_to_another_node(place):
                files |= dict(self.configs_in(place))
        return files

    def guest_configs(self) -> Iterator[tuple[int, GuestKind, str]]:
        """Yield VMID, kind and path of each config of this node's guests: VMs before containers, by VMID as text."""
        for kind in GuestKind:
            files = self.guest_files(kind)
            for vmid in sorted(files, key=str):
                yield vmid, kind, files[vmid]

    def guests(self) -> list[tuple[int, GuestKind, str]]:
        """Return VMID, kind and path of this node's guests, in the order of :meth:`Configuration.guests`."""
        found: dict[int, tuple[int, GuestKind, str]] = {}
        for guest in self.guest_configs():
            found.setdefault(guest[0], guest)
        return [*found.values()]

    def _leads_to_another_node(self, place: Path) -> bool:
        """Tell whether a place is a link into the folder of another node, as on each node those to its own are."""
        target = self.files.link(place)
        if target is None:
            return False
        local = self.pve / "local"
        parts = target.rstrip("/").split("/")
        if place == local:
            return parts[-1] != self.node
        if "nodes" in parts:
            return parts[parts.index("nodes") + 1 :][:1] != [self.node]
        return "local" in parts and self._leads_to_another_node(local)

    def configs_in(self, folder: Path) -> Iterator[tuple[int, str]]:
        """Yield VMID and path of each guest config in a folder; nothing if there is none."""
        for name in self.files.listed(folder):
            stem, dot, suffix = name.partition(".")
            if suffix == "conf" and dot and _VMID.fullmatch(stem):
                yield int(stem), f"{folder}/{name}"

    def configs_elsewhere(self) -> Iterator[tuple[str, GuestKind, int, str]]:
        """Yield node, kind, VMID and path of each guest config of other nodes, nodes by name."""
        nodes = self.pve / "nodes"
        for node in sorted(self.files.listed(nodes)):
            if node == self.node:
                continue
            for kind, folder in ((GuestKind.VM, "qemu-server"), (GuestKind.CONTAINER, "lxc")):
                for vmid, path in sorted(self.configs_in(nodes / node / folder)):
                    yield node, kind, vmid, path

    def vnet_files(self) -> dict[str, Path]:
        """Return the firewall files of VNets by the VNet's name."""
        folder = self.pve / "sdn" / "firewall"
        paths = [folder / name for name in sorted(self.files.listed(folder))]
        return {path.stem: path for path in paths if path.suffix == ".fw" and _VNET.fullmatch(path.stem)}


@dataclass(frozen=True, slots=True)
class Reading:
    """A guest as read, its diagnostics, and the names of the cluster: the answers to those it asked for, and all."""

    guest: Guest
    diagnostics: tuple[Diagnostic, ...]
    answers: tuple[tuple[tuple[str, str], object], ...]
    names: object


class LazyGuest(Guest):
    """A guest whose files are read when its NICs or rules are asked for. It equals no other guest."""

    __slots__ = ("_read",)
    _read: Callable[[], Guest]

    def __init__(self, vmid: int, kind: GuestKind, file: str, read: Callable[[], Guest]) -> None:
        """Read nothing yet."""
        for name, value in (("vmid", vmid), ("kind", kind), ("file", file), ("closed", False), ("_read", read)):
            object.__setattr__(self, name, value)

    @property
    def nics(self) -> tuple[Nic, ...]:
        """The NICs, read now."""
        return self._read().nics

    @property
    def firewall(self) -> GuestConfig | None:
        """The firewall file, read now."""
        return self._read().firewall

    def __eq__(self, other: object) -> bool:
        """Compare by identity: comparing files would read them."""
        return self is other

    def __hash__(self) -> int:
        """Return a hash of the identity."""
        return id(self)


@dataclass(frozen=True, slots=True)
class _Origin:
    """The inputs of a guest: its files' paths and texts."""

    vmid: int
    kind: GuestKind
    config: tuple[str, str]
    firewall: tuple[str, str | None]
    companion: tuple[str, str | None] = ("", None)


class Configuration:
    """A node's configuration: its parts that hold for all guests, and the guests one by one.

    ``node`` is read when the object is made. Guests are read when they are asked for, so that a node with
    thousands of them is never in memory as a whole. Mistakes go to ``findings``.
    """

    def __init__(
        self,
        root: Root,
        findings: Findings,
        local_network: Callable[[], str | None],
        real_interface: Callable[[str], str | None] = lambda _: None,
        cache: Cache = NO_CACHE,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Read cluster.fw, host.fw, the VNets, the state of the SDN and corosync.conf.

        ``local_network`` is asked for a CIDR if the cluster has no alias of that name: the alias counts more,
        since rules may refer to it. ``real_interface`` returns the name of the link with an alternative name.
        ``now`` is asked for the epoch time if ``enable`` names one.
        Raises ConfigurationError for a file that cannot be used and for an ``etc/pve`` that is missing or empty (not
        mounted, which is not the same as disabled), and UsageError if ``local_network`` gives no CIDR.
        """
        self._root = root
        self._findings = findings
        self._lines = budget.Lines()
        budget.comparisons.begin_run()
        files = root.files
        if not files.listed(root.pve):
            raise UnreadableError(
                f"{root.pve}: nothing is there",
                "name the folder that holds etc/pve with --root; on Proxmox VE, see that pve-cluster.service runs",
            )
        self._firewall = root.pve / "firewall"
        file = self._firewall / "cluster.fw"
        states = sdn.state_texts(files, root.pve)
        sets = sdn.read_sdn(root.pve, states, findings)
        self._names = Names(0, real_interface=real_interface, sdn=sets)
        text = files.text(file) or ""
        cluster = resolve.read_cluster(str(file), text, findings, self._names, now)
        self._cache = cache
        self._outside = (tuple(map(str, states)), netdb.times_forgotten(), findings.cautious)
        prefixes = [(name, alias.prefix) for name, alias in self._names.aliases.items()]
        everything = (prefixes, [*self._names.ipsets], [*cluster.groups])  # in the order in which a hint names them
        self._all_names: object = cache.same("names of the cluster", "", everything)
        cluster = replace(cluster, hardening=self._companion(ClusterHardening, file))
        host_file = root.host_file()
        host = resolve.read_host(str(host_file), files.text(host_file) or "", findings, cluster, self._names)
        host = replace(host, hardening=self._companion(HostHardening, host_file))
        alias = cluster.aliases.get("local_network")
        network = alias.prefix if alias else _network(local_network())
        self.node = NodeConfig(root.node, cluster, host, self._vnets(cluster), self._corosync(), network, sets.ipsets)

    def _companion(self, kind: type[_Hardening], file: Path) -> _Hardening:
        """Read the companion of a file of Proxmox: options that Proxmox does not know."""
        beside = file.with_suffix(COMPANION_SUFFIX)
        return resolve.read_companion(kind, str(beside), self._root.files.text(beside) or "", self._findings)

    def guests(self, *, rules: bool = True, only: Container[int] | None = None) -> Iterator[Guest]:
        """Yield this node's guests, VMs before containers, by VMID as text; the order of the reference.

        Without ``rules`` their firewall files are not read: as if they had none. With ``only`` guests of other VMIDs
        are left out.
        """
        seen: dict[int, str] = {}
        for vmid, kind, path in self._root.guest_configs():
            if vmid in seen:
                self._findings.error(
                    "duplicate-guest",
                    Span(path, 0),
                    f"guest {vmid} is a VM already, by {seen[vmid]}; this file is ignored",
                    "remove the one that does not exist",
                )
                continue
            seen[vmid] = path
            if only is None or vmid in only:
                yield self._guest(vmid, kind, path, rules=rules)

    def read_guest(self, vmid: int, kind: GuestKind, path: str, *, rules: bool = True) -> Guest:
        """Read a guest of any node, by the path of its config; its firewall file is in the folder of all guests.

        ``rules`` as for :meth:`guests`.
        """
        return self._guest(vmid, kind, path, rules=rules)

    def read_guest_file(self, vmid: int) -> None:
        """Report mistakes in the firewall file of a guest that no node has."""
        self._guest(vmid, GuestKind.VM, f"{self._root.node_folder}/qemu-server/{vmid}.conf", rules=True)

    def read_host_file(self, path: Path) -> None:
        """Report mistakes in the host.fw of another node."""
        try:
            text = self._root.files.text(path) or ""
        except UnusableFileError as error:
            self._findings.error("host-file-unusable", Span(error.file, error.line), error.reason, error.hint)
            return
        resolve.read_host(str(path), text, self._findings, self.node.cluster, self._names)

    def _guest(self, vmid: int, kind: GuestKind, path: str, *, rules: bool) -> Guest:
        """Read one guest; unusable files close this guest alone."""
        files = self._root.files
        firewall = f"{self._firewall}/{vmid}.fw"
        try:
            config = files.text(path) or ""
        except UnusableFileError as error:
            return closed_guest(Guest(vmid, kind, _every_nic(), None, path), error, self._findings)
        try:
            companion = f"{self._firewall}/{vmid}{COMPANION_SUFFIX}"
            text, beside = (files.text(file) if rules else None for file in (firewall, companion))
            self._lines.take(firewall, (text or "") + (beside or ""))
            origin = _Origin(vmid, kind, (path, config), (firewall, text), (companion, beside))
        except UnusableFileError as error:
            origin = _Origin(vmid, kind, (path, config), (firewall, None))
            return closed_guest(self._guarded(origin, self._findings), error, self._findings)
        dependencies = (origin, self._outside)
        reading = self._cache.get(GUEST, vmid, lambda: dependencies, lambda: self._reading(origin), self._still_holds)
        self._findings.diagnostics += reading.diagnostics
        return reading.guest

    def _reading(self, origin: _Origin) -> Reading:
        """Read one guest, and note the names of the cluster that it asks for."""
        findings = Findings(cautious=self._findings.cautious)
        self._names.answers.clear()
        guest = self._guarded(origin, findings)
        return Reading(guest, tuple(findings.diagnostics), tuple(self._names.answers.items()), self._all_names)

    def _still_holds(self, reading: Reading) -> bool:
        """Tell whether a guest would be read alike with the names that the cluster has.

        A hint of a diagnostic may list all names. A guest without diagnostics depends only on those it asked for.
        """
        if reading.names is self._all_names:
            return True
        if reading.diagnostics:
            return False
        rules = () if reading.guest.firewall is None else reading.guest.firewall.rules
        return all(self._names.find(*question) == answer for question, answer in reading.answers) and all(
            rule.group in self.node.cluster.groups for rule in rules if isinstance(rule, GroupRule)
        )

    def _guarded(self, origin: _Origin, findings: Findings) -> Guest:
        """Read one guest. An unexpected exception is a bug of pvefw, and must not cost other guests their rules."""
        try:
            return self._read_guest(origin, findings)
        except Exception as error:
            try:
                nics = read_nics(origin.vmid, origin.kind, *origin.config)
            except Exception:
                nics = _every_nic()
            return closed_guest(Guest(origin.vmid, origin.kind, nics, None, origin.config[0]), error, findings)

    def _read_guest(self, origin: _Origin, findings: Findings) -> Guest:
        path, text = origin.config
        nics = _Nics(origin.vmid, origin.kind, findings).read(path, text)
        file, written = origin.firewall
        firewall: GuestConfig | None = None
        if written is not None:
            firewall = resolve.read_guest(file, written, findings, self.node.cluster, self._names, origin.vmid)
            beside, options = origin.companion
            hardening = resolve.read_companion(GuestHardening, beside, options or "", findings)
            firewall = replace(firewall, hardening=hardening)
        return Guest(origin.vmid, origin.kind, nics, firewall, path)

    def _vnets(self, cluster: ClusterConfig) -> tuple[VnetConfig, ...]:
        return tuple(self._vnet(name, path, cluster) for name, path in self._root.vnet_files().items())

    def _vnet(self, name: str, path: Path, cluster: ClusterConfig) -> VnetConfig:
        """Read one VNet's file; one that cannot be used closes this VNet alone."""
        try:
            text = self._root.files.text(path) or ""
            self._lines.take(str(path), text)
            return resolve.read_vnet(str(path), text, self._findings, cluster, self._names, name)
        except Exception as error:
            if isinstance(error, ConfigurationError) and not isinstance(error, UnusableFileError):
                raise  # the file system fails, which other files would not survive either
            _not_usable("vnet-closed", str(path), error, f"nothing is forwarded on VNet {name}", self._findings)
        return VnetConfig(name, VnetOptions(enable=True, policy_forward=Policy.DROP), file=str(path))

    def _corosync(self) -> Corosync | None:
        root = self._root
        file = root.pve / "corosync.conf"
        text = root.files.text(file)
        return None if text is None else read_corosync(str(file), text, root.files, root.path, self._findings)


def closed_guest(guest: Guest, error: Exception, findings: Findings) -> Guest:
    """Return the guest with its filtered NICs closed, since ``error`` keeps its rules from being known."""
    file = guest.file if guest.firewall is None else guest.firewall.file
    _not_usable("guest-closed", file, error, f"nothing passes the filtered NICs of guest {guest.vmid}", findings)
    # a link with a longer name cannot exist, and a chain could not be named after it
    nics = tuple(nic for nic in guest.nics if len(guest.interface(nic)) <= _MAX_INTERFACE)
    return replace(guest, nics=nics, firewall=None, closed=True)


def _not_usable(code: str, file: str, error: Exception, effect: str, findings: Findings) -> None:
    """Report why a file cannot be used, and the consequence until it is repaired."""
    if isinstance(error, UnusableFileError):
        findings.error(code, Span(error.file, error.line), f"{error.reason}; until it is mended, {effect}", error.hint)
        return
    reason = f"pvefw failed on it ({type(error).__name__}: {error})"
    hint = "this is a bug of pvefw; please report it with the file"
    findings.error(code, Span(file, 0), f"{reason}; until it is mended, {effect}", hint)


def _every_nic() -> tuple[Nic, ...]:
    """Return all the NICs a guest can have, filtered, for one whose config does not tell which there are."""
    nics = (
        Nic(index, None, "", None, firewall=True, tag=None, trunks=(), mtu=None, addresses=(), span=Span("", 0))
        for index in range(_MAX_NICS)
    )
    return tuple(sorted(nics, key=lambda nic: str(nic.index)))


def _network(text: str | None) -> Prefix | None:
    """Read the local network, if there is one."""
    if text is None:
        return None
    try:
        prefix = read_prefix(text)
    except BadValue as bad:
        raise UsageError(f"local network: {bad.message}", bad.hint) from None
    return Prefix(prefix.version, prefix.address, prefix.length, prefix.canonical)


def read_nics(vmid: int, kind: GuestKind, file: str, text: str) -> tuple[Nic, ...]:
    """Return the NICs of a guest config, without reporting its mistakes."""
    return _Nics(vmid, kind, Findings()).read(file, text)


@dataclass(frozen=True, slots=True)
class _Nics:
    """Reads the NICs of one guest config."""

    vmid: int
    kind: GuestKind
    findings: Findings

    def read(self, file: str, text: str) -> tuple[Nic, ...]:
        nics: dict[int, Nic] = {}
        for item in grammar.read_guest_config(file, text):
            line, problem = (item.line, item.problem) if isinstance(item, grammar.NicLine) else item
            if problem is not None:
                self.findings.error(problem.code, line.span(problem.start, problem.end), problem.message, problem.hint)
            if isinstance(item, grammar.NicLine):
                nic = self._nic(item)
                if nic is not None:
                    nics[nic.index] = nic
        # net10 comes before net2, as in the reference
        return tuple(sorted(nics.values(), key=lambda nic: str(nic.index)))

    def _nic(self, written: grammar.NicLine) -> Nic | None:
        if written.index >= _MAX_NICS:
            self.findings.error(
                "bad-nic", written.line.span(), f"net{written.index} does not exist", "NICs are net0 to net31"
            )
            return None
        firewall = self._firewall(written)
        interface = f"{self.kind.value}{self.vmid}i{written.index}"
        if firewall and len(interface) > _MAX_INTERFACE:
            self.findings.error(
                "bad-nic",
                written.line.span(),
                f"its interface would be named `{interface}`, longer than the {_MAX_INTERFACE} characters Linux allows",
                "give the guest a smaller VMID",
            )
            return None
        mac, spelling = self._mac(written, filtered=firewall)
        tag = self._number(written, "tag", 1, _MAX_VLAN)
        mtu = self._number(written, "mtu", 1, 65520)
        return Nic(
            written.index,
            mac,
            spelling,
            self._bridge(written),
            firewall,
            tag,
            self._trunks(written),
            mtu,
            self._addresses(written),
            written.line.span(),
        )

    def _firewall(self, written: grammar.NicLine) -> bool:
        """Tell whether the NIC is filtered; in doubt it is, so that a mistake never opens it."""
        word = written.properties.get("firewall")
        if word is None:
            # a damaged line may have lost the value: then the NIC counts as filtered
            return written.problem is not None and "firewall" in written.line.text
        value = read_boolean(word.text)
        if value is None and written.problem is None:
            self.findings.error(
                "bad-nic",
                written.line.span(word.start, word.end),
                f"`firewall={word.text[:40]}` is neither 0 nor 1; the NIC counts as filtered",
                "write firewall=1",
            )
        return value is not False

    def _mac(self, written: grammar.NicLine, *, filtered: bool) -> tuple[int | None, str]:
        properties = written.properties
        if self.kind is GuestKind.CONTAINER:
            word = properties.get("hwaddr")
        else:
            # the model of the NIC is the key of its MAC address: `virtio=BC:24:11:…`
            model = next((key for key in properties if key not in _NO_MAC_KEYS), "")
            word = properties.get("macaddr") or properties.get(model)
        mac = None if word is None else read_mac(word.text)
        if mac is None and filtered and written.problem is None:
            key = "hwaddr=…" if self.kind is GuestKind.CONTAINER else "virtio=…"
            self.findings.error(
                "bad-mac",
                written.line.span() if word is None or not word.text else written.line.span(word.start, word.end),
                "a filtered NIC without a valid MAC address; nothing that it sends can pass the MAC filter",
                f"write its address, like {key.replace('…', 'BC:24:11:00:00:01')}",
            )
        return mac, "" if word is None or mac is None else word.text

    def _bridge(self, written: grammar.NicLine) -> str | None:
        word = written.properties.get("bridge")
        if word is None or not _BRIDGE.fullmatch(word.text):
            return None
        return word.text

    def _number(self, written: grammar.NicLine, key: str, low: int, high: int) -> int | None:
        word = written.properties.get(key)
        if word is None:
            return None
        if not (word.text.isascii() and word.text.isdigit() and len(word.text) < 6 and low <= int(word.text) <= high):
            self.findings.error(
                "bad-nic",
                written.line.span(word.start, word.end),
                f"`{key}={word.text[:40]}` is not a number from {low} to {high}",
            )
            return None
        return int(word.text)

    def _trunks(self, written: grammar.NicLine) -> tuple[tuple[int, int], ...]:
        word = written.properties.get("trunks")
        if word is None or not word.text:
            return ()
        ranges = []
        for part in word.text.split(";"):
            found = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
            low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
            if not 1 <= low <= high <= _MAX_VLAN:
                self.findings.error(
                    "bad-nic",
                    written.line.span(word.start, word.end),
                    f"`{part[:40]}` is not a VLAN id or range of them",
                    "trunks are written like `trunks=10;20-29`",
                )
                continue
            ranges.append((low, high))
        return tuple(ranges)

    def _addresses(self, written: grammar.NicLine) -> tuple[Prefix, ...]:
        """Return a container's own addresses, as host prefixes; ``dhcp``, ``auto`` and ``manual`` give none."""
        if self.kind is GuestKind.VM:
            return ()
        found = []
        for key in ("ip", "ip6"):
            word = written.properties.get(key)
            if word is None or word.text in ("", "dhcp", "auto", "manual"):
                continue
            try:
                host = read_prefix(word.text.partition("/")[0])
            except BadValue as bad:
                self.findings.error("bad-address", written.line.span(word.start, word.end), bad.message, bad.hint)
                continue
            found.append(Prefix(host.version, host.address, host.length, host.canonical))
        return tuple(found)

"""Debian's kernel as files QEMU can boot: fetched once, unpacked, never installed.

``$PVEFW_LAB_KERNEL`` names the file of another kernel package (``linux-image-VERSION_….deb``), for example from another
Debian release. The folder ``$PVEFW_LAB_CACHE`` (default ``~/.cache/pvefw-lab``) keeps what is made here and may be
deleted. QEMU boots the uncompressed ``vmlinux`` (QEMU enters it directly, which saves unpacking it in the emulated
processor) and an initial RAM disk with only the modules that mount this machine's files.
"""

from __future__ import annotations

import fcntl
import gzip
import lzma
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNEL_METAPACKAGE = "linux-image-amd64"
"""Debian's generic kernel; the cloud flavour lacks 9p and would not see this machine's files."""

BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console")
"""Modules needed before the root file system is there; all others are loaded from it."""

TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "setpriv": "util-linux",
    "zstd": "zstd",
    "ip": "iproute2",
    "nft": "nftables",
    "iptables-restore": "iptables",
    "ipset": "ipset",
    "ebtables-restore": "ebtables",
    "conntrack": "conntrack",
    "systemd-run": "systemd",
}
"""Programs the lab runs, here or in the guest, and the Debian package of each."""


class LabUnavailableError(Exception):
    """The lab cannot run on this machine; the message names the missing part and the way to get it."""


@dataclass(frozen=True, slots=True)
class Image:
    """A bootable kernel: ``vmlinux``, ``initrd``, and its modules (``…/lib/modules/VERSION``)."""

    vmlinux: Path
    initrd: Path
    modules: Path


def cache_directory() -> Path:
    """Return the folder for downloaded and built files: ``$PVEFW_LAB_CACHE``, else ``~/.cache/pvefw-lab``."""
    return Path(os.environ.get("PVEFW_LAB_CACHE") or Path.home() / ".cache" / "pvefw-lab")


def prepare(kernel: Path | None = None) -> Image:
    """Return a bootable image, making it if it is not in the cache; ``kernel`` is a package to take instead.

    Raises:
        LabUnavailableError: a tool or the kernel is missing and cannot be installed or downloaded.
    """
    _check_machine()
    _ensure_tools()
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        archive = kernel or _kernel_file()
        package = archive.name.partition("_")[0] if archive is not None else _kernel_package(cache)
        target = cache / package
        if not (target / "initrd").exists():
            _build(package, target, archive)
    (modules,) = (target / "root/lib/modules").iterdir()
    return Image(target / "vmlinux", target / "initrd", modules)


def _check_machine() -> None:
    if platform.machine() != "x86_64":
        raise LabUnavailableError(f"the lab boots Debian's amd64 kernel; this machine is {platform.machine()}")
    if os.geteuid() != 0:
        raise LabUnavailableError("the lab needs root: its guest shares this machine's files, of every owner")


def _ensure_tools() -> None:
    """Install the Debian packages of the tools that are missing."""
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if not missing:
        return
    wanted = f"missing Debian packages: {' '.join(missing)}"
    if os.environ.get("PVEFW_NO_APT"):
        raise LabUnavailableError(f"{wanted}; PVEFW_NO_APT is set, so they are not installed")
    if shutil.which("apt-get") is None:
        raise LabUnavailableError(f"{wanted}; this machine has no apt-get, install their equivalents")
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (install, ["apt-get", "update"], install):
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if command is install and done.returncode == 0:
            break
    else:
        raise LabUnavailableError(f"{wanted}; `{' '.join(install)}` failed: {done.stderr.strip()[-500:]}")
    still = sorted(tool for tool in TOOLS if shutil.which(tool) is None)
    if still:
        raise LabUnavailableError(f"installed {' '.join(missing)}, yet these programs are missing: {' '.join(still)}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, so that two test runs do not build the same image at once."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _kernel_file() -> Path | None:
    """Return the kernel package that ``$PVEFW_LAB_KERNEL`` names, if it names one."""
    name = os.environ.get("PVEFW_LAB_KERNEL")
    if not name:
        return None
    if re.fullmatch(r"linux-image-[\w.+-]+_[\w.+~:%-]+\.deb", Path(name).name) is None or not Path(name).is_file():
        raise LabUnavailableError(f"PVEFW_LAB_KERNEL: no file linux-image-VERSION_….deb: {name}")
    return Path(name).resolve()


def _kernel_package(cache: Path) -> str:
    """Return the name of the kernel package: the archive's, else the newest in the cache."""
    answer = _apt("apt-cache", "depends", KERNEL_METAPACKAGE)
    names = re.findall(r"Depends: (linux-image-[\w.+-]+)", answer.stdout)
    if not names and _apt("apt-get", "update").returncode == 0:
        answer = _apt("apt-cache", "depends", KERNEL_METAPACKAGE)
        names = re.findall(r"Depends: (linux-image-[\w.+-]+)", answer.stdout)
    if names:
        return str(names[0])
    cached = sorted(cache.glob("linux-image-*/initrd"), key=lambda path: path.stat().st_mtime)
    if cached:
        return cached[-1].parent.name
    raise LabUnavailableError(
        f"no kernel: apt does not know {KERNEL_METAPACKAGE} (is Debian's archive set up?), {cache} has none"
    )


def _apt(*command: str, cwd: Path | None = None, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    more = {} if config is None else {"APT_CONFIG": str(config)}
    return subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", **more},
    )


def other_release() -> Path:
    """Return the kernel package of the other supported Debian release, which is fetched into the cache once.

    apt gets folders and a list of sources of its own; the machine's stay unchanged.

    Raises:
        LabUnavailableError: the package cannot be downloaded.
    """
    own = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    other = "trixie" if own == "bookworm" else "bookworm"
    folder = cache_directory() / other
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        cached = sorted(folder.glob("linux-image-*.deb"), key=lambda path: path.stat().st_mtime)
        return cached[-1] if cached else _fetch(other, own, folder)


def _fetch(release: str, own: str, folder: Path) -> Path:
    listed = _apt("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages")
    archives = [uri for uri, name, part in map(str.split, listed.stdout.splitlines()) if (name, part) == (own, "main")]
    if not archives:
        raise LabUnavailableError(f"apt has no archive of this machine's own release, and so none for {release}")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = Path(scratch)
        for name in ("etc/apt", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/lib/dpkg"):
            (root / name).mkdir(parents=True)
        (root / "var/lib/dpkg/status").touch()
        signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
        (root / "etc/apt/sources.list").write_text(f"deb {signed} {archives[0]} {release} main\n")
        status, config = root / "var/lib/dpkg/status", root / "apt.conf"
        config.write_text(f'Dir "{root}";\nDir::State::status "{status}";\nAPT::Architecture "amd64";\n')
        updated = _apt("apt-get", "update", "-o", "APT::Sandbox::User=root", config=config)
        depends = _apt("apt-cache", "depends", KERNEL_METAPACKAGE, config=config)
        names = re.findall(r"Depends: (linux-image-[\w.+-]+)", depends.stdout)
        if not names:
            raise LabUnavailableError(f"no kernel of {release}: {updated.stderr.strip()[-500:]}")
        got = _apt("apt-get", "download", "-o", "APT::Sandbox::User=root", names[0], cwd=root, config=config)
        found = list(root.glob("linux-image-*.deb"))
        if not found:
            raise LabUnavailableError(f"`apt-get download {names[0]}` failed: {got.stderr.strip()[-500:]}")
        return found[0].rename(folder / found[0].name)


def _build(package: str, target: Path, archive: Path | None) -> None:
    """Make ``target``: ``root`` (unpacked), ``vmlinux`` and ``initrd``, of ``archive`` or a downloaded ``package``.

    Everything is made in a scratch folder first, so that ``target`` is never half made.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as name:
        scratch = Path(name)
        archive = archive or _download(package, scratch)
        made = scratch / "made"
        root = made / "root"
        root.mkdir(parents=True)
        subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
        version = package.removeprefix("linux-image-")
        # A merged-/usr package keeps its modules under usr/lib.
        if not (root / "lib/modules").exists():
            (root / "lib").mkdir(exist_ok=True)
            (root / "usr/lib/modules").rename(root / "lib/modules")
        subprocess.run(["depmod", "-b", str(root), version], check=True)
        (made / "vmlinux").write_bytes(_uncompressed((root / f"boot/vmlinuz-{version}").read_bytes()))
        (made / "initrd").write_bytes(_initrd(root / "lib/modules" / version))
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def _download(package: str, folder: Path) -> Path:
    """Return the file of a package, which apt puts into the folder."""
    download = ("apt-get", "download", "-o", "APT::Sandbox::User=root", package)
    got = _apt(*download, cwd=folder)
    if got.returncode != 0:
        _apt("apt-get", "update")
        got = _apt(*download, cwd=folder)
    archives = list(folder.glob("*.deb"))
    if got.returncode != 0 or not archives:
        raise LabUnavailableError(f"`apt-get download {package}` failed: {got.stderr.strip()[-500:]}")
    return archives[0]


_DECOMPRESSORS = (
    (b"\xfd7zXZ\0", ["xz", "-dcq"]),
    (b"\x28\xb5\x2f\xfd", ["zstd", "-dcq"]),
    (b"\x1f\x8b\x08", ["gzip", "-dcq"]),
)


def _uncompressed(kernel: bytes) -> bytes:
    """Return the ELF image packed in a bzImage.

    The packed part has no fixed place, so every occurrence of a packer's magic number is tried; bytes that follow it
    make the tools complain, so their status is ignored.
    """
    for magic, command in _DECOMPRESSORS:
        start = kernel.find(magic)
        while start >= 0:
            image = subprocess.run(
                command, input=kernel[start:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
            ).stdout
            if image.startswith(b"\x7fELF"):
                return image
            start = kernel.find(magic, start + 1)
    raise LabUnavailableError("no kernel image in the package that xz, zstd or gzip could unpack")


def _initrd(modules: Path) -> bytes:
    """Return a compressed initial RAM disk: busybox, the modules of :data:`BOOT_MODULES`, and ``init``."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise LabUnavailableError("busybox is missing (Debian package busybox-static)")
    order = _load_order(modules)
    files: dict[str, tuple[int, bytes]] = dict.fromkeys(
        ("bin", "modules", "proc", "sys", "dev", "ro", "rw", "new"), (stat.S_IFDIR | 493, b"")
    )
    files["init"] = (stat.S_IFREG | 0o755, (Path(__file__).parent / "initrd-init.sh").read_bytes())
    files["bin/busybox"] = (stat.S_IFREG | 0o755, Path(busybox).read_bytes())
    files["bin/sh"] = (stat.S_IFLNK | 0o777, b"busybox")
    names = []
    for path in order:
        name = path.name.split(".ko")[0] + ".ko"
        names.append(name)
        files[f"modules/{name}"] = (stat.S_IFREG | 0o644, _module(path))
    files["modules/order"] = (stat.S_IFREG | 0o644, "".join(f"{name}\n" for name in names).encode())
    return gzip.compress(_cpio(files), compresslevel=1)


def _load_order(modules: Path) -> list[Path]:
    """Return the files of :data:`BOOT_MODULES` and of all they depend on, in an order that loads."""
    dependencies: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        name, _, needs = line.partition(":")
        dependencies[name] = needs.split()
    order: dict[str, None] = {}
    for wanted in BOOT_MODULES:
        for module, first in dependencies.items():
            if Path(module).name.split(".ko")[0].replace("-", "_") == wanted:
                # modules.dep names what to load first last.
                order.update(dict.fromkeys([*reversed(first), module]))
    return [modules / name for name in order]


def _module(path: Path) -> bytes:
    match path.suffix:
        case ".ko":
            return path.read_bytes()
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".zst":
            return subprocess.run(["zstd", "-dcq", str(path)], check=True, stdout=subprocess.PIPE).stdout
        case other:
            raise LabUnavailableError(f"kernel module {path} is packed in a way not known here: {other}")


def _cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """Return an archive in the "newc" format of cpio (Linux, Documentation/driver-api/early-userspace).

    ``files`` maps names to mode and content; a symbolic link's content is its target.
    """
    archive = bytearray()
    trailer = {"TRAILER!!!": (0, b"")}
    for number, (name, (mode, data)) in enumerate({**files, **trailer}.items(), start=1):
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        archive += b"070701" + b"".join(b"%08x" % value for value in fields) + encoded
        archive += b"\0" * (-len(archive) % 4) + data
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)

"""Who may import whom, and who may print, exit, start processes or touch the kernel.

The code is read, not run, so that imports inside functions and under ``TYPE_CHECKING`` count like any other.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parent.parent

LIBRARY = {"errors", "cache", "config", "ir", "backends", "host", "verify"}
MAY_IMPORT = {
    "errors": set[str](),
    "cache": set[str](),
    "config": {"cache", "errors"},
    "ir": {"config", "cache", "errors"},
    "backends": {"ir", "cache", "errors"},
    "host": {"ir", "backends", "errors"},
    "verify": {"errors"},
    "pipeline": LIBRARY,
    "app": {"pipeline", "cache", "config", "fleet", "host", "verify", "errors"},
    "api": {"pipeline", "config", "verify", "errors"},
    "fleet": {"config", "errors"},
    "cli": {"app", "fleet", "pipeline", "host", "verify", "errors"},
}
"""The places of the code, and the other places that each may import."""

ROOMS = {
    "verify": {
        "model": set[str](),
        "readers": {"model"},
        "network": {"model"},
        "simulate": {"model", "network"},
        "prove": {"model", "network", "simulate"},
    },
    "host": {
        "netfilter": set[str](),
        "records": {"netfilter"},
        "apply": {"records", "netfilter"},
        "bridges": {"apply", "records", "netfilter"},
        "tracking": {"apply", "records", "netfilter"},
        "watching": {"netfilter"},
        "proxmox": {"apply", "records", "netfilter"},
    },
}
"""The rooms of two large places, and the rooms beside them that each may import."""

HEAVY = ("nftables", "pyparsing", "pyroute2", "rich")
"""Modules that only some commands need and that would slow the start of all the others."""

EXITS = {"exit", "quit", "SystemExit"}
STREAMS = {"stdout", "stderr", "stdin"}
PROCESSES = ("system", "popen", "exec", "fork", "spawn", "posix_spawn")


# --- the checks ---------------------------------------------------------------------------------------------


def violations(root: Path) -> list[str]:
    """Return the breaches of the rules in the packages below ``root``, one line a finding."""
    files = sorted(file for package in ("pvefw_nft", "backends") for file in (root / package).rglob("*.py"))
    return [finding for file in files for finding in check(root, file)]


def check(root: Path, file: Path) -> Iterator[str]:
    """Yield the findings of one module."""
    module = module_name(root, file)
    here = place_of(module)
    if here is None:
        if module != "pvefw_nft":
            yield f"{module}: has no place in the table"
        return
    tree = ast.parse(file.read_text("utf-8"), str(file))
    for line, imported in imports(tree, module if file.name == "__init__.py" else module.rpartition(".")[0]):
        there = place_of(real_module(root, imported))
        if there is not None and there != here and there not in MAY_IMPORT[here]:
            yield f"{module}:{line}: {here} must not import {there} ({imported})"
        room, other = room_of(here, module), room_of(here, real_module(root, imported))
        if there == here and room and other and other != room and other not in ROOMS[here][room]:
            yield f"{module}:{line}: {here}/{room} must not import {here}/{other} ({imported})"
        if here != "host" and imported.split(".")[0] in ("subprocess", "pty", "pyroute2"):
            yield f"{module}:{line}: only host uses {imported}"
        if imported.split(".")[0] == "backends":
            yield f"{module}:{line}: a second copy of pvefw_nft.{imported}"
    for node in ast.walk(tree):
        if here != "cli" and (used := output_of(node)):
            yield f"{module}:{node_line(node)}: only cli prints or exits ({used})"
        if here != "host" and (used := kernel_access_of(node)):
            yield f"{module}:{node_line(node)}: only host starts processes or sets sysctls ({used})"


def module_name(root: Path, file: Path) -> str:
    """Return the dotted name of a file; the folder ``backends`` is linked into the package."""
    parts = list(file.relative_to(root).with_suffix("").parts)
    if parts[0] == "backends":
        parts.insert(0, "pvefw_nft")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place_of(module: str) -> str | None:
    """Return the place that a module belongs to; None for the bare package and for other packages."""
    match module.split("."):
        case ["pvefw_nft", place, *_] if place in MAY_IMPORT:
            return place
        case _:
            return None


def room_of(place: str, module: str) -> str | None:
    """Return the room of a place that a module is in, None if it is in none."""
    match module.split("."):
        case [_, _, room, *_] if room in ROOMS.get(place, ()):
            return room
        case _:
            return None


def real_module(root: Path, name: str) -> str:
    """Cut a dotted name to its module."""
    parts = name.split(".")
    while parts and not ((path := root.joinpath(*parts)).is_dir() or path.with_suffix(".py").is_file()):
        parts.pop()
    return ".".join(parts)


def circle(root: Path) -> list[str]:
    """Return modules of which each imports the next, and the last one the first; empty if there is no such circle."""
    graph: dict[str, set[str]] = {}
    for package in ("pvefw_nft", "backends"):
        for file in (root / package).rglob("*.py"):
            module = module_name(root, file)
            inside = module if file.stem == "__init__" else module.rpartition(".")[0]
            tree = ast.parse(file.read_text())
            graph[module] = {real_module(root, name) for _, name in imports(tree, inside)} - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of all that is imported, in statements and by ``import_module``."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                prefix = ".".join([*base, *([module] if module else [])])
                yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=args,
            ):
                yield node.lineno, dynamic_name(args)


def dynamic_name(args: list[ast.expr]) -> str:
    """Return the module that a call imports, or the start of its name; an unknown name could be any module."""
    match args:
        case [ast.Constant(value=str(name)), *_]:
            return name
        case [ast.JoinedStr(values=[ast.Constant(value=str(start)), *_]), *_] if "." in start:
            return start.rstrip(".")
        case _:
            return "pvefw_nft.cli"


def output_of(node: ast.AST) -> str | None:
    """Return the word by which a node prints or exits."""
    match node:
        case ast.Call(func=ast.Name(id="print")):
            return "print"
        case ast.Name(id=name) if name in EXITS:
            return name
        case ast.Attribute(value=ast.Name(id="sys"), attr=name) if name in EXITS | STREAMS:
            return f"sys.{name}"
        case ast.ImportFrom(module="sys", names=names):
            return next((f"sys.{alias.name}" for alias in names if alias.name in EXITS | STREAMS), None)
        case _:
            return None


def kernel_access_of(node: ast.AST) -> str | None:
    """Return the word by which a node starts a process or names a sysctl."""
    match node:
        case ast.Attribute(value=ast.Name(id="os"), attr=name) if name.startswith(PROCESSES):
            return f"os.{name}"
        case ast.ImportFrom(module="os", names=names):
            return next((f"os.{alias.name}" for alias in names if alias.name.startswith(PROCESSES)), None)
        case ast.Constant(value=str(text)) if text.startswith("/proc/sys"):
            return text
        case _:
            return None


def node_line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


# --- the project --------------------------------------------------------------------------------------------


def test_the_project_keeps_its_own_rules() -> None:
    assert violations(REPOSITORY) == []


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circle(REPOSITORY) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    place(tmp_path / "pvefw_nft/verify/a.py", "from pvefw_nft.verify import b\n")
    place(tmp_path / "pvefw_nft/verify/b.py", "def f() -> None:\n    from pvefw_nft.verify.a import x\n")
    assert set(circle(tmp_path)) == {"pvefw_nft.verify.a", "pvefw_nft.verify.b"}


@pytest.mark.parametrize("place", ROOMS)
def test_every_room_is_in_the_table(place: str) -> None:
    folders = {file.parent.name for file in (REPOSITORY / "pvefw_nft" / place).glob("*/__init__.py")}
    assert folders == set(ROOMS[place])


def test_every_module_is_read() -> None:
    assert {"pvefw_nft.errors", "pvefw_nft.ir.nodes", "pvefw_nft.backends"} <= {
        module_name(REPOSITORY, file)
        for package in ("pvefw_nft", "backends")
        for file in (REPOSITORY / package).rglob("*.py")
    }


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_command_line_starts_without_heavy_modules(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from pvefw_nft.cli import main\n"
        "try:\n"
        "    if sys.argv[1:]: main(sys.argv[1:])\n"
        "finally:\n"
        f"    sys.stderr.write(repr(sorted(set({HEAVY!r}) & set(sys.modules))))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "[]")


# --- that the checks can fail -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "code", "finding"),
    [
        ("pvefw_nft/errors.py", "import pvefw_nft.config.model", "errors must not import config"),
        ("pvefw_nft/config/a.py", "from pvefw_nft.ir import nodes", "config must not import ir"),
        ("pvefw_nft/config/a.py", "from pvefw_nft import ir", "config must not import ir"),
        ("pvefw_nft/config/a.py", "from .. import ir", "config must not import ir"),
        ("pvefw_nft/config/a.py", "from ..ir.nodes import Rule", "config must not import ir"),
        ("pvefw_nft/config/__init__.py", "from ..ir import nodes", "config must not import ir"),
        ("pvefw_nft/ir/a.py", "def f():\n    import pvefw_nft.backends.iptables", "ir must not import backends"),
        (
            "backends/iptables/a.py",
            "if TYPE_CHECKING:\n    from pvefw_nft.config.model import Host",
            "backends must not import config",
        ),
        ("pvefw_nft/host/a.py", "import pvefw_nft.verify.model as m", "host must not import verify"),
        ("pvefw_nft/verify/a.py", "from pvefw_nft.backends import iptables", "verify must not import backends"),
        ("pvefw_nft/verify/a.py", "from pvefw_nft.ir.build import build", "verify must not import ir"),
        (
            "pvefw_nft/verify/readers/a.py",
            "from pvefw_nft.verify.prove import a",
            "verify/readers must not import verify/",
        ),
        ("pvefw_nft/host/records/a.py", "from ..apply import engines", "host/records must not import host/apply"),
        ("pvefw_nft/pipeline/a.py", "from pvefw_nft.cli import main", "pipeline must not import cli"),
        ("pvefw_nft/cli/a.py", "from pvefw_nft.config import model", "cli must not import config"),
        ("pvefw_nft/ir/a.py", "importlib.import_module('pvefw_nft.backends.nft')", "ir must not import backends"),
        ("pvefw_nft/ir/a.py", "import_module(f'pvefw_nft.backends.{name}')", "ir must not import backends"),
        ("pvefw_nft/ir/a.py", "import_module(name)", "ir must not import cli"),
        ("pvefw_nft/pipeline.py", "from backends.nft import a", "a second copy of pvefw_nft.backends.nft"),
        ("pvefw_nft/other.py", "", "has no place in the table"),
        ("pvefw_nft/config/a.py", "print('x')", "only cli prints or exits (print)"),
        ("pvefw_nft/host/a.py", "import sys\nsys.exit(1)", "only cli prints or exits (sys.exit)"),
        ("pvefw_nft/host/a.py", "from sys import exit", "only cli prints or exits (sys.exit)"),
        ("backends/a.py", "raise SystemExit(1)", "only cli prints or exits (SystemExit)"),
        (
            "pvefw_nft/verify/a.py",
            "import sys\nsys.stderr.write('')",
            "only cli prints or exits (sys.stderr)",
        ),
        ("pvefw_nft/cli/a.py", "import subprocess", "only host uses subprocess"),
        ("pvefw_nft/config/a.py", "from subprocess import run", "only host uses subprocess"),
        ("pvefw_nft/pipeline.py", "from pyroute2 import IPRoute", "only host uses pyroute2"),
        ("pvefw_nft/pipeline.py", "import os\nos.system('')", "only host starts processes"),
        ("pvefw_nft/pipeline.py", "from os import execvp", "only host starts processes"),
        (
            "backends/a.py",
            "open('/proc/sys/net/ipv4/ip_forward')",
            "only host starts processes or sets sysctls",
        ),
    ],
)
def test_a_breach_is_found(tmp_path: Path, file: str, code: str, finding: str) -> None:
    for module in (
        "errors",
        "pipeline",
        "config/model",
        "ir/nodes",
        "ir/build",
        "verify/model/__init__",
        "verify/prove/a",
        "host/apply/engines",
        "cli/__init__",
    ):
        place(tmp_path / "pvefw_nft" / f"{module}.py", "")
    place(tmp_path / "backends" / "iptables" / "__init__.py", "")
    (tmp_path / "pvefw_nft" / "backends").symlink_to("../backends")
    assert violations(tmp_path) == []
    place(tmp_path / file, code)
    assert len(found := violations(tmp_path)) == 1
    assert finding in found[0]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("pvefw_nft/config/a.py", "from pvefw_nft.errors import Span\nfrom pvefw_nft.config import model"),
        ("pvefw_nft/config/a.py", "from . import model\nimport re, sys\nsys.intern('x')"),
        ("backends/nft/a.py", "from pvefw_nft.ir.nodes import Rule\nfrom pvefw_nft.backends import iptables"),
        ("pvefw_nft/host/a.py", "import subprocess, os, pyroute2\nos.execv('', [])\nopen('/proc/sys/net')"),
        ("pvefw_nft/pipeline.py", "import_module(f'pvefw_nft.backends.{name}')\nfrom pvefw_nft.config import model"),
        ("pvefw_nft/cli/a.py", "import sys\nprint(sys.stdout)\nsys.exit(0)\nfrom pvefw_nft import pipeline"),
    ],
)
def test_allowed_code_is_not_a_breach(tmp_path: Path, file: str, code: str) -> None:
    for module in ("errors", "pipeline", "config/model", "ir/nodes"):
        place(tmp_path / "pvefw_nft" / f"{module}.py", "")
    place(tmp_path / file, code)
    assert violations(tmp_path) == []


def place(file: Path, code: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(code)

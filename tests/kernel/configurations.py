"""The configurations the lab runs on, and compiling them."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.drawn import drawn

from . import cases
from .artefact import BACKENDS, IPTABLES, NFT, Artefact, parse
from .generate import generate
from .guest.machine import REPOSITORY
from .network.plan import Plan, make_plan
from .restore import read
from .standard import standard

if TYPE_CHECKING:
    from .packets import Probe


@dataclass(frozen=True, slots=True)
class Configuration:
    """A folder with ``etc/pve``, the node, and the network the host is in."""

    name: str
    root: Path
    node: str
    local_network: str

    @property
    def plan(self) -> Plan:
        """The network of this configuration."""
        return _plan(self)


@cache
def _plan(configuration: Configuration) -> Plan:
    return make_plan(configuration.root, configuration.node, configuration.local_network)


class CompileError(Exception):
    """The compiler gave no ruleset; the message is its own."""


def backends() -> list[str]:
    """Return the names of the backends that are there."""
    return [name for name in BACKENDS if importlib.util.find_spec(f"pvefw_nft.backends.{name}") is not None]


def of_case(name: str) -> Configuration:
    """Return the configuration of a case."""
    case = cases.load(name)
    return Configuration(name, case.root, case.node, case.local_network)


def examples() -> list[Configuration]:
    """Return the examples with guests, as their READMEs have them compiled; the tutorial has several."""
    found = []
    for root in sorted(path.parent.parent for path in (REPOSITORY / "examples").glob("**/etc/pve")):
        nodes = sorted(path.name for path in (root / "etc/pve/nodes").glob("*"))
        found.append(
            Configuration(str(root.relative_to(REPOSITORY)), root, nodes[0] if nodes else "pve1", "192.168.1.0/24")
        )
    return found


def golden() -> list[Configuration]:
    """Return the reference's cases, where they are: beside this checkout, or in ``$PVEFW_SHARED``."""
    shared = Path(os.environ.get("PVEFW_SHARED") or REPOSITORY.parent / "shared")
    found = []
    for spec in sorted(path for folder in ("golden", "golden-more") for path in (shared / folder).glob("*/case.toml")):
        data = tomllib.loads(spec.read_text())
        name = f"{spec.parent.parent.name}/{spec.parent.name}"
        found.append(Configuration(name, spec.parent / "root", data["node"], data["local_network"]))
    return found


OF_REFERENCE = 8
"""So many of the reference's cases are tried each time: ``PVEFW_TEST_DRAWN=all`` tries the other twenty, too."""


def surveyed() -> list[Configuration]:
    """Return the configurations for both backends: cases, examples, and some of the reference's cases with guests."""
    of_reference = [one for one in golden() if any(endpoint.filtered for endpoint in one.plan.endpoints)]
    some = drawn(of_reference, OF_REFERENCE, "cases of the reference")
    return [*(of_case(name) for name in cases.names()), *examples(), *some]


@cache
def compiled(configuration: Configuration, backend: str) -> Artefact:
    """Return the ruleset of a configuration, from ``pvefw compile``.

    Raises:
        CompileError: the compiler failed. Diagnostics about the configuration are no failure.
    """
    command = [sys.executable, "-m", "pvefw_nft.cli", "compile", "--backend", backend]
    command += ["--format", "json" if backend == NFT else "text", "--root", str(configuration.root)]
    command += ["--node", configuration.node, "--local-network", configuration.local_network]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise CompileError(f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip()[-2000:]}")
    return parse(backend, done.stdout)


def generated_probes(configuration: Configuration, seed: int = 0) -> list[Probe]:
    """Return the probes made from a configuration's rules."""
    return generate(read(compiled(configuration, IPTABLES)), configuration.plan, seed)


def probes(configuration: Configuration, seed: int = 0) -> list[Probe]:
    """Return all generated and standard probes of a configuration."""
    made = {probe.packets: probe for probe in generated_probes(configuration, seed)}
    for probe in standard(configuration.plan):
        made.setdefault(probe.packets, probe)
    return list(made.values())


def sampled_probes(configuration: Configuration, generated: int, others: int) -> list[Probe]:
    """Return at most so many probes made from the rules, and so many standard ones.

    The samples differ from configuration to configuration, so that together they have something of everything.
    """
    draw = random.Random(configuration.name)
    made = generated_probes(configuration)
    more = standard(configuration.plan)
    return draw.sample(made, min(generated, len(made))) + draw.sample(more, min(others, len(more)))

"""The Ansible role of examples/ansible, run with a local connection in a network namespace of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.shown import REPOSITORY

from .test_commands_as_processes import lets_in, options, pvefw, write

if TYPE_CHECKING:
    from .conftest import Namespace

pytest.importorskip("ansible", reason="ansible-core is not installed")


class Controller:
    """A playbook with the role, files to deploy, and the node's own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node, self.files = folder / "node", folder / "firewall"
        for place in (self.node, self.files):
            (place / "etc/pve/firewall").mkdir(parents=True)
        shutil.copytree(REPOSITORY / "examples/ansible/roles", folder / "roles")
        shutil.copy(REPOSITORY / "examples/ansible/site.yml", folder)
        command = folder / "pvefw"
        command.write_text(f'#!/bin/sh\nexport PYTHONPATH={REPOSITORY}\nexec {sys.executable} -m pvefw_nft.cli "$@"\n')
        command.chmod(0o755)
        variables = {
            "pvefw_command": str(command),
            "pvefw_root": str(self.node),
            "pvefw_options": options(self.node)[2:],
            "pvefw_confirm": 120,
            "ansible_python_interpreter": sys.executable,
        }
        (folder / "variables.json").write_text(json.dumps(variables))
        (folder / "inventory").write_text("[nodes]\nlocalhost ansible_connection=local\n")

    def play(self, *arguments: str) -> tuple[dict[str, int], str]:
        """Run the playbook; return the numbers of its recap, and all that it printed."""
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "inventory", "-e", "@variables.json"]
        environment = {**os.environ, "ANSIBLE_HOME": str(self.folder / "home"), "ANSIBLE_LOCALHOST_WARNING": "0"}
        environment |= {"ANSIBLE_ASYNC_DIR": str(self.folder / "jobs"), "LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(
            [*command, "site.yml", *arguments], cwd=self.folder, capture_output=True, text=True, check=False,
            env=environment,
        )  # fmt: skip
        said = done.stdout + done.stderr
        counts = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", done.stdout.rpartition("RECAP")[2])}
        assert counts, said
        return counts, said


@pytest.fixture
def controller(real: Namespace, tmp_path: Path) -> Controller:
    made = Controller(tmp_path)
    write(made.node, 80)
    assert pvefw("start", *options(made.node)).returncode == 0
    return made


def test_files_are_checked_applied_and_confirmed(controller: Controller) -> None:
    write(controller.files, 81)
    counts, said = controller.play("--check")
    assert (counts["failed"], counts["changed"], lets_in(81)) == (0, 0, False), said
    counts, said = controller.play()
    assert (counts["failed"], lets_in(81)) == (0, True), said
    assert "WARNING" not in said
    status = json.loads(pvefw("status", "--format", "json", *options(controller.node)).stdout)
    assert (status["changes"], status["confirmation"]) == ([], None)
    counts, said = controller.play()
    assert (counts["failed"], counts["changed"]) == (0, 0), said


def test_files_with_errors_change_nothing(controller: Controller) -> None:
    write(controller.files, 81, "IN NONSENSE\n")
    counts, said = controller.play()
    assert counts["failed"] == 1, said
    assert lets_in(80)
    assert "NONSENSE" not in (controller.node / "etc/pve/firewall/cluster.fw").read_text()


def test_rules_that_are_not_confirmed_go_and_the_files_with_them(controller: Controller) -> None:
    write(controller.files, 81)
    (controller.files / "etc/pve/firewall/100.fw").write_text("[OPTIONS]\nenable: 1\n")
    command = controller.folder / "pvefw"  # as where the new connection never comes about
    command.write_text(command.read_text().replace("exec", '[ "$1" = confirm ] && exit 1\nexec'))
    counts, said = controller.play("-e", "pvefw_confirm=10")
    assert counts["failed"] == 1, said
    assert "Rules and files are as before" in said
    assert {file.name for file in (controller.node / "etc/pve/firewall").iterdir()} == {"cluster.fw"}
    assert "-dport 80" in (controller.node / "etc/pve/firewall/cluster.fw").read_text()

"""Runners of tools that note, change or answer commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.host.tools import FOLDERS, Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

NONE = Runner("/nonexistent")
"""Finds no tool, if PATH has none either."""


class Found(Runner):
    """Finds tools where a function says."""

    def __init__(self, path: Callable[[str], str]) -> None:
        super().__init__()
        self._path = path

    def path(self, tool: str) -> str:
        return self._path(tool)


class Answering(Runner):
    """Runs nothing: a function answers each command."""

    def __init__(self, answer: Callable[[Sequence[str], str | None], str]) -> None:
        super().__init__()
        self._answer = answer

    def run_all(
        self,
        commands: Sequence[Sequence[str]],
        text: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> list[str]:
        return [self._answer(command, text) for command in commands]


class Editing(Runner):
    """Runs tools with the input that a function returns, which sees each command and its input first."""

    def __init__(self, edit: Callable[[Sequence[str], str | None], str | None]) -> None:
        super().__init__()
        self._edit = edit

    def run_all(
        self, commands: Sequence[Sequence[str]], text: str | None = None, timeout: float | None = None
    ) -> list[str]:
        for command in commands:
            text = self._edit(command, text)
        return super().run_all(commands, text, timeout)


def first_from(folder: Path, timeout: float = 240.0) -> Runner:
    """Return a runner that prefers the tools in a folder."""
    return Runner(f"{folder}:{FOLDERS}", timeout)

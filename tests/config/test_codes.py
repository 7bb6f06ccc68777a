"""The declarations of diagnostic codes: complete, true to their severity, and with examples that hold."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.config import netdb
from pvefw_nft.config.codes import SUBJECTS, Code, declared
from pvefw_nft.pipeline import Source, compile_root
from pvefw_nft.pipeline.review import analyse_root, survey_root
from tests.support import NODE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pvefw_nft.errors import Diagnostic

REPOSITORY = Path(__file__).resolve().parents[2]
CODE_ARGUMENT = {
    "error": 0,
    "warning": 0,
    "note": 0,
    "add": 1,
    "Diagnostic": 1,
    "Rejected": 1,
    "FieldProblem": 1,
    "_not_usable": 0,
}
"""Calls that make a diagnostic, and which of their arguments is the code."""
PROBLEMS = ("Rejected", "FieldProblem", "BadValue", "SyntaxProblem")
"""Exceptions that become errors (of a rule that is switched off: warnings)."""
CODES = tuple(declared().values())


def diagnostics(root: Path, code: str) -> list[Diagnostic]:
    """Return everything that a check, and a compile with the backend that host.fw asks for say."""
    netdb.forget()
    source = replace(
        Source(root, NODE, lambda: "10.0.0.0/24"),
        borrows_network=code == "borrowed-network",
        borrows_names=code == "borrowed-names",
    )
    compiled = compile_root(source, None)
    found = [*compiled.checked.diagnostics, *survey_root(source)]
    sound = not compiled.checked.has_errors and compiled.checked.ruleset.enabled
    if sound and code != "borrowed-names":  # an analysis reads names as the tools do, from this machine's own files
        found += analyse_root(source, compiled.checked).diagnostics
    return found


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return root


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.id)
def test_example(code: Code, tmp_path: Path, names_unread: None, use_etc: Callable[[Path], None]) -> None:
    if code.id == "borrowed-names":  # the example needs a service that Debian's file does not have
        use_etc(write(tmp_path / "etc", {"services": "localthing 4711/tcp\n"}))
    example = code.example
    assert example.before != example.after
    before = diagnostics(write(tmp_path / "before", example.files(example.before)), code.id)
    assert {one.severity for one in before if one.code == code.id} == {code.severity}
    after = diagnostics(write(tmp_path / "after", example.files(example.after)), code.id)
    assert [(one.code, one.message) for one in after] == []


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.id)
def test_texts(code: Code) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code.id)
    assert not code.title.endswith(".")
    for text in (code.why, code.proxmox):
        assert text.endswith(".")
        assert "  " not in text
        assert text.isprintable()


def test_each_code_is_declared_once() -> None:
    names = [code.id for codes in SUBJECTS.values() for code in codes]
    assert sorted(names) == sorted(set(names))


def called(function: ast.expr) -> str:
    """Return the name of a function or class, or of a method of findings; else nothing."""
    match function:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr=name):
            return name if "findings" in owner.lower() or name in PROBLEMS or owner in PROBLEMS else ""
        case _:
            return ""


def uses() -> Iterator[tuple[str, str, str]]:
    """Yield where a diagnostic is made, its code, and the severity that the call gives it (or empty)."""
    for file in sorted(path for place in ("pvefw_nft", "backends") for path in (REPOSITORY / place).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = called(node.func)
            argument = next((word.value for word in node.keywords if word.arg == "code"), None)
            if argument is None and name in CODE_ARGUMENT and len(node.args) > CODE_ARGUMENT[name]:
                argument = node.args[CODE_ARGUMENT[name]]
            if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
                continue
            severity = name if name in ("error", "warning", "note") else "error" if name in PROBLEMS else ""
            if name == "Diagnostic" and isinstance(node.args[0], ast.Attribute):
                severity = node.args[0].attr.lower()
            if "codes" not in file.parts:
                yield f"{file.relative_to(REPOSITORY)}:{node.lineno}", argument.value, severity


def test_each_code_in_use_is_declared_with_its_severity() -> None:
    codes = declared()
    found = list(uses())
    assert len(found) > 50
    assert [use for use in found if use[1] not in codes] == []
    assert [use for use in found if use[2] and use[2] != codes[use[1]].severity.value] == []

"""Fixtures that the tests share: small configurations in a temporary root, and golden files that one flag renews."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from pvefw_nft.config import netdb
from pvefw_nft.host.apply import names as host_names
from pvefw_nft.verify.model import names as verify_names
from tests.drawn import SEED
from tests.support import MakeRoot, file_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def make_root(tmp_path: Path) -> MakeRoot:
    """Return a function that writes a configuration below a temporary root."""

    def make(files: dict[str, str | bytes] | None = None) -> Path:
        for name, content in {"cluster": "[OPTIONS]\nenable: 1\n", **(files or {})}.items():
            path = tmp_path / file_path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path

    return make


@pytest.fixture
def names_unread() -> Iterator[None]:
    """Forget, before and after, what tests in this process have read of the host's names or put in their places."""
    netdb.forget()
    yield
    netdb.forget()


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str], list[tuple[Any, ...]]]:
    """Return a function that has calls of a function noted. It returns the list that gets their arguments."""

    def noting(owner: object, name: str) -> list[tuple[Any, ...]]:
        calls: list[tuple[Any, ...]] = []
        function = getattr(owner, name)

        def noted(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - any function
            calls.append(arguments)
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, noted)
        return calls

    return noting


@pytest.fixture
def use_etc(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return a function that has a folder stand for /etc, for everything that reads names of services there."""

    def use(folder: Path) -> None:
        for module in (netdb, host_names, verify_names):
            monkeypatch.setattr(module, "ETC", folder)

    return use


def pytest_configure() -> None:
    os.environ["PVEFW_CACHE_DIRECTORY"] = ""  # a proof that a test left must not spare another one its proof
    # On a busy machine making inputs is slow, which is no property of the code. CI judges a change: the same inputs.
    settings.register_profile(
        "pvefw", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=os.environ.get("CI") == "true"
    )
    settings.load_profile("pvefw")


def pytest_report_header() -> str:
    return f"PVEFW_TEST_SEED={SEED} draws what is tried of long lists"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write the golden files again instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that compares a text with the golden file of the running test."""

    def compare(text: str) -> None:
        module = Path(request.node.path)
        name = request.node.name.removeprefix("test_").replace("[", "-").rstrip("]")
        path = module.parent / "golden" / module.stem.removeprefix("test_") / f"{name}.txt"
        if request.config.getoption("--regenerate"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no golden file {path}; run pytest --regenerate and review it"
        assert text == path.read_text()

    return compare

import inspect
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import simmim.api.verify  # noqa: F401  (matplotlib looks for its cache as it is imported)
from simmim.cli.main import main
from simmim.verify.table import CHECKS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Certificates of tests lie in a folder of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "simmim" / "certificate.json"


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``simmim verify`` with the named checks alone; the exit status."""

    def run(*names: str, words: Sequence[str] = ()) -> int:
        known = {check.name for _, members in CHECKS for check in members}
        assert set(names) <= known
        chosen = [(group, [c for c in members if c.name in names]) for group, members in CHECKS]
        monkeypatch.setattr("simmim.api.verify.CHECKS", chosen)
        return main(["verify", *words])

    return run


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a fault into the source of a function or method, in every place that knows it."""

    def change(owner: Any, name: str, old: str, new: str, *users: ModuleType) -> None:
        member = inspect.getattr_static(owner, name)
        function = getattr(member, "__func__", getattr(member, "fget", member))
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(old) == 1, f"{name} no longer says {old!r}"
        space = dict(function.__globals__)
        exec(source.replace(old, new), space)
        # With its decorators, which the source has too.
        for place in (owner, *users):
            monkeypatch.setattr(place, name, space[name])

    return change

"""The contestants of other packages join by entry points, and a broken package is named."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from relcache.bench.rivals import registry
from relcache.bench.rivals.registry import all_rivals
from relcache.bench.rivals.solvers import SOLVERS
from relcache_rivals import RIVALS


def points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Install one entry point, a name `MORE` in a module with `code`."""
    (tmp_path / "more_rivals.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("more", "more_rivals:MORE", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])


def test_the_packages_rivals_join() -> None:
    assert list(all_rivals().values()) == [*SOLVERS, *RIVALS]


def test_a_package_adds_a_contestant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "from relcache_rivals.taylorseer import TaylorSeerHook\nMORE = (TaylorSeerHook('mine', 'Mine', 3),)"
    points(monkeypatch, tmp_path, code)
    assert list(all_rivals.__wrapped__())[len(SOLVERS) :] == ["mine"]


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("raise RuntimeError('no luck')", r"more_rivals:MORE cannot be loaded \(no luck\): repair or uninstall it"),
        ("", "more_rivals:MORE cannot be loaded"),
        ("MORE = ('mine',)", "'mine' of the package more_rivals:MORE is no Rival"),
        ("import copy\nfrom relcache.bench.rivals.solvers import SOLVERS\nMORE = (copy.copy(SOLVERS[0]),)",
         "is the name of another contestant"),
    ],
)  # fmt: skip
def test_a_broken_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, complaint: str) -> None:
    points(monkeypatch, tmp_path, code)
    monkeypatch.delitem(__import__("sys").modules, "more_rivals", raising=False)
    with pytest.raises(ValueError, match=complaint):
        all_rivals.__wrapped__()

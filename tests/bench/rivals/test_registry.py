"""The contestants of other packages join by entry points, and a broken package is named."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from relcache.bench.comparison import entries
from relcache.bench.rivals import registry
from relcache.bench.rivals.registry import all_rivals
from relcache.bench.rivals.solvers import SOLVERS
from relcache_rivals import RIVALS


def points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Install one entry point, a name `MORE` in a module with `code`."""
    (tmp_path / "more_rivals.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("more", "more_rivals:MORE", registry.GROUP)
    monkeypatch.delitem(sys.modules, "more_rivals", raising=False)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    monkeypatch.setattr(registry, "BROKEN", [])
    found = all_rivals.__wrapped__()
    monkeypatch.setattr(registry, "all_rivals", lambda: found)
    monkeypatch.setattr(entries, "all_rivals", lambda: found)
    monkeypatch.setattr(entries, "BROKEN", registry.BROKEN)


def test_the_packages_rivals_join() -> None:
    assert list(all_rivals().values()) == [*SOLVERS, *RIVALS]


def test_a_package_adds_a_contestant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "from relcache_rivals.taylorseer import TaylorSeerHook\nMORE = (TaylorSeerHook('mine', 'Mine', 3),)"
    points(monkeypatch, tmp_path, code)
    assert list(registry.all_rivals())[len(SOLVERS) :] == ["mine"]
    assert [entry.name for entry in entries.choose("mine,unipc")] == ["mine", "unipc"]


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("raise RuntimeError('no luck')", r"more_rivals:MORE cannot be loaded \(no luck\): repair or uninstall it"),
        ("", "more_rivals:MORE cannot be loaded"),
        ("MORE = ('mine',)", "'mine' of the package more_rivals:MORE is no Rival"),
        ("from relcache.bench.rivals.solvers import SOLVERS\nMORE = SOLVERS[:1]", "is the name of another contestant"),
        ("from relcache_rivals.taylorseer import TaylorSeerHook\nMORE = (TaylorSeerHook('rfc', '', 3),)",
         "'rfc' of the package more_rivals:MORE is the name of another"),
        ("from relcache_rivals.taylorseer import TaylorSeerHook\nMORE = (TaylorSeerHook('My cache', '', 3),)",
         "has signs besides small letters"),
    ],
)  # fmt: skip
def test_a_broken_package_is_named_where_it_may_be_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, complaint: str
) -> None:
    """The race, and unknown names, are errors; other contestants go on."""
    points(monkeypatch, tmp_path, code)
    for text in ("race", "mine"):
        with pytest.raises(ValueError, match=complaint):
            entries.choose(text)
    assert [entry.name for entry in entries.choose("rfc-2,unipc")] == ["rfc-2", "unipc"]

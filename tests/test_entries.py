"""Methods as the command line and files name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from relcache.bench.entries import choose
from relcache.bench.published import published

TOML = """
[[methods]]
method = "rfc"
order = 2

[[methods]]
name = "Late Taylor"
method = "taylorseer"
order = 1
interval = 4
phase = 3
"""
YAML = """
methods:
  - method: rfc
    order: 2
  - name: Late Taylor
    method: taylorseer
    order: 1
    interval: 4
    phase: 3
"""


@pytest.mark.parametrize(("suffix", "text"), [("toml", TOML), ("yaml", YAML), ("yml", YAML)])
def test_files(suffix: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / f"methods.{suffix}"
    path.write_text(text)
    free, fixed = choose(str(path))
    assert (free.name, free.fixed, dict(free.config)) == ("rfc-order-2", False, {"method": "rfc", "order": 2})
    assert (fixed.name, fixed.fixed) == ("late-taylor", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: {method: rfc}", "one key, 'methods', a list of tables"),
        ("methods: []\nmore: 1", "got methods, more"),
        ("- rfc", "got list"),
        ("methods:\n  - method: rcf", "method 1 of .*unknown method 'rcf'"),
        ("methods:\n  - method: rfc\n    treshold: 1", "did you mean 'threshold'"),
        ("methods:\n  - method: rfc\n  - method: rfc", "two methods named 'rfc'"),
        ("methods: [", "cannot be read as methods"),
    ],
)
def test_wrong_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "methods.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        choose(str(path))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as methods"):
        choose(str(tmp_path / "none.toml"))


def test_the_paper_s_ablation() -> None:
    entries = choose("ablation")
    assert [entry.name for entry in entries] == [
        "taylorseer-1", "rfe-1", "rcs-1", "rfc-1", "linear-0.8", "linear-1.0", "linear-1.2",
    ]  # fmt: skip
    assert not any(entry.fixed for entry in entries)
    for entry in entries:
        assert set(published("class-conditional", entry.name, 14)) >= {"fid2fc", "sfid2fc"}


def test_an_unknown_name_has_a_hint() -> None:
    with pytest.raises(ValueError, match="unknown method 'abblation': did you mean 'ablation'"):
        choose("abblation")

"""Methods as the command line and files name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from relcache.bench.comparison.entries import choose, named_config
from relcache.bench.comparison.published import published

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
        ("methods: null", "got methods that are None"),
        ("methods: []", "names no method besides full compute"),
        ("methods:\n  - method: rfc\n    threshold: 2026-13-45", "cannot be read as methods .month must be in 1..12"),
        ("methods:\n  - method: rfc\n    threshold: 2026-01-02", "method 1 of .*threshold is a number.* got date"),
        ("methods:\n  - method: rfc\n    threshold: {a: 1}", "got dict"),
        ("methods:\n  - method: rfc\n    threshold: .nan", "got float nan"),
        ("methods: &a\n  - *a", "a list of tables"),
        ("methods: " + "[" * 3000, "maximum recursion depth"),
        ("methods: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("\x00", "cannot be read as methods"),
        ("methods:\n  - method: fora\n    1: 2", "unknown option of fora '1'"),
    ],
)
def test_wrong_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "methods.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        choose(str(path))


def test_a_date_in_toml(tmp_path: Path) -> None:
    path = tmp_path / "methods.toml"
    for text, message in (("2026-01-02", "got date 2026-01-02"), ("2026-13-02", "cannot be read as methods")):
        path.write_text(f'[[methods]]\nmethod = "rfc"\nthreshold = {text}\n')
        with pytest.raises(ValueError, match=message):
            choose(str(path))


def test_numbers_that_yaml_takes_for_texts(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-2 as a text."""
    path = tmp_path / "methods.yaml"
    path.write_text("methods:\n  - method: rfc\n    threshold: 1e-2\n    norm: sample\n")
    (entry,) = choose(str(path))
    assert entry.config["threshold"] == 0.01
    assert entry.name == "rfc-threshold-0-01-norm-sample"


def test_names_in_other_scripts_are_apart(tmp_path: Path) -> None:
    path = tmp_path / "methods.yaml"
    path.write_text("methods:\n  - {method: fora, name: 方法一}\n  - {method: rfc, name: 方法二}\n", encoding="utf-8")
    names = [entry.name for entry in choose(str(path))]
    assert len(set(names)) == 2
    assert all(name.isascii() and name.startswith("method-") for name in names)


@pytest.mark.parametrize("text", ["", " , ", "full", "Full,full"])
def test_nothing_to_compare(text: str) -> None:
    with pytest.raises(ValueError, match="names no method besides full compute"):
        choose(text)


def test_names_with_options() -> None:
    """One way to name a method, wherever one is named."""
    assert named_config("rfc-1:threshold=1e-2") == {"method": "rfc", "order": 1, "threshold": 0.01}
    assert named_config("rfc:threshold=1e-2") == {"method": "rfc", "threshold": 0.01}
    assert named_config("RFC-3") == {"method": "rfc", "order": 3}
    assert named_config("taylorseer-p3-1:interval=4") == {
        "method": "taylorseer", "order": 1, "phase": 3, "interval": 4,
    }  # fmt: skip
    assert [(entry.name, entry.config) for entry in choose("rfc-1:threshold=1e-2,rfc-4")] == [
        ("rfc-1-threshold-1e-2", {"method": "rfc", "order": 1, "threshold": 0.01}),
        ("rfc-4", {"method": "rfc", "order": 4}),
    ]
    with pytest.raises(ValueError, match="gives order twice: the name rfc-1 sets order=1"):
        named_config("rfc-1:order=2")
    with pytest.raises(ValueError, match="unknown method 'rfc-²'"):
        choose("rfc-²")
    with pytest.raises(ValueError, match="a bracket that is not closed"):
        choose("plan:full_steps=[0,1")


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

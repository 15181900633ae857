"""The layers: ARCHITECTURE.md draws those of the import contract, which `lint-imports` checks."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

import relcache

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PACKAGE = Path(relcache.__file__).parent
DATA = {"families"}


def contracts() -> list[dict[str, Any]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["tool"]["importlinter"]["contracts"]


def layers_of(container: str) -> list[list[str]]:
    """The layers of a container, the highest first, each with its names."""
    contract = next(one for one in contracts() if one.get("containers") == [container])
    return [re.split(r"\s*\|\s*", layer) for layer in contract["layers"]]


@pytest.mark.parametrize("container", ["relcache", "relcache.bench"])
def test_the_drawing_is_the_contract(container: str) -> None:
    heading = f"<!-- layers of {container} -->"
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert heading in text
    rows = text.split(heading)[1].split("```")[1].strip().splitlines()
    drawn = [[name.strip() for name in row.split("  ")[0].split("|")] for row in rows if not row.startswith(" ")]
    assert drawn == layers_of(container)


def test_the_tower_is_low() -> None:
    assert len(layers_of("relcache")) <= 11


def test_few_modules_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_no_file_is_long() -> None:
    long = {str(path.relative_to(PACKAGE)): n for path in PACKAGE.rglob("*.py") if (n := lines(path)) > 350}
    assert long == {}


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_only_the_command_line_takes_the_public_face() -> None:
    """The layers do not see the package's own `__init__`: what is below must not wait for what is above."""
    takes = re.compile(r"^\s*(from relcache import|import relcache\s*$)", re.MULTILINE)
    taken = {path for path in PACKAGE.rglob("*.py") if takes.search(path.read_text(encoding="utf-8"))}
    assert {path.relative_to(PACKAGE).parts[0] for path in taken} <= {"cli", "presets"}

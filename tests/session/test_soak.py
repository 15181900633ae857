"""Many requests of all kinds, some of them broken off: nothing piles up."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "soak.py"
    spec = importlib.util.spec_from_file_location("soak", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:relcache")
def test_nothing_piles_up(soak: ModuleType) -> None:
    """Tensors to the last byte; the process within what its allocator and its tables may take."""
    soak.SIZES, soak.ROWS, soak.BLOCKS = (8, 12), (1, 2), 2
    first, *_, last = list(soak.snapshots(60, 20))
    assert (first.requests, last.requests) == (20, 60)
    assert last.tensors == first.tensors > 0
    assert last.process - first.process < 10e6

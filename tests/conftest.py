"""Fixtures: a fresh tiny transformer and pipeline for each test."""

from __future__ import annotations

import gc
import os

import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel
from tiny import DiTWithContext, tiny_dit, tiny_pipeline

torch.set_num_threads(1)  # more threads only wait for each other in models this small
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same in the processes that tests start

FIRST = (
    "test_command_line",
    "test_pool",
    "test_shipped_models",
)  # the longest; short tests at the end fill the gaps


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sequences",
        type=int,
        default=0,
        help="how many test_state_machine.py and test_ranks.py run",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in FIRST)


@pytest.fixture(scope="module", autouse=True)
def lasting() -> None:
    """Exclude all objects from before a file's tests, mostly of imports, from the collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def model() -> DiTTransformer2DModel:
    return tiny_dit()


@pytest.fixture
def model_with_context() -> DiTTransformer2DModel:
    return tiny_dit(kind=DiTWithContext)


@pytest.fixture
def pipeline() -> DiTPipeline:
    return tiny_pipeline()

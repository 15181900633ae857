"""Fixtures: a fresh tiny transformer and pipeline for each test."""

from __future__ import annotations

import pytest
from diffusers import DiTPipeline, DiTTransformer2DModel
from tiny import DiTWithContext, tiny_dit, tiny_pipeline


@pytest.fixture
def model() -> DiTTransformer2DModel:
    return tiny_dit()


@pytest.fixture
def model_with_context() -> DiTTransformer2DModel:
    return tiny_dit(kind=DiTWithContext)


@pytest.fixture
def pipeline() -> DiTPipeline:
    return tiny_pipeline()

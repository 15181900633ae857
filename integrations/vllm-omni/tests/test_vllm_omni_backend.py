"""The cache backend on stand-ins of vLLM-Omni's modules, and its names in vLLM-Omni's own files if it is installed."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from stand_ins import Block, Euler, Flux, timestep_features
from torch import Tensor, nn

import relcache_vllm_omni
from relcache.models.runs import RUNS


class Config:
    """vLLM-Omni's DiffusionCacheConfig as far as the backend sees it: options that it does not know are attributes."""

    def __init__(self, options: dict[str, Any]):
        vars(self).update(options)

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> Config:
        return cls(options)


class CacheBackend:
    """vLLM-Omni's base class as far as the backend sees it."""

    def __init__(self, config: Any):
        self.config, self.enabled = config, False

    def is_enabled(self) -> bool:
        return self.enabled


def get_cache_backend(cache_backend: str | None, cache_config: Any) -> Any:
    if cache_backend in (None, "none"):
        return None
    raise ValueError(f"Unsupported cache backend: {cache_backend}")


@pytest.fixture
def omni(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Stand-ins of vLLM-Omni's modules, by their names."""
    contents = {
        "vllm_omni.diffusion.cache.base": {"CacheBackend": CacheBackend},
        "vllm_omni.diffusion.data": {"DiffusionCacheConfig": Config},
        relcache_vllm_omni.SELECTOR: {"get_cache_backend": get_cache_backend},
        relcache_vllm_omni.RUNNER: {"get_cache_backend": get_cache_backend},
    }
    for name, content in contents.items():
        for depth in range(1, name.count(".") + 2):
            parent = ".".join(name.split(".")[:depth])
            if parent not in sys.modules or sys.modules[parent].__spec__ is not None:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        vars(sys.modules[name]).update(content)
    monkeypatch.delitem(sys.modules, "relcache_vllm_omni.backend", raising=False)
    backend = importlib.import_module("relcache_vllm_omni.backend")
    monkeypatch.setattr(backend, "_groups", dict)
    return sys.modules.__getitem__


class FluxBlock(Block):
    """A block with the signature of vLLM-Omni's FLUX."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, image_rotary_emb: Any = None,
        joint_attention_kwargs: Any = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return self.mixed(hidden_states, encoder_hidden_states, temb)


class FluxTransformer2DModel(Flux):
    """By its name, signature and lists of blocks vLLM-Omni's FLUX, whose timesteps are from 0 to 1."""

    block = FluxBlock

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Any = None, pooled_projections: Any = None,
        timestep: Any = None,
    ) -> Tensor:  # fmt: skip
        return self.run(hidden_states, encoder_hidden_states, 1000 * timestep)


class WanTransformer3DModel(nn.Module):
    """By its name, signature and list of blocks vLLM-Omni's Wan, whose blocks get their arguments by position."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(8, 8)

        def forward(
            self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: Any
        ) -> Tensor:
            return hidden_states + self.mix(hidden_states + encoder_hidden_states.mean(1, keepdim=True) + temb).tanh()

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Any = None, attention_kwargs: Any = None,
    ) -> Tensor:  # fmt: skip
        temb = timestep_features(timestep)
        for block in self.blocks:
            hidden_states = block(hidden_states, encoder_hidden_states, temb, None)
        return hidden_states


class Pipeline(nn.Module):
    """A pipeline of vLLM-Omni: a module, whose forward makes two calls of the transformer in each step."""

    divides = 1000

    def __init__(self, transformer: nn.Module):
        super().__init__()
        self.transformer, self.scheduler = transformer, Euler()

    def forward(self, steps: int, seed: int = 0) -> Tensor:
        self.scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(seed)
        x, *prompts = (torch.randn(1, 6, 8, generator=generator) for _ in range(3))
        for time in self.scheduler.timesteps:
            yes, no = (self.predict(x, time, prompt) for prompt in prompts)
            x = self.scheduler.step(no + 2 * (yes - no), time, x, return_dict=False)[0]
        return x

    def predict(self, x: Tensor, time: Tensor, prompt: Tensor) -> Tensor:
        return self.transformer(
            hidden_states=x, timestep=time.expand(1) / 1000, encoder_hidden_states=prompt, pooled_projections=prompt
        )


class WanPipeline(Pipeline):
    """Wan's, which makes a scheduler of its own for each request."""

    def forward(self, steps: int, seed: int = 0) -> Tensor:
        self.scheduler = Euler()
        return super().forward(steps, seed)

    def predict(self, x: Tensor, time: Tensor, prompt: Tensor) -> Tensor:
        return self.transformer(hidden_states=x, timestep=time.expand(1), encoder_hidden_states=prompt)


def pipeline_of(kind: type[Pipeline]) -> Pipeline:
    torch.manual_seed(0)
    model = WanTransformer3DModel() if kind is WanPipeline else FluxTransformer2DModel()
    return kind(model).requires_grad_(False)


def made(backend: Any, pipeline: Pipeline, steps: int, seed: int = 0, refreshes: bool = True) -> Tensor:
    """Make a picture as the runner does: refresh the backend if the request has steps, then call the pipeline."""
    with torch.inference_mode():
        if backend is not None and backend.is_enabled() and refreshes:
            backend.refresh(pipeline, steps)
        return pipeline(steps, seed)


@pytest.mark.parametrize("kind", [Pipeline, WanPipeline])
def test_generations_one_after_another(kind: Any, omni: Any) -> None:
    relcache_vllm_omni.register()
    pipeline = pipeline_of(kind)
    full, few = made(None, pipeline, 40), made(None, pipeline, 12)
    backend = omni(relcache_vllm_omni.SELECTOR).get_cache_backend("relcache", {"method": "auto:full_steps=12"})
    assert not backend.enabled
    backend.enable(pipeline)
    assert backend.enabled
    near = made(backend, pipeline, 40)
    assert len(backend.full_steps) == 12
    assert backend.report().corrections
    assert backend.report().notes == []
    assert 0 < (near - full).norm() < (few - full).norm()
    made(backend, pipeline, 30, seed=1)
    assert len(backend.full_steps) == 12
    assert torch.equal(made(backend, pipeline, 40, refreshes=False), near)
    assert torch.equal(made(backend, pipeline, 40), near)


def test_a_generation_that_was_interrupted(omni: Any) -> None:
    relcache_vllm_omni.register()
    pipeline = pipeline_of(Pipeline)
    backend = omni(relcache_vllm_omni.SELECTOR).get_cache_backend("relcache", {"method": "auto:full_steps=4"})
    backend.enable(pipeline)
    expected = made(backend, pipeline, 10)
    calls, forward = 0, pipeline.predict

    def stops(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return forward(*args)

    pipeline.predict = stops
    with pytest.raises(KeyboardInterrupt):
        made(backend, pipeline, 10)
    assert torch.equal(made(backend, pipeline, 10), expected)


def test_other_names_are_left_to_vllm_omni(omni: Any) -> None:
    relcache_vllm_omni.register()
    for module in (relcache_vllm_omni.SELECTOR, relcache_vllm_omni.RUNNER):
        assert omni(module).get_cache_backend(None, {}) is None
        with pytest.raises(ValueError, match="Unsupported cache backend: other"):
            omni(module).get_cache_backend("other", {})
        assert omni(module).get_cache_backend("relcache", {}).method == "auto:full_steps=14"


def test_a_selector_that_has_moved_is_told(omni: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omni(relcache_vllm_omni.SELECTOR), "get_cache_backend", lambda name: None)
    with pytest.raises(RuntimeError, match=r"does not fit this vLLM-Omni.*has changed"):
        relcache_vllm_omni.register()
    monkeypatch.delattr(omni(relcache_vllm_omni.SELECTOR), "get_cache_backend")
    with pytest.raises(RuntimeError, match="does not fit this vLLM-Omni"):
        relcache_vllm_omni.register()


def test_models_that_it_does_not_know(omni: Any) -> None:
    relcache_vllm_omni.register()
    backend = omni(relcache_vllm_omni.SELECTOR).get_cache_backend("relcache", {})
    pipeline = pipeline_of(Pipeline)
    pipeline.transformer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"knows FluxTransformer2DModel.*and Pipeline has Linear"):
        backend.enable(pipeline)


def test_blocks_in_other_processes_are_refused(omni: Any) -> None:
    class PPMissingLayer(nn.Identity):
        pass

    relcache_vllm_omni.register()
    backend = omni(relcache_vllm_omni.SELECTOR).get_cache_backend("relcache", {})
    pipeline = pipeline_of(WanPipeline)
    pipeline.transformer.blocks[1] = PPMissingLayer()
    with pytest.raises(ValueError, match="turn pipeline parallelism off"):
        backend.enable(pipeline)


# vLLM-Omni itself

OMNI = importlib.util.find_spec("vllm_omni")
needs_omni = pytest.mark.skipif(OMNI is None, reason="needs pip install --no-deps vllm-omni==0.30.0")


def tree_of(file: str) -> dict[str, ast.AST]:
    """Return the classes and functions of one of vLLM-Omni's files, which is read and not imported."""
    assert OMNI is not None
    assert OMNI.submodule_search_locations
    source = Path(OMNI.submodule_search_locations[0], file).read_text()
    return {node.name: node for node in ast.parse(source).body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}


def arguments(function: Any) -> list[str]:
    return [argument.arg for argument in function.args.args]


@needs_omni
def test_the_entry_point_is_found() -> None:
    points = importlib.metadata.entry_points(group="vllm_omni.general_plugins")
    assert [point.value for point in points if point.name == "relcache"] == ["relcache_vllm_omni:register"]


@needs_omni
def test_the_private_names_are_where_they_were() -> None:
    assert arguments(tree_of("diffusion/cache/selector.py")["get_cache_backend"]) == ["cache_backend", "cache_config"]
    base: Any = tree_of("diffusion/cache/base.py")["CacheBackend"]
    methods = {node.name: arguments(node) for node in base.body if isinstance(node, ast.FunctionDef)}
    assert methods["enable"] == ["self", "pipeline"]
    assert methods["refresh"] == ["self", "pipeline", "num_inference_steps", "verbose"]
    runner = Path(OMNI.submodule_search_locations[0], "diffusion/worker/diffusion_model_runner.py").read_text()
    assert "self.cache_backend.refresh(self.pipeline, num_inference_steps)" in runner
    assert "import get_cache_backend" in runner


@needs_omni
@pytest.mark.parametrize(
    ("file", "name", "blocks"),
    [
        ("flux/flux_transformer.py", "FluxTransformer2DModel", ["FluxTransformerBlock", "FluxSingleTransformerBlock"]),
        ("qwen_image/qwen_image_transformer.py", "QwenImageTransformer2DModel", ["QwenImageTransformerBlock"]),
        ("wan2_2/wan2_2_transformer.py", "WanTransformer3DModel", ["WanTransformerBlock"]),
    ],
)
def test_specs_fit_the_classes_of_vllm_omni(file: str, name: str, blocks: list[str]) -> None:
    classes: dict[str, Any] = tree_of(f"diffusion/models/{file}")
    forwards = {
        owner: arguments(node)
        for owner in (name, *blocks)
        for node in classes[owner].body
        if isinstance(node, ast.FunctionDef) and node.name == "forward"
    }
    assert {*RUNS[name].conditioning, "timestep"} <= {*forwards[name]}
    for block in blocks:
        assert {*RUNS[name].parts[0].streams} <= {*forwards[block]}

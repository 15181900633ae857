"""The plugin with SGLang's own registry of hooks, if its package is installed, and else with one that acts like it."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from requesting import run
from small_pipelines import flux, wan
from stand_ins import Block, Euler, Flux
from tiny import tiny_pipeline
from torch import Tensor, nn

import relcache
import relcache_sglang
from relcache.models.runs import RUNS
from relcache_sglang import diffusers_backend, native

METHOD = "auto:full_steps=4"


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "relcache")


class Registry:
    """Remembers the hooks."""

    def __init__(self) -> None:
        self.hooks: dict[str, Any] = {}

    def register(self, target: str, hook: Any, kind: Any) -> None:
        self.hooks[target] = hook


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry()
    plugins = ModuleType("sglang.multimodal_gen.runtime.platforms.plugins")
    plugins.HookRegistry, plugins.HookType = registry, SimpleNamespace(AFTER="after")
    parts = plugins.__name__.split(".")
    for depth in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(".".join(parts[:depth])))
    monkeypatch.setitem(sys.modules, plugins.__name__, plugins)
    return registry


def test_without_a_method_nothing_is_hooked(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(relcache_sglang.VARIABLE, raising=False)
    relcache_sglang.register()
    assert registry.hooks == {}


def test_a_typing_error_is_told_before_anything_is_loaded(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(relcache_sglang.VARIABLE, "auto:ful_steps=4")
    with pytest.raises(ValueError, match=r"RELCACHE_METHOD='auto:ful_steps=4'.*full_steps"):
        relcache_sglang.register()
    assert registry.hooks == {}


@pytest.mark.parametrize("build", [flux, wan, lambda: (tiny_pipeline(), {"class_labels": [3]})])
def test_a_pipeline_of_the_diffusers_backend(
    build: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(relcache_sglang.VARIABLE, METHOD)
    relcache_sglang.register()
    (pipe, call), (other, _) = build(), build()
    holder = SimpleNamespace(_cache_dit_enabled=False)
    registry.hooks[relcache_sglang.PIPELINE_IS_LOADED](pipe, holder, pipe, None)
    assert "enabled: <relcache auto:full_steps=4 on" in caplog.text
    relcache.enable(other, METHOD)
    with torch.inference_mode():
        assert torch.equal(run(pipe, call), run(other, call))
    registry.hooks[relcache_sglang.REQUEST_IS_DONE](None, SimpleNamespace(diffusers_pipe=pipe), None, None)
    assert len(pipe.relcache_handle.full_steps) == 4
    assert f"full steps {pipe.relcache_handle.full_steps}" in caplog.text


def test_a_second_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(relcache_sglang.VARIABLE, METHOD)
    with pytest.raises(RuntimeError, match="cache-dit is enabled, and RELCACHE_METHOD is set"):
        diffusers_backend.pipeline_is_loaded(tiny_pipeline(), SimpleNamespace(_cache_dit_enabled=True), None, None)


# SGLang's own models


class FluxBlock(Block):
    """A block with the signature of SGLang's."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, freqs_cis: Any = None,
        complex_freqs: Any = None, joint_attention_kwargs: Any = None, num_replicated_prefix: int = 0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return self.mixed(hidden_states, encoder_hidden_states, temb)


class FluxTransformer2DModel(Flux):
    """By its name, signature and lists of blocks SGLang's FLUX."""

    block = FluxBlock

    def __init__(self) -> None:
        super().__init__()
        self.enable_teacache = True  # as with each of SGLang's models

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Any = None, pooled_projections: Any = None,
        timestep: Any = None, guidance: Any = None, freqs_cis: Any = None, joint_attention_kwargs: Any = None,
    ) -> Tensor:  # fmt: skip
        return self.run(hidden_states, encoder_hidden_states, timestep)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.setenv(relcache_sglang.VARIABLE, METHOD)
    monkeypatch.setattr(native, "_groups", dict)
    torch.manual_seed(0)
    return SimpleNamespace(
        transformer=FluxTransformer2DModel().requires_grad_(False), transformer_2=None, scheduler=Euler(),
        _cache_dit_enabled=False, server_args=SimpleNamespace(enable_breakable_cuda_graph=False),
    )  # fmt: skip


def denoised(stage: Any, steps: int) -> Tensor:
    """Sample with two prompts as a denoising stage does: one call for each, the positive one first."""
    stage.scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(1)
    x, *prompts = (torch.randn(1, 6, 8, generator=generator) for _ in range(3))
    with torch.inference_mode():
        for time in stage.scheduler.timesteps:
            yes, no = (
                stage.transformer(
                    hidden_states=x, timestep=time.expand(1), encoder_hidden_states=prompt, pooled_projections=prompt
                )
                for prompt in prompts
            )
            x = stage.scheduler.step(model_output=no + 2 * (yes - no), timestep=time, sample=x, return_dict=False)[0]
    return x


def test_requests_of_a_native_model(
    stage: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(relcache_sglang.VARIABLE, "auto:full_steps=12")
    full, few = denoised(stage, 40), denoised(stage, 12)
    native.request_begins(None, stage, 40, None)
    near = denoised(stage, 40)
    handle = stage.relcache_handle
    assert len(handle.full_steps) == 12
    assert len(handle.units) == 1
    assert handle.report().corrections
    assert handle.report().notes == []
    assert 0 < (near - full).norm() < (few - full).norm()
    native.request_is_done(None, stage, None, None, None)
    assert f"full steps {handle.full_steps}" in caplog.text
    native.request_begins(None, stage, 30, None)
    denoised(stage, 30)
    assert stage.relcache_handle is handle
    assert len(handle.full_steps) == 12
    native.request_begins(None, stage, 40, None)
    assert torch.equal(denoised(stage, 40), near)


def test_a_native_model_that_is_not_known(stage: Any) -> None:
    stage.transformer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"not Linear: start SGLang with --backend diffusers"):
        native.request_begins(None, stage, 10, None)


@pytest.mark.parametrize("option", native.PER_REQUEST)
def test_a_request_that_asks_for_another_cache(stage: Any, option: str) -> None:
    with pytest.raises(RuntimeError, match=f"a request asks for {option}"):
        native.request_begins(None, stage, 10, SimpleNamespace(**{option: True}))


def test_captured_graphs_are_refused(stage: Any) -> None:
    stage.server_args.enable_breakable_cuda_graph = True
    with pytest.raises(RuntimeError, match="--enable-breakable-cuda-graph false"):
        native.request_begins(None, stage, 10, None)


# SGLang itself

SGLANG = importlib.util.find_spec("sglang")
needs_sglang = pytest.mark.skipif(SGLANG is None, reason="needs pip install --no-deps sglang==0.5.23")


@pytest.fixture
def hook_registry() -> Any:
    """SGLang's registry, read from its file: the package itself imports much that needs a GPU."""
    assert SGLANG is not None
    assert SGLANG.submodule_search_locations
    file = f"{SGLANG.submodule_search_locations[0]}/srt/plugins/hook_registry.py"
    spec = importlib.util.spec_from_file_location("sglang_hook_registry", file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_sglang
def test_the_entry_point_is_found() -> None:
    points = importlib.metadata.entry_points(group="sglang.multimodal_gen.plugins")
    assert [point.value for point in points if point.name == "relcache"] == ["relcache_sglang:register"]


def arguments(owner: ast.ClassDef) -> list[str]:
    forward = next(node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == "forward")
    return [argument.arg for argument in forward.args.args]


@needs_sglang
@pytest.mark.parametrize(
    ("file", "name", "blocks"),
    [
        ("flux.py", "FluxTransformer2DModel", ["FluxTransformerBlock", "FluxSingleTransformerBlock"]),
        ("qwen_image.py", "QwenImageTransformer2DModel", ["QwenImageTransformerBlock"]),
        ("wanvideo.py", "WanTransformer3DModel", ["WanTransformerBlock"]),
    ],
)
def test_specs_fit_the_classes_of_sglang(file: str, name: str, blocks: list[str]) -> None:
    """Classes, lists of blocks and arguments as in SGLang's files, which are read and not imported."""
    source = Path(SGLANG.submodule_search_locations[0], "multimodal_gen/runtime/models/dits", file).read_text()
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    assert {*RUNS[name].conditioning, "timestep"} <= {*arguments(classes[name])}
    for part in RUNS[name].parts:
        for pattern in part.run:
            assert f"self.{pattern.removesuffix('.*')} = " in source
        for block in blocks:
            assert {*part.streams} <= {*arguments(classes[block])}


@needs_sglang
def test_the_hooks_fire_in_sglangs_registry(hook_registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry patches a class with the method's name and arguments, and the hook gets what it expects."""

    class DiffusersPipeline:
        _cache_dit_enabled = False

        def _apply_cache_dit(self, pipe: Any, server_args: Any) -> Any:
            return pipe

    module = ModuleType("standin_of_sglang")
    module.DiffusersPipeline = DiffusersPipeline
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv(relcache_sglang.VARIABLE, METHOD)
    hook_registry.HookRegistry.register(
        "standin_of_sglang.DiffusersPipeline._apply_cache_dit", diffusers_backend.pipeline_is_loaded,
        hook_registry.HookType.AFTER,
    )  # fmt: skip
    hook_registry.HookRegistry.apply_hooks()
    pipe = module.DiffusersPipeline()._apply_cache_dit(tiny_pipeline(), None)
    run(pipe, {"class_labels": [3]})
    assert len(pipe.relcache_handle.full_steps) == 4

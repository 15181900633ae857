"""Side by side with what else people do to a transformer: adapters, offloading, casting, quantisation, other caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache
from diffusers.hooks.group_offloading import apply_group_offloading
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxIPAdapterAttnProcessor
from peft import LoraConfig
from small_pipelines import Built, flux, flux_transformer
from torch import Tensor, nn

import relcache
from relcache import FORA, Always, Plan, Relational, TaylorSeer

STEPS = 8
METHOD = TaylorSeer(1, interval=3)
FULL_STEPS = [0, 1, 4, 7]


@pytest.fixture(autouse=True)
def back_end() -> Iterator[None]:
    """`set_attention_backend` of one model changes it for all that come later; here it does not."""
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry._active_backend = before


def run(built: Built, **options: Any) -> Tensor:
    pipe, call = built
    pipe.set_progress_bar_config(disable=True)
    call = {**call, "num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(0), **options}
    return torch.as_tensor(pipe(**call, output_type="latent", return_dict=False)[0])


def add_lora(transformer: Any, name: str, seed: int = 0) -> None:
    """An adapter on every linear layer, the parallel blocks' own projections among them."""
    config = LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, target_modules="all-linear")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer.add_adapter(config, adapter_name=name)
    transformer.requires_grad_(False)


LORA_STATES: dict[str, Callable[[Any], None]] = {
    "loaded": lambda transformer: None,
    "swapped": lambda transformer: (add_lora(transformer, "second", 1), transformer.set_adapter("second")),
    "fused": lambda transformer: transformer.fuse_lora(),
    "switched off": lambda transformer: transformer.disable_lora(),
    "unloaded": lambda transformer: transformer.unload_lora(),
}


@pytest.mark.parametrize("state", LORA_STATES)
def test_lora_while_enabled(state: str) -> None:
    """The pictures are those of a model that had the adapter before relcache was enabled, and steps are skipped."""
    expected, built = flux(), flux()
    add_lora(expected[0].transformer, "first")
    LORA_STATES[state](expected[0].transformer)
    full = run(expected)
    with relcache.enable(expected[0], METHOD):
        cached = run(expected)

    handle = relcache.enable(built[0], METHOD)
    before = run(built)
    add_lora(built[0].transformer, "first")
    run(built)
    LORA_STATES[state](built[0].transformer)
    assert torch.equal(run(built), cached)
    assert handle.report().full_steps == FULL_STEPS
    assert not handle.report().fallbacks
    assert torch.equal(before, run(flux_enabled()))
    handle.disable()
    assert torch.equal(run(built), full)


def flux_enabled() -> Built:
    built = flux()
    relcache.enable(built[0], METHOD)
    return built


def sequential_offload(pipe: Any) -> None:
    accelerate.cpu_offload(pipe.transformer, execution_device=torch.device("cpu"), offload_buffers=False)


def group_offload(pipe: Any) -> None:
    apply_group_offloading(
        pipe.transformer,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
    )


def layerwise_casting(pipe: Any) -> None:
    pipe.transformer.enable_layerwise_casting(torch.float16, torch.float32)


def another_back_end(pipe: Any) -> None:
    pipe.transformer.set_attention_backend("_native_math")


def another_processor(pipe: Any) -> None:
    pipe.transformer.set_attn_processor(FluxAttnProcessor())


def fused_projections(pipe: Any) -> None:
    pipe.transformer.fuse_qkv_projections()


CHANGES = [
    lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    sequential_offload,
    group_offload,
    layerwise_casting,
    another_back_end,
    another_processor,
    fused_projections,
]
NAMES = ["model offload", "sequential offload", "group offload", "layerwise casting", "back end", "processor", "fused"]


@pytest.mark.parametrize("first", ["relcache first", "change first"])
@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_changes_before_and_after_enable(change: Callable[[Any], None], first: str) -> None:
    built, plain = flux(), flux()
    change(plain[0])
    full = run(plain)
    with relcache.enable(plain[0], METHOD):
        expected = run(plain)
    if first == "change first":
        change(built[0])
    handle = relcache.enable(built[0], METHOD)
    if first == "relcache first":
        change(built[0])
    cached = [run(built), run(built)]
    assert torch.equal(cached[0], cached[1])
    assert not torch.equal(cached[0], full)
    assert torch.equal(cached[0], expected)
    assert handle.report().full_steps == FULL_STEPS
    assert not handle.report().fallbacks
    exact = relcache.enable(built[0], forecaster=Relational(1), schedule=Always())
    assert torch.equal(run(built), full)
    exact.disable()
    assert torch.equal(run(built), full)


@torch.no_grad()
def test_the_third_output_of_an_ip_adapter() -> None:
    """FLUX's attention with an IP-adapter returns a third tensor, of the image stream."""
    transformer = flux_transformer()
    for block in transformer.transformer_blocks:
        processor = FluxIPAdapterAttnProcessor(32, 16)
        block.attn.set_processor(processor)
    transformer.encoder_hid_proj = nn.Module()
    transformer.encoder_hid_proj.forward = lambda embeds: embeds
    pictures = [torch.randn(1, 3, 16)]
    call = {
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "pooled_projections": torch.randn(1, 16),
        "guidance": torch.ones(1),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    handle = relcache.enable(transformer, forecaster=Relational(1), schedule=Plan([0, 1, 4]))
    outputs = {}
    for scale in (0.0, 1.0):
        for block in transformer.transformer_blocks:
            block.attn.processor.scale = [scale]
        sample = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))
        for timestep in torch.linspace(1, 0.3, STEPS):
            kwargs = {"ip_adapter_image_embeds": pictures}
            sample = (
                sample - 0.05 * transformer(sample, timestep=timestep[None], joint_attention_kwargs=kwargs, **call)[0]
            )
        outputs[scale] = sample
        assert handle.report().full_steps == [0, 1, 4]
    streams = next(iter(handle._session.cache.request.branches.values())).cells[0].streams
    assert [stream.source for stream in streams] == [0, 1, 0]
    assert bool(torch.isfinite(outputs[1.0]).all())
    assert not torch.equal(outputs[0.0], outputs[1.0]), "the adapter shows in cached steps"


def test_controlnet_residuals() -> None:
    """Residuals of a ControlNet are added between blocks, in cached steps too."""
    base = flux()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        controlnet = diffusers.FluxControlNetModel.from_transformer(
            base[0].transformer, attention_head_dim=16, num_attention_heads=2, num_layers=1, num_single_layers=1
        )
        for parameter in controlnet.parameters():
            nn.init.normal_(parameter, 0, 0.2)
    pipe = diffusers.FluxControlNetPipeline(controlnet=controlnet.eval(), **base[0].components)
    options = {"control_image": torch.rand(1, 3, 16, 24), "controlnet_conditioning_scale": 1.0}
    built = (pipe, base[1])
    full = run(built, **options)
    with relcache.enable(pipe, METHOD) as handle:
        cached = run(built, **options)
        assert handle.report().full_steps == FULL_STEPS
        without = run(built, **{**options, "controlnet_conditioning_scale": 0.0})
    assert bool(torch.isfinite(cached).all())
    assert not torch.equal(cached, full)
    assert not torch.equal(cached, without)
    assert torch.equal(run(built, **options), full)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Features are cached and forecast in their own dtype."""
    built = flux()
    built[0].to(dtype)
    full = run(built)
    with relcache.enable(built[0], forecaster=Relational(2), schedule=Plan([0, 1, 3, 6])) as handle:
        cached = run(built)
        estimate = handle.estimate(16, width=24, text=24)
        assert abs(estimate - handle.report().cache_bytes) <= 0.05 * handle.report().cache_bytes
        request = handle._session.cache.request
        kept = {stream.state.stack.dtype for branch in request.branches.values() for cell in branch.cells
                for stream in cell.streams}  # fmt: skip
    assert kept == {dtype}
    assert cached.dtype == full.dtype == dtype
    assert bool(torch.isfinite(cached).all())
    assert not torch.equal(cached, full)


def test_quantised_weights() -> None:
    """torchao's int8 weights; linear layers stay modules, their weights are of another tensor class."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    built = flux()
    quantize_(built[0].transformer, Int8WeightOnlyConfig())
    full = run(built)
    with relcache.enable(built[0], METHOD) as handle:
        cached = run(built)
        report = handle.report()
    assert report.full_steps == FULL_STEPS
    assert report.flops is not None
    assert report.flops < report.full_flops
    assert not torch.equal(cached, full)
    assert torch.equal(run(built), full)


def test_a_training_step_is_refused() -> None:
    transformer = flux_transformer()
    transformer.requires_grad_(True)
    relcache.enable(transformer, METHOD)
    transformer.enable_gradient_checkpointing()
    with pytest.raises(RuntimeError, match="gradient checkpointing"):
        transformer(torch.randn(1, 6, 16), timestep=torch.ones(1))
    transformer.disable_gradient_checkpointing()
    transformer.train()
    with pytest.raises(RuntimeError, match="training mode"):
        transformer(torch.randn(1, 6, 16), timestep=torch.ones(1))


def test_a_cache_of_diffusers_that_is_active_already() -> None:
    built = flux()
    built[0].transformer.enable_cache(TaylorSeerCacheConfig())
    with pytest.raises(ValueError, match=r"active \(TaylorSeerCacheConfig\).*disable_cache"):
        relcache.enable(built[0], METHOD)
    built[0].transformer.disable_cache()
    assert relcache.enable(built[0], METHOD).enabled


def test_a_cache_of_diffusers_that_comes_later() -> None:
    """By the model's method it is refused at once; applied behind its back it is noticed at the next call."""
    built = flux()
    handle = relcache.enable(built[0], FORA(3))
    with pytest.raises(ValueError, match=r"with relcache: TaylorSeerCacheConfig would be a second cache"):
        built[0].transformer.enable_cache(TaylorSeerCacheConfig())
    apply_taylorseer_cache(built[0].transformer, TaylorSeerCacheConfig())
    with pytest.raises(RuntimeError, match=r"another cache active \(hook 'taylorseer_cache'"):
        run(built)
    handle.disable()


def test_a_cache_of_diffusers_that_was_applied_by_hand() -> None:
    built = flux()
    apply_taylorseer_cache(built[0].transformer, TaylorSeerCacheConfig())
    with pytest.raises(RuntimeError, match=r"another cache active \(hook 'taylorseer_cache'"):
        relcache.enable(built[0], METHOD)

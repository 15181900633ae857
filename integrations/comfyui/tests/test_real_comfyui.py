"""The node in ComfyUI's own code: its models, patcher, guider and samplers, from a checkout that COMFYUI names.

    COMFYUI=~/ComfyUI python -m pytest integrations/comfyui/tests/test_real_comfyui.py -n 0

Packages without a build for a CPU are replaced by empty modules, as in the other packages' tries.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import absent
import pytest
import relcache_comfyui
import torch
from relcache_comfyui.sampling import COMPILED, CORRECTED
from torch import Tensor

CHECKOUT = os.environ.get("COMFYUI", "")
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="needs COMFYUI=FOLDER, a checkout of ComfyUI (not on PyPI)")
STEPS, FULL = 20, 8
TWO_LISTS = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 8, "context_in_dim": 12, "hidden_size": 32, "mlp_ratio": 2.0,
    "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "qkv_bias": True,
    "guidance_embed": True,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "flux": ("Flux", {**TWO_LISTS, "image_model": "flux", "theta": 10000, "patch_size": 2, "txt_ids_dims": []}),
    "wan": ("WAN21_T2V", {
        "image_model": "wan2.1", "model_type": "t2v", "dim": 48, "ffn_dim": 64, "freq_dim": 32, "text_dim": 12,
        "num_heads": 2, "num_layers": 3, "text_len": 16,
    }),
    "hunyuan": ("HunyuanVideo", {
        **TWO_LISTS, "image_model": "hunyuan_video", "theta": 256, "patch_size": [1, 2, 2], "byt5": False,
        "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
    }),
    "qwen": ("QwenImage", {
        "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 3, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": (4, 6, 6),
    }),
}  # fmt: skip
PATCHED = {"flux": "single_blocks.1.linear2", "wan": "blocks.0.ffn.0", "hunyuan": "double_blocks.0.img_mlp.0",
           "qwen": "transformer_blocks.0.img_mlp.net.0.proj"}  # fmt: skip
FRAMES = {"flux": (), "wan": (2,), "hunyuan": (2,), "qwen": (1,)}  # of latents


@pytest.fixture(scope="module")
def comfy() -> Any:
    """ComfyUI's modules, on a CPU."""
    arguments, sys.argv = sys.argv, ["main.py", "--cpu"]
    sys.path.insert(0, CHECKOUT)
    absent.replace("torchvision", "torchaudio")
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management
    import comfy.model_patcher
    import comfy.samplers
    import comfy.supported_models

    sys.argv = arguments
    return comfy


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "relcache")


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "relcache"]


def patcher_of(comfy: Any, kind: str, **options: Any) -> tuple[Any, Any]:
    """Return the patcher of a small model with random weights, and the node's."""
    name, config = CONFIGS[kind]
    supported = getattr(comfy.supported_models, name)(config)
    supported.unet_config["dtype"] = torch.float32
    model = supported.get_model({}, device="cpu")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for weight in model.diffusion_model.parameters():
            torch.nn.init.normal_(weight, 0.0, 0.1)
    plain = comfy.model_patcher.ModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))
    return plain, with_node(plain, **options)


def with_node(patcher: Any, **options: Any) -> Any:
    chosen = {"full_steps": FULL, "forecaster": "default", "correction": True, **options}
    return relcache_comfyui.NODE_CLASS_MAPPINGS["Relcache"]().apply(patcher, **chosen)[0]


def prompt(tokens: int, seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(1, 8, generator=generator)
    return [[torch.randn(1, tokens, 12, generator=generator), {"pooled_output": pooled, "guidance": 3.5}]]


def sampled(
    comfy: Any, patcher: Any, kind: str, name: str = "euler", seed: int = 0, side: int = 8, steps: int = STEPS,
    sigmas: Tensor | None = None, start: Tensor | None = None, tokens: tuple[int, int] = (6, 6), scale: float = 3.0,
    callback: Callable[..., None] | None = None,
) -> Tensor:  # fmt: skip
    """Sample as ComfyUI's node SamplerCustom does."""
    shape = (1, 16, *FRAMES[kind], side, side)
    if sigmas is None:
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    latent = torch.zeros(shape) if start is None else start
    with torch.inference_mode():
        return comfy.samplers.sample(
            patcher, noise if start is None else torch.zeros(shape), prompt(tokens[0], 1), prompt(tokens[1], 2), scale,
            torch.device("cpu"), comfy.samplers.sampler_object(name), sigmas, latent_image=latent, seed=seed,
            callback=callback, disable_pbar=True,
        )  # fmt: skip


KINDS = pytest.mark.parametrize("kind", list(CONFIGS))


def distance(near: Tensor, full: Tensor) -> float:
    return float((near - full).norm() / full.norm())


@KINDS
@pytest.mark.parametrize("tokens", [(6, 6), (7, 5)], ids=["prompts in one call", "prompts in two calls"])
def test_the_budget_is_met_and_the_picture_is_near(
    comfy: Any, kind: str, tokens: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    plain, cached = patcher_of(comfy, kind)
    full = sampled(comfy, plain, kind, tokens=tokens)
    few = sampled(comfy, plain, kind, tokens=tokens, steps=FULL)
    near = sampled(comfy, cached, kind, tokens=tokens)
    assert f"{FULL} of {STEPS} steps full ■" in texts(caplog)[-1]
    assert "; corrected at " in texts(caplog)[-1]
    assert 0 < distance(near, full) < distance(few, full)
    assert torch.equal(sampled(comfy, plain, kind, tokens=tokens), full)  # the model itself is as before


@KINDS
def test_samplings_one_after_another_are_fresh(comfy: Any, kind: str) -> None:
    _, cached = patcher_of(comfy, kind)
    wanted: list[dict[str, Any]] = [{}, {"seed": 1}, {"side": 12}, {"scale": 1.0}, {}]
    pictures = [sampled(comfy, cached, kind, **options) for options in wanted]
    for picture, options in zip(pictures, wanted, strict=True):
        _, fresh = patcher_of(comfy, kind)
        assert torch.equal(sampled(comfy, fresh, kind, **options), picture)


@KINDS
def test_an_interrupt_leaves_nothing_behind(comfy: Any, kind: str) -> None:
    plain, cached = patcher_of(comfy, kind)
    expected, full = sampled(comfy, cached, kind), sampled(comfy, plain, kind)

    def interrupt(step: int, *args: Any) -> None:
        if step == 6:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sampled(comfy, cached, kind, callback=interrupt)
    assert torch.equal(sampled(comfy, plain, kind), full)
    assert torch.equal(sampled(comfy, cached, kind), expected)


@KINDS
def test_patches_of_a_lora_before_and_after_the_node(comfy: Any, kind: str) -> None:
    plain, cached = patcher_of(comfy, kind)
    without = sampled(comfy, cached, kind)
    weight = f"diffusion_model.{PATCHED[kind]}.weight"
    change = {weight: ("diff", (3 * torch.ones_like(plain.model.state_dict()[weight]),))}
    before = plain.clone()
    before.add_patches(change)
    after = cached.clone()
    after.add_patches(change)
    full = sampled(comfy, before, kind)
    pictures = [sampled(comfy, each, kind) for each in (with_node(before), after)]
    assert torch.equal(*pictures)
    assert distance(pictures[0], full) < distance(without, full)
    assert torch.equal(sampled(comfy, cached, kind), without)


@KINDS
def test_sigmas_that_are_split_over_two_samplers(comfy: Any, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    plain, cached = patcher_of(comfy, kind, full_steps=5)
    sigmas = comfy.samplers.calculate_sigmas(plain.get_model_object("model_sampling"), "simple", STEPS)
    pictures = []
    for patcher in (plain, cached):
        half = sampled(comfy, patcher, kind, sigmas=sigmas[:11])
        pictures.append(sampled(comfy, patcher, kind, sigmas=sigmas[10:], start=half))
    assert [text.count("5 of 10 steps full") for text in texts(caplog)] == [1, 1]
    assert 0 < distance(pictures[1], pictures[0]) < 0.2


def test_samplers_call_the_model_once_in_a_step_or_turn_the_node_off(
    comfy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Every sampler of ComfyUI: the node is on for those that call the model once at each sigma, and for no other."""
    plain, cached = patcher_of(comfy, "flux", full_steps=4)
    sigmas = comfy.samplers.calculate_sigmas(plain.get_model_object("model_sampling"), "simple", 10)
    times: list[float] = []
    forward = plain.model.diffusion_model.forward

    def timed(x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        times.append(float(timestep[0]))
        return forward(x, timestep, *args, **kwargs)

    once, on = set(), set()
    for name in comfy.samplers.SAMPLER_NAMES:
        caplog.clear()
        plain.model.diffusion_model.forward = timed
        times.clear()
        try:
            full = sampled(comfy, plain, "flux", name, sigmas=sigmas)
        finally:
            del plain.model.diffusion_model.forward
        if times == pytest.approx(sigmas[:-1].tolist(), abs=0.01):  # some begin a little below sigma 1
            once.add(name)
        near = sampled(comfy, cached, "flux", name, sigmas=sigmas)
        assert near.isfinite().all()
        if "is off" in texts(caplog)[-1]:
            assert torch.equal(near, full)
        else:
            on.add(name)
            assert "4 of 10 steps full" in texts(caplog)[-1], name
    assert (once - on, on - once) == (set(), set())


def test_names_are_those_of_comfyui(comfy: Any) -> None:
    from comfy.k_diffusion import sampling
    from comfy.patcher_extension import WrappersMP
    from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

    assert COMPILE_KEY == COMPILED
    assert {*CORRECTED} <= {*dir(sampling)}
    assert (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE, WrappersMP.APPLY_MODEL) == (
        "outer_sample", "predict_noise", "apply_model",
    )  # fmt: skip


def test_a_compiled_model_turns_the_node_off(comfy: Any, caplog: pytest.LogCaptureFixture) -> None:
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    _, cached = patcher_of(comfy, "flux")
    set_torch_compile_wrapper(cached, backend="eager")
    sampled(comfy, cached, "flux")
    assert "relcache is off: the model is compiled by TorchCompileModel" in texts(caplog)[-1]

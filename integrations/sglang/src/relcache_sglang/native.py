"""SGLang's own models: FLUX.1, Qwen-Image and Wan, whose run of blocks is one unit.

Their attention and feed-forward are fused with what comes after them, so that modules inside a block cannot be skipped
one by one. Blocks can: each receives the features that the block before it returned.
"""

from __future__ import annotations

from typing import Any

import torch

import relcache
from relcache.models.runs import RUNS
from relcache_sglang import VARIABLE, chosen_method, log, log_request, refuse_second_cache

PER_REQUEST = ("enable_teacache", "enable_spectrum")  # SGLang's own caches, which a request may ask for


class Pipeline:
    """The transformers of a denoising stage by name, as relcache takes those of a pipeline."""

    def __init__(self, components: dict[str, Any]):
        self.components = components
        vars(self).update(components)


def request_begins(result: Any, stage: Any, num_inference_steps: Any, batch: Any) -> None:
    """Begin a request, and enable relcache on the transformers of a denoising stage before the first one."""
    refuse_second_cache(stage)
    asked = [name for name in PER_REQUEST if getattr(batch, name, False)]
    if asked:
        raise RuntimeError(f"a request asks for {asked[0]}, and {VARIABLE} is set: two caches would skip the same work")
    if stage.server_args.enable_breakable_cuda_graph:
        raise RuntimeError(
            f"{VARIABLE} is set, but CUDA graphs that are captured once cannot skip work: start SGLang with "
            "--enable-breakable-cuda-graph false, or with --backend diffusers"
        )
    models = {name: model for name in ("transformer", "transformer_2") if (model := getattr(stage, name, None))}
    for model in models.values():
        model.enable_teacache = False  # true from the start, although only a request turns TeaCache on
    handle = getattr(stage, "relcache_handle", None)
    if handle is None or not handle.enabled:
        handle = stage.relcache_handle = _enabled(stage, models)
    steps = sum(num_inference_steps) if isinstance(num_inference_steps, tuple) else num_inference_steps
    handle.begin(steps)


def request_is_done(result: Any, stage: Any, *args: Any, **kwargs: Any) -> None:
    """Log the full steps of the request that has just ended."""
    log_request(getattr(stage, "relcache_handle", None))


def _enabled(stage: Any, models: dict[str, Any]) -> relcache.Handle:
    names = {type(model).__name__ for model in models.values()}
    if len(names) != 1 or not names <= RUNS.keys():
        raise RuntimeError(
            f"relcache knows SGLang's own {', '.join(RUNS)}, not {', '.join(sorted(names))}: start SGLang with "
            "--backend diffusers, which runs every model that relcache knows"
        )
    for model in models.values():
        if hasattr(model, "_chains_ffn_residuals"):
            model._chains_ffn_residuals = lambda: False  # Wan's blocks would return more than their features
    stage.relcache_pipeline = Pipeline(models)  # relcache refers to it weakly
    handle = relcache.enable(
        stage.relcache_pipeline,
        chosen_method(),
        spec=RUNS[names.pop()],
        granularity="module",  # the spec's own unit, which is the run of blocks
        scheduler=stage.scheduler,
        group=_groups(),
    )
    log.info("enabled: %s", handle)
    return handle


def _groups() -> dict[str, Any]:
    """Return the groups of processes that must take the same full steps."""
    if not torch.distributed.is_initialized():
        return {}
    from sglang.multimodal_gen.runtime.distributed import parallel_state

    found = {
        "tokens": (parallel_state.get_sp_world_size, parallel_state.get_sp_group),
        "guidance": (parallel_state.get_classifier_free_guidance_world_size, parallel_state.get_cfg_group),
        "weights": (parallel_state.get_tp_world_size, parallel_state.get_tp_group),
    }
    return {shared: group().device_group for shared, (size, group) in found.items() if size() > 1}

"""The cache backend: enables relcache on a pipeline's transformers, and begins each generation anew."""

from __future__ import annotations

from typing import Any

import torch
from vllm_omni.diffusion.cache.base import CacheBackend
from vllm_omni.diffusion.data import DiffusionCacheConfig

import relcache
from relcache.models.runs import RUNS
from relcache_vllm_omni import NAME

MISSING = "PPMissingLayer"  # a block that another process of a pipeline-parallel group has


class Pipeline:
    """A pipeline of vLLM-Omni as relcache sees one: transformers by name, and the scheduler of the moment."""

    def __init__(self, pipeline: Any):
        names = [name for name in ("transformer", "transformer_2") if getattr(pipeline, name, None) is not None]
        self._pipeline = pipeline
        self.components = {name: getattr(pipeline, name) for name in names}
        vars(self).update(self.components)

    @property
    def scheduler(self) -> Any:
        """The scheduler, which Wan's pipeline may replace at each request."""
        return getattr(self._pipeline, "scheduler", None)


class RelcacheBackend(CacheBackend):
    """Lets the transformers of a pipeline skip work.

    `cache_config` has a method as relcache's command line takes it: `{"method": "auto:full_steps=14"}`, which is the
    default.
    """

    def __init__(self, config: Any):
        super().__init__(DiffusionCacheConfig.from_dict(config) if isinstance(config, dict) else config)
        self.method = getattr(self.config, "method", "auto:full_steps=14")
        self._pipeline: Pipeline | None = None
        self._handle: Any = None

    def enable(self, pipeline: Any) -> None:
        """Enable relcache on the transformers of `pipeline`.

        Raises:
            ValueError: relcache has no spec for them, or the method is unknown.
        """
        self._pipeline = Pipeline(pipeline)
        models = self._pipeline.components
        known = {kind.__name__ for model in models.values() for kind in type(model).__mro__} & RUNS.keys()
        if len(known) != 1:
            kinds = sorted({type(model).__name__ for model in models.values()})
            raise ValueError(
                f"the cache backend {NAME!r} knows {', '.join(RUNS)}, and {type(pipeline).__name__} has "
                f"{', '.join(kinds) or 'no transformer'}: choose another cache_backend"
            )
        if any(type(module).__name__ == MISSING for model in models.values() for module in model.modules()):
            raise ValueError(
                f"the cache backend {NAME!r} needs all blocks in one process: turn pipeline parallelism off"
            )
        self._handle = relcache.enable(
            self._pipeline,
            self.method,
            spec=RUNS[known.pop()],
            granularity="module",  # the spec's own unit, which is the run of blocks
            scheduler=None if "Wan" in type(pipeline).__name__ else self._pipeline.scheduler,
            group=_groups(),
        )
        self.enabled = True

    def is_enabled(self) -> bool:
        """Return whether the backend is enabled; vLLM-Omni asks before each generation, even without its steps."""
        if self.enabled:
            self._handle.begin()
        return self.enabled

    def refresh(self, pipeline: Any, num_inference_steps: int, verbose: bool = True) -> None:
        """Begin a new generation of `num_inference_steps` steps."""
        self._handle.begin(num_inference_steps)

    def report(self) -> Any:
        """Return relcache's report of the last generation."""
        return self._handle.report()

    @property
    def full_steps(self) -> list[int]:
        """The last generation's full steps, from 0."""
        return self._handle.full_steps


def _groups() -> dict[str, Any]:
    """Return the groups of processes that must take the same full steps."""
    if not torch.distributed.is_initialized():
        return {}
    from vllm.distributed import parallel_state as vllm_state
    from vllm_omni.diffusion.distributed import parallel_state

    found = {
        "tokens": (parallel_state.get_sequence_parallel_world_size, parallel_state.get_sp_group),
        "guidance": (parallel_state.get_classifier_free_guidance_world_size, parallel_state.get_cfg_group),
        "weights": (vllm_state.get_tensor_model_parallel_world_size, vllm_state.get_tp_group),
    }
    return {shared: group().device_group for shared, (size, group) in found.items() if size() > 1}

"""SGLang's diffusers backend, which runs an ordinary pipeline of diffusers."""

from __future__ import annotations

from typing import Any

import relcache
from relcache_sglang import chosen_method, log, log_request, refuse_second_cache


def pipeline_is_loaded(result: Any, pipeline: Any, *args: Any) -> None:
    """Enable relcache on the pipeline of diffusers that `_apply_cache_dit` returned, before it is compiled."""
    refuse_second_cache(pipeline)
    result.relcache_handle = relcache.enable(result, chosen_method())
    log.info("enabled: %s", result.relcache_handle)


def request_is_done(result: Any, stage: Any, *args: Any, **kwargs: Any) -> None:
    """Log the full steps of the request that has just ended."""
    log_request(getattr(getattr(stage, "diffusers_pipe", None), "relcache_handle", None))

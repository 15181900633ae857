"""relcache as a plugin of SGLang-Diffusion: SGLang calls `register` in its launcher and in each worker.

`RELCACHE_METHOD` holds the method as relcache's command line takes it: "auto:full_steps=14", "preset:name=my.json".
Without it the plugin does nothing.
"""

from __future__ import annotations

import logging
import os
from typing import Any

VARIABLE = "RELCACHE_METHOD"
PIPELINES = "sglang.multimodal_gen.runtime.pipelines.diffusers_pipeline."
STAGES = "sglang.multimodal_gen.runtime.pipelines_core.stages.denoising."
PIPELINE_IS_LOADED = PIPELINES + "DiffusersPipeline._apply_cache_dit"  # and not compiled yet
REQUEST_IS_DONE = PIPELINES + "DiffusersExecutionStage.forward"
NATIVE_REQUEST_BEGINS = STAGES + "DenoisingStage._maybe_enable_cache_dit"  # its weights are loaded
NATIVE_REQUEST_IS_DONE = STAGES + "DenoisingStage._finalize_denoising_loop"

log = logging.getLogger("relcache")


def register() -> None:
    """Let SGLang call relcache where a pipeline is loaded and where a request begins and ends."""
    if not os.environ.get(VARIABLE):
        log.info("relcache does nothing: %s is not set; 'auto:full_steps=14' is a good beginning", VARIABLE)
        return
    from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry, HookType

    from relcache_sglang import diffusers_backend, native

    chosen_method()  # a typing error is worth an error before the weights are loaded
    HookRegistry.register(PIPELINE_IS_LOADED, diffusers_backend.pipeline_is_loaded, HookType.AFTER)
    HookRegistry.register(REQUEST_IS_DONE, diffusers_backend.request_is_done, HookType.AFTER)
    HookRegistry.register(NATIVE_REQUEST_BEGINS, native.request_begins, HookType.AFTER)
    HookRegistry.register(NATIVE_REQUEST_IS_DONE, native.request_is_done, HookType.AFTER)


def chosen_method() -> Any:
    """Return the method that the environment names.

    Raises:
        ValueError: it names none, or an option is unknown.
    """
    from relcache.methods import method_from_text

    try:
        return method_from_text(os.environ[VARIABLE])
    except ValueError as error:
        raise ValueError(f"{VARIABLE}={os.environ[VARIABLE]!r}: {error}") from error


def refuse_second_cache(holder: Any) -> None:
    """Raise RuntimeError if cache-dit is active on a pipeline or stage of SGLang."""
    if getattr(holder, "_cache_dit_enabled", False):
        raise RuntimeError(
            f"cache-dit is enabled, and {VARIABLE} is set: two caches would skip each other's work. Unset one of them"
        )


def log_request(handle: Any) -> None:
    """Log the full steps of a request that has ended, and its notes: SGLang silences warnings while a pipeline runs."""
    if handle is not None:
        log.info("full steps %s%s", handle.full_steps, "".join(f"; {note}" for note in handle.notes))

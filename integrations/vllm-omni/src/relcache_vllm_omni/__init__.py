"""relcache as a cache backend of vLLM-Omni: vLLM-Omni calls `register` in each of its processes.

vLLM-Omni has no registry of backends. So `register` replaces the function that finds a backend by its name, and stops
with an error if that function, or one that the backend needs, has moved.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

NAME = "relcache"
SELECTOR = "vllm_omni.diffusion.cache.selector"
RUNNER = "vllm_omni.diffusion.worker.diffusion_model_runner"  # it binds the function by name
FUNCTION = "get_cache_backend"


def register() -> None:
    """Make "relcache" the name of a cache backend.

    Raises:
        RuntimeError: this version of vLLM-Omni finds its backends in another way.
    """
    selector = importlib.import_module(SELECTOR)
    original = getattr(selector, FUNCTION, None)
    if not callable(original) or list(inspect.signature(original).parameters) != ["cache_backend", "cache_config"]:
        raise RuntimeError(
            f"relcache does not fit this vLLM-Omni: {SELECTOR}.{FUNCTION}(cache_backend, cache_config) has changed. "
            "Install a relcache-vllm-omni for your version, or unset VLLM_PLUGINS' relcache"
        )
    for module in (selector, sys.modules.get(RUNNER)):
        if isinstance(module, ModuleType) and getattr(module, FUNCTION, None) is original:
            setattr(module, FUNCTION, _finds_relcache(original))


def _finds_relcache(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `original`, changed to know one more name."""

    def get_cache_backend(cache_backend: str | None, cache_config: Any) -> Any:
        if cache_backend != NAME:
            return original(cache_backend, cache_config)
        from relcache_vllm_omni.backend import RelcacheBackend

        return RelcacheBackend(cache_config)

    return get_cache_backend

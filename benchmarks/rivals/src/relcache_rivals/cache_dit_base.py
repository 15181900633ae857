"""The common part of the caches of cache-dit: enabling, the calibrators, and the supported models."""

from __future__ import annotations

import importlib
import logging
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from relcache.bench.rivals.base import WARMUP, Options, Rival, as_it_was, lists_of_blocks, only_transformer


@dataclass(frozen=True)
class CacheDit(Rival):
    """A cache of cache-dit.

    Attributes:
        calibrator: "TaylorSeer", "FoCa" or "DMD"; "" reuses the skipped blocks' residual.
        order: TaylorSeer's order.
    """

    calibrator: str = ""
    order: int | None = None
    group: ClassVar[str] = "cache-dit"
    warmup: ClassVar[int] = WARMUP

    @abstractmethod
    def config(self, package: Any, options: Options, steps: int) -> Any:
        """Return the package's config of a run of `steps` steps."""

    @contextmanager
    def enabled(self, pipeline_or_model: Any, options: Options, steps: int) -> Iterator[None]:
        package, model = installed(), only_transformer(pipeline_or_model)
        calibrator = None
        if self.calibrator:
            order = {} if self.order is None else {"taylorseer_order": self.order}
            calibrator = getattr(package, f"{self.calibrator}CalibratorConfig")(**order)
        with _silence(), as_it_was(model):
            package.enable_cache(model, cache_config=self.config(package, options, steps), calibrator_config=calibrator)
            try:
                yield
            finally:
                package.disable_cache(model)

    def unfit(self, pipeline_or_model: Any) -> str:
        model = only_transformer(pipeline_or_model)
        try:
            package = installed()
        except ValueError as error:
            return str(error)
        if not package.BlockAdapterRegister.is_supported(model):
            return f"cache-dit has no adapter for {type(model).__name__}"
        *_, (name, last) = lists_of_blocks(model).items()
        if len(last) < 2:
            return f"cache-dit skips the blocks after the first: it needs 2 or more of {name}"
        return ""


def installed() -> Any:
    """Import cache-dit; raise ValueError if it is not installed."""
    try:
        return importlib.import_module("cache_dit")
    except ImportError as error:
        raise ValueError(f'it needs cache-dit ({error}): pip install "relcache[peers]"') from error


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the lines that cache-dit's loggers, which share their handlers, write on enabling and disabling."""
    handlers = [(handler, handler.level) for handler in logging.getLogger("CACHE_DIT").handlers]
    for handler, _ in handlers:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler, level in handlers:
            handler.setLevel(level)

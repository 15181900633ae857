"""The handle of a pipeline or transformer with caching: its method, requests and report, and the size of its cache."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from relcache.checks import bytes_from, check_whole
from relcache.memory.choice import Call, Choice
from relcache.method import Method
from relcache.methods import chosen_method, method_to_text
from relcache.models import Size
from relcache.models.coarse import Granularity
from relcache.presets import Preset
from relcache.session.caller import Named
from relcache.session.components import Pixels
from relcache.session.report import Report
from relcache.session.session import Session

KEPT = ("granularity", "cache_dtype", "offload", "finer", "memory_limit")  # by requests with a method of their own


class Handle:
    """Caching enabled on a pipeline or transformer. As a context manager it disables caching at the end."""

    def __init__(self, session: Session, pixels: Pixels | None = None):
        self._session, self._pixels = session, pixels

    @property
    def enabled(self) -> bool:
        """Whether this handle still acts on its model."""
        return self._session.attached and any(host.model() is not None for host in self._session.hosts)

    @property
    def method(self) -> str:
        """The method as text, which `relcache.enable` accepts."""
        return self._session.method.name

    @property
    def granularity(self) -> Granularity:
        """The kind of units: "module", "block" or "stack". With a memory limit, as in the last request."""
        return self._session.way.granularity

    @property
    def units(self) -> list[str]:
        """The names of the units, in the order of computation.

        Modules that are skipped together form one unit: `single_transformer_blocks.0.proj_mlp+attn+proj_out`. With a
        memory limit, the units are those of the last request.
        """
        return list(self._session.unit_names)

    def report(self) -> Report:
        """Return the report of the last request, even after `disable`."""
        return self._session.report()

    def summary(self) -> str:
        """Return the last request in a line: full steps, seconds, speed, corrections. This counts no operations."""
        return self._session.report(counts=False).summary()

    @property
    def full_steps(self) -> list[int]:
        """The last request's full steps, counted from 0. Unlike `report`, this counts no operations."""
        return list(self._session.requests.last.full_steps)

    @property
    def corrections(self) -> list[tuple[int, float]]:
        """The full steps that ended corrected gaps, each with the mean correction relative to the sample."""
        return self._session.requests.last.correction_sizes()

    @property
    def notes(self) -> list[str]:
        """The notes on the last request, as in its report. Unlike `report`, this counts no operations."""
        return self._session.notes()

    def begin(self, num_inference_steps: int | None = None) -> None:
        """Begin a new request: the calls of this thread that follow belong to it, until the next `begin`.

        It is for servers that know where a generation begins, and whose pipelines relcache does not see. The number of
        steps counts if no scheduler shows it.
        """
        self._session.reset()
        self._session.requests.begin(num_inference_steps)

    def states(self) -> list[tuple[str, str, Any]]:
        """Return the forecaster's states in the last request, each with its branch and unit.

        A unit with several outputs, such as joint attention, has a state for each; the second is named `UNIT[1]`.
        Features that are neither packed nor offloaded are not copied, and the next full step overwrites them.
        """
        return self._session.states()

    def reset(self) -> None:
        """Discard the last request; the next call begins a new one.

        Only a hand-written loop may need this, if it restarts without any sign of it: at a later timestep with the same
        conditioning tensors, for example.
        """
        self._session.reset()

    def request(
        self,
        method: Method | Preset | str | None = None,
        *,
        full_steps: int | None = None,
        speedup: float | None = None,
    ) -> Named:
        """Return a context for requests with a method or budget of their own, or for one of several loops.

        Requests of other threads go on with theirs. Granularity, storage, finer steps and memory limit stay those of
        the handle:

            with handle.request(full_steps=8):
                draft = pipe(prompt)

        Hand-written loops that take turns on one transformer need it, too. Pipelines and loops in threads do not.
        Enter it around each call of its loop:

            first, second = handle.request(), handle.request()
            for t in timesteps:
                with first:
                    a = step(model(a, t, prompt), a)
                with second:
                    b = step(model(b, t, other_prompt), b)

        Args:
            method: as in `relcache.enable`; by default the handle's, with the budget.
            full_steps, speedup: as in `relcache.enable`.

        Raises:
            TypeError, ValueError: as in `relcache.enable`; or the handle has a memory limit, or a preset is for other
                units, storage or finer steps.
            RuntimeError: the handle is disabled.
        """
        if method is None and full_steps is None and speedup is None:
            return Named(self._session.requests)
        mine = self._session.method
        own = chosen_method(mine if method is None else method, None, None, full_steps, speedup)
        kept = {
            name: getattr(mine, name) for name in ("granularity", "cache_dtype", "offload", "finer", "memory_limit")
        }
        if own.made_for is not None and any(getattr(own, name) != value for name, value in kept.items()):
            raise ValueError(f"{own.name} is for other units, storage or finer steps than this handle's: enable it")
        own = replace(own, **kept)
        own = replace(own, name=method_to_text(own))
        self._session.serve(own)
        return Named(self._session.requests, own)

    def branch(self, name: str) -> AbstractContextManager[None]:
        """Return a context that names the guidance branch of the calls in it, as the pipeline's `cache_context` does.

        Branches are told apart by their conditioning. Name them where several have the same conditioning tensors.
        """
        return self._session.requests.in_context(name)

    def free(self) -> None:
        """Drop the cached features, but keep the record. The next steps of a request in progress are full.

        Without `free`, features are kept until the next request begins, or with `free_at_end=True` until this one ends.
        """
        self._session.free()

    def estimate(
        self,
        height: int,
        *,
        width: int,
        frames: int = 1,
        batch: int | None = None,
        branches: int | None = None,
        text: int | None = None,
    ) -> int:
        """Return the size of the cache in bytes for a request of this size, on the device and the host together.

        Nothing is computed, and no memory is allocated.

        Args:
            height, width, frames: size of the pictures in pixels; for a bare transformer, size of the latents.
            batch: samples in one call of the transformer: twice the pictures if guidance doubles the batch. By default
                that of the last request, or 1 before the first.
            branches: guidance branches that are called one by one; by default those of the last request.
            text: tokens of text; by default as many as the family's pipeline passes.

        Raises:
            ValueError: a size is below 1, or the spec does not say how to call the model.
            RuntimeError: the model has been deleted.
        """
        session = self._session
        option = session.chooser.weigh(session.way, self._calls(height, width, frames, batch, branches, text))
        if option.problem:
            raise ValueError(f"a forward without values failed: {option.problem}")
        return option.cache_bytes

    def choose(
        self,
        height: int,
        *,
        width: int,
        frames: int = 1,
        memory_limit: int | str | None = None,
        batch: int | None = None,
        branches: int | None = None,
        text: int | None = None,
    ) -> Choice:
        """Return the choice for a memory limit and requests of this size, with the bytes of the cache. Changes nothing.

        A model on the meta device is treated as if it were on a GPU.

        Args:
            height, width, frames, batch, branches, text: as in `estimate`.
            memory_limit: as in `relcache.enable`; by default the handle's own.

        Raises:
            ValueError: there is no limit, or no way stays within it; or as in `estimate`.
        """
        limit = self._session.memory_limit if memory_limit is None else bytes_from(memory_limit)
        if limit is None:
            raise ValueError("choose() needs memory_limit=, here or in relcache.enable: '6GB', say")
        calls = self._calls(height, width, frames, batch, branches, text)
        return self._session.chooser.choose(limit, calls, self._session.is_movable)

    def _calls(
        self, height: int, width: int, frames: int, batch: int | None, branches: int | None, text: int | None
    ) -> list[Call]:
        last = self._session.requests.last
        batch = max(last.batch, 1) if batch is None else batch
        branches = max(len(last.branches), 1) if branches is None else branches
        sizes = {"height": height, "width": width, "frames": frames, "batch": batch, "branches": branches}
        for name, value in sizes.items():
            check_whole(name, value, 1)
        latents = self._pixels.latents(height, width, frames) if self._pixels else (height, width, frames)
        calls = []
        for host, spec in zip(self._session.hosts, self._session.specs, strict=True):
            size = Size(batch, *latents, spec.text if text is None else text)
            calls += branches * [Call(host, spec, size, spec.example(host.present_model(), size))]
        return calls

    def disable(self) -> None:
        """Restore the model's own forwards and drop the cache. A second call does nothing."""
        self._session.detach()

    def __enter__(self) -> Handle:
        if not self.enabled:
            raise RuntimeError(
                "this handle was disabled, or its model is gone: call relcache.enable(...) again, as in "
                "'with relcache.enable(pipe, method) as handle'"
            )
        return self

    def __exit__(self, *error: object) -> None:
        self.disable()

    def __repr__(self) -> str:
        state = "enabled" if self.enabled else "disabled"
        return f"<relcache {self.method} on {self._session.model_name}, {len(self.units)} units, {state}>"

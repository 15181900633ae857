"""Random sequences of everything that users do, against a fresh model: each picture is that of a fresh pipeline.

The suite runs a fixed number of sequences. `pytest tests/session/test_state_machine.py --sequences 10000` draws more.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from tiny import BrokenOff, DiTWithContext, alphas_for, noise_for, timesteps_for, tiny_dit
from torch import Tensor

import relcache
from relcache import FORA, RCS, RFC, RFE, Interval, Method, Newton, Plan, Replay, Taylor, TaylorSeer

METHODS = [
    FORA(3),
    FORA(2, warmup=1),
    TaylorSeer(1, interval=3),
    TaylorSeer(2, interval=4),
    RFE(1, interval=3),
    RFE(2, interval=3),
    RFC(1, threshold=0.5),
    RFC(2, threshold=0.8),
    RCS(1, threshold=0.6),
    Method(Newton(2), Plan([0, 1, 3, 6])),
    Method(Taylor(1), Interval(3), corrector=Replay()),
    Method(Taylor(2, reuse_first=True, damping=0.5), Plan([0, 2, 5]), corrector=Replay(2)),
]


class Scheduler:
    """DDIM by hand, with what relcache looks at in a scheduler of diffusers."""

    def __init__(self) -> None:
        self.timesteps = torch.zeros(0)
        self.step_index: int | None = None

    def set_timesteps(self, steps: int) -> None:
        self.timesteps, self.step_index = timesteps_for(steps), None
        self._alphas = alphas_for(steps)

    def step(self, model_output: Tensor, place: int, sample: Tensor) -> tuple[Tensor]:
        alpha, alpha_next = self._alphas[place]
        self.step_index = place + 1
        clean = (sample - (1 - alpha) ** 0.5 * model_output) / alpha**0.5
        return (alpha_next**0.5 * clean + (1 - alpha_next) ** 0.5 * model_output,)


class Asked(NamedTuple):
    """A request: `start` leaves out the first steps, `break_at` breaks off before a step."""

    steps: int
    seed: int
    labels: tuple[int, ...]
    size: int
    start: int = 0
    guided: bool = False
    context: bool = False

    def sample(
        self, model: Any, scheduler: Scheduler, between: Callable[[int], None] = lambda step: None, fresh: bool = False
    ) -> Tensor:  # fmt: skip
        """The picture."""
        sample = noise_for([self.seed + row for row in range(len(self.labels))], size=self.size)
        null = torch.full((len(self.labels),), 1000)
        with torch.no_grad():
            for place in range(self.start, self.steps):
                between(place)
                time = scheduler.timesteps[place]
                time = time.clone() if fresh else time
                outs = []
                for name, labels in (("cond", torch.tensor(self.labels)), ("uncond", null))[: 1 + self.guided]:
                    with model.cache_context(name) if self.context else nullcontext():
                        call = {"timestep": time.expand(len(self.labels)), "class_labels": labels}
                        outs.append(model(sample, **call).sample)
                noise = outs[0] if not self.guided else outs[1] + 1.5 * (outs[0] - outs[1])
                (sample,) = scheduler.step(noise, place, sample)
        return sample


class Pipeline:
    """A pipeline as relcache sees one."""

    def __init__(self, transformer: Any) -> None:
        self.transformer, self.scheduler = transformer, Scheduler()

    def __call__(self, asked: Asked, between: Callable[[int], None] = lambda step: None) -> Tensor:
        self.scheduler.set_timesteps(asked.steps)
        return asked.sample(self.transformer, self.scheduler, between)


def bare(
    model: Any, asked: Asked, between: Callable[[int], None] = lambda step: None, fresh_times: bool = True
) -> Tensor:
    """The same by hand; relcache knows of no scheduler."""
    scheduler = Scheduler()
    scheduler.set_timesteps(asked.steps)
    return asked.sample(model, scheduler, between, fresh_times)


def new_model() -> Any:
    return tiny_dit(kind=DiTWithContext)


PLAIN = new_model()


@lru_cache(maxsize=4096)
def fresh(number: int | None, granularity: str, asked: Asked, by_hand: str = "") -> tuple[Tensor, list[int]]:
    """Picture and full steps of a model that has run nothing before; `number` is that of the method, None without.

    `by_hand` is "table" or "new" where a loop by hand takes its timesteps from a table, or makes them anew; "named"
    where it has a name.
    """
    pipe = Pipeline(PLAIN)
    if number is None:
        return pipe(asked), []
    with relcache.enable(pipe.transformer, METHODS[number], granularity=granularity) as handle:  # type: ignore[arg-type]
        if not by_hand:
            return pipe(asked), handle.full_steps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # with few steps the sample moves far
            name = handle.request() if by_hand == "named" else nullcontext()
            with name:
                return bare(PLAIN, asked, fresh_times=by_hand != "table"), handle.full_steps


ASKED = st.builds(
    Asked,
    steps=st.sampled_from([1, 2, 5, 8]),
    seed=st.just(0),
    labels=st.sampled_from([(3,), (3, 5), (7, 3)]),
    size=st.sampled_from([8, 8, 12]),
    start=st.sampled_from([0, 0, 0, 3]),
    guided=st.booleans(),
    context=st.booleans(),
).filter(lambda asked: asked.start < asked.steps)
WHERE = st.sampled_from(["first", "second"])


class Sequences(RuleBasedStateMachine):
    """Two pipelines and loops by hand on one transformer."""

    @initialize()
    def build(self) -> None:
        self.model = new_model()
        self.pipes = {"first": Pipeline(self.model), "second": Pipeline(self.model)}
        self.handle: relcache.Handle | None = None
        self.number: int | None = None
        self.granularity = "module"
        self.requests = 0

    def next(self, asked: Asked) -> Asked:
        """With another noise than the request before: loops by hand are told apart by that."""
        self.requests += 1
        return asked._replace(seed=20 * (self.requests % 3))

    @rule(
        number=st.integers(0, len(METHODS) - 1), granularity=st.sampled_from(["module", "block", "stack"]),
        on=st.sampled_from(["first", "second", "transformer"]),
    )  # fmt: skip
    def enable(self, number: int, granularity: Any, on: str) -> None:
        target = self.model if on == "transformer" else self.pipes[on]
        self.handle = relcache.enable(target, METHODS[number], granularity=granularity)
        self.number, self.granularity = number, granularity

    @precondition(lambda self: self.handle is not None)
    @rule()
    def disable(self) -> None:
        assert self.handle is not None
        self.handle.disable()
        self.handle = self.number = None

    @precondition(lambda self: self.handle is not None)
    @rule(reset=st.booleans())
    def free_or_reset(self, reset: bool) -> None:
        assert self.handle is not None
        _ = self.handle.reset() if reset else self.handle.free()

    @rule(where=WHERE, asked=ASKED)
    def request(self, where: str, asked: Asked) -> None:
        asked = self.next(asked)
        self.check(self.pipes[where](asked), asked)

    @rule(where=WHERE, asked=ASKED, at=st.integers(0, 7))
    def broken_off(self, where: str, asked: Asked, at: int) -> None:
        with suppress(BrokenOff):
            self.pipes[where](self.next(asked), breaking(at))

    @rule(
        asked=ASKED, at=st.integers(1, 3), error=st.sampled_from([BrokenOff, KeyboardInterrupt]), by_hand=st.booleans()
    )
    def broken_inside(self, asked: Asked, at: int, error: type[BaseException], by_hand: bool) -> None:
        asked, calls = self.next(asked), []

        def stumble(*call: Any) -> None:
            calls.append(1)
            if len(calls) == at:
                raise error("inside a module")

        hook = self.model.transformer_blocks[1].ff.register_forward_pre_hook(stumble)
        with suppress(error), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _ = bare(self.model, asked) if by_hand else self.pipes["first"](asked)
        hook.remove()

    @rule(outer=ASKED, inner=ASKED, at=st.integers(0, 7), breaks=st.booleans())
    def nested(self, outer: Asked, inner: Asked, at: int, breaks: bool) -> None:
        outer, inner = self.next(outer), self.next(inner)

        def between(step: int) -> None:
            if step == at:
                with suppress(BrokenOff):
                    picture = self.pipes["second"](inner, breaking(2) if breaks else lambda step: None)
                    self.check(picture, inner)

        self.check(self.pipes["first"](outer, between), outer)

    @rule(first=ASKED, second=ASKED)
    def in_threads(self, first: Asked, second: Asked) -> None:
        first, second, pictures = self.next(first), self.next(second), {}

        def work(where: str, asked: Asked) -> None:
            pictures[where] = self.pipes[where](asked)

        threads = [threading.Thread(target=work, args=pair) for pair in (("first", first), ("second", second))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for where, asked in (("first", first), ("second", second)):
            self.check(pictures[where], asked, report=False)

    @rule(asked=ASKED, fresh_times=st.booleans())
    def by_hand(self, asked: Asked, fresh_times: bool) -> None:
        asked = self.next(asked)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            picture = bare(self.model, asked, fresh_times=fresh_times)
        kind = "new" if fresh_times else "table"
        if told:  # nothing told it from the loop before: some or all of it was computed in full
            assert any("relcache:" in str(warning.message) for warning in told)
            expected = [fresh(number, self.granularity, asked, kind)[0] for number in (self.number, None)]
            assert any(torch.equal(picture, one) for one in expected)
        else:
            self.check(picture, asked, kind)

    @rule(asked=ASKED, at=st.integers(0, 7))
    def by_hand_broken_off(self, asked: Asked, at: int) -> None:
        with suppress(BrokenOff), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bare(self.model, self.next(asked), breaking(at))

    @precondition(lambda self: self.handle is not None)
    @rule(asked=ASKED)
    def by_hand_with_a_name(self, asked: Asked) -> None:
        assert self.handle is not None
        asked = self.next(asked)
        with self.handle.request(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.check(bare(self.model, asked), asked, "named")

    def check(self, picture: Tensor, asked: Asked, by_hand: str = "", report: bool = True) -> None:
        expected, full_steps = fresh(self.number, self.granularity, asked, by_hand)
        assert torch.equal(picture, expected), asked
        if self.handle is not None and report:
            assert self.handle.full_steps == full_steps


def breaking(at: int) -> Callable[[int], None]:
    def between(step: int) -> None:
        if step == at:
            raise BrokenOff("between two steps")

    return between


def test_sequences(request: pytest.FixtureRequest) -> None:
    number = request.config.getoption("--sequences")
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Sequences,
        settings=settings(
            max_examples=number or 40, stateful_step_count=12, deadline=None, derandomize=not number, database=None,
            suppress_health_check=checks, phases=[Phase.generate, Phase.shrink],
        ),
    )  # fmt: skip


def test_gaps_are_corrected_in_the_sequences() -> None:
    """What the sequences are about: the scheduler by hand is one whose updates are seen."""
    asked = Asked(8, 0, (3,), 8)
    model = new_model()
    made = []
    for corrector in (None, Replay()):
        with relcache.enable(Pipeline(model), Method(Taylor(1), Interval(3), corrector=corrector)) as handle:
            made.append(Pipeline(model)(asked))
            assert bool(handle.report().corrections) == (corrector is not None)
            assert handle.report().notes == []
    assert not torch.equal(*made)

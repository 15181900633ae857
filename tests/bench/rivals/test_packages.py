"""The packages' caches on the shipped models: full compute at no budget, less work at others, and no trace after."""

from __future__ import annotations

import sys
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.quality.metrics.pair import psnr
from relcache.bench.rivals.base import Rival, known_spec, only_transformer
from relcache.bench.rivals.registry import all_rivals
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.budgets import count_full_steps
from relcache.bench.sampling.pipelines import load_pipeline
from relcache.bench.sampling.stopwatch import timed
from relcache_rivals import attention_skips
from relcache_rivals.seacache import _unpacked

STEPS, SEEDS = 10, {"class": [0, 1], "text": [0], "video": [0]}
PACKAGES = ("diffusers", "cache-dit")
NOTHING_SKIPPED: dict[str, Any] = {"threshold": 0.0, "interval": 1, "skip_range": 1, "prune_threshold": 0.0}
LITTLE_AND_MUCH: dict[str, tuple[Any, Any]] = {
    "threshold": (0.1, 0.7), "interval": (2, 5), "skip_range": (2, 6), "prune_threshold": (0.2, 0.8), "policy": (0, 3),
}  # fmt: skip
UNFIT = {("dbprune", "class"): "TypeError"}


@dataclass
class Run:
    """The pictures of a run, its full calls, and the elements that all linear layers took."""

    images: Tensor
    full: list[bool]
    work: int


@dataclass
class Subject:
    """A shipped model, with its pictures of full compute."""

    task: str
    sampler: Sampler
    model: nn.Module
    taken: list[int] = field(default_factory=list)
    calibrated: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, rival: Rival | None = None, options: dict[str, Any] | None = None) -> Run:
        found = {} if rival is None or options is None else options | self.calibrate(rival)
        self.taken.clear()
        context = nullcontext() if rival is None else rival.enabled(self.sampler.pipeline, found, STEPS)
        with context, timed(self.model, known_spec(self.model)) as laps:
            seeds = SEEDS[self.task]
            images = self.sampler.call(seeds, SMALL[self.task].conditions(seeds))
        return Run(images, [full for *_, full in laps.calls], sum(self.taken))

    def calibrate(self, rival: Rival) -> dict[str, Any]:
        if rival.name not in self.calibrated:
            seeds = [seed + 100 for seed in SEEDS[self.task]]
            self.calibrated[rival.name] = rival.calibrate(self.sampler, seeds, SMALL[self.task].conditions(seeds))
        return self.calibrated[rival.name]


@pytest.fixture(scope="module", params=list(SMALL))
def subject(request: pytest.FixtureRequest) -> Subject:
    task = SMALL[request.param]
    pipeline = load_pipeline(task.model, device="cpu")
    sampler = Sampler(pipeline, STEPS, 2, {**task.options, "guidance_scale": task.guidance})
    found = Subject(request.param, sampler, only_transformer(pipeline))
    for module in found.model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, args, output: found.taken.append(args[0].numel()))
    found.run()  # the first run leaves a registry of diffusers' hooks in some models
    return found


@pytest.fixture(scope="module")
def everything(subject: Subject) -> Run:
    return subject.run()


def state(model: nn.Module) -> dict[str, tuple[list[str], list[str], list[int]]]:
    """Names of the attributes, of the submodules and of diffusers' hooks of every module, and its numbers of hooks."""
    return {
        name: (
            sorted(vars(module)),
            [*module._modules, *getattr(getattr(module, "_diffusers_hook", None), "hooks", ())],
            [len(module._forward_hooks), len(module._forward_pre_hooks)],
        )
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize(
    "rival", [r for r in all_rivals().values() if r.group in PACKAGES], ids=lambda rival: rival.name
)
def test_a_package_skips_work_and_leaves_no_trace(
    subject: Subject, everything: Run, rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(subject.model)
    reason = rival.unfit(subject.sampler.pipeline)
    assert state(subject.model) == before
    if (rival.name, subject.task) in UNFIT:
        assert UNFIT[rival.name, subject.task] in reason
        return
    assert not reason

    if rival.budget in NOTHING_SKIPPED:
        with monkeypatch.context() as patched:
            patched.setattr(attention_skips, "GUIDANCE_RANGE", 1)
            nothing_skipped = subject.run(rival, {rival.budget: NOTHING_SKIPPED[rival.budget]})
        torch.testing.assert_close(nothing_skipped.images, everything.images, atol=1e-5, rtol=0)
        assert all(nothing_skipped.full)
        assert nothing_skipped.work == everything.work

    little, much = (subject.run(rival, {rival.budget: value}) for value in LITTLE_AND_MUCH[rival.budget])
    assert len(little.full) == len(much.full) == STEPS
    assert little.full[: rival.warmup] == [True] * min(rival.warmup, STEPS)
    assert much.work < little.work <= everything.work
    ratios = [psnr(run.images, everything.images).mean().item() for run in (little, much)]
    assert 6 < ratios[1] < ratios[0] <= 100
    if rival.budget == "interval":
        value = LITTLE_AND_MUCH["interval"][1]
        assert sum(much.full) == count_full_steps(value, STEPS, rival.phase, rival.warmup)

    assert state(subject.model) == before
    assert torch.equal(subject.run().images, everything.images)


def test_an_error_within_leaves_no_trace(subject: Subject) -> None:
    before = state(subject.model)
    for rival in all_rivals().values():
        if rival.group in PACKAGES and (rival.name, subject.task) not in UNFIT:
            options = {rival.budget: LITTLE_AND_MUCH[rival.budget][0], **subject.calibrate(rival)}
            with suppress(InterruptedError), rival.enabled(subject.sampler.pipeline, options, STEPS):
                raise InterruptedError
            assert state(subject.model) == before, rival.name


def test_calibration_is_plain(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    subject.calibrated.clear()
    found = subject.calibrate(all_rivals()["magcache"])
    assert len(found["ratios"]) == STEPS
    assert all(type(ratio) is float for ratio in found["ratios"])
    assert found["ratios"][0] == 1
    assert not capsys.readouterr().out


def test_some_need_a_pipeline(subject: Subject) -> None:
    asking = [name for name, rival in all_rivals().items() if "a pipeline" in rival.unfit(subject.model)]
    assert {"seacache", "seacache-unlimited", "fastercache"} == {n for n in asking if all_rivals()[n].group in PACKAGES}


def test_fastercache_needs_guidance(subject: Subject) -> None:
    if subject.task == "class":
        rival, sampler = all_rivals()["fastercache"], replace(subject.sampler, options={"guidance_scale": 1.0})
        for seeds in ([0], [0, 1]):
            with (
                rival.enabled(sampler.pipeline, {"skip_range": 2}, STEPS),
                pytest.raises(ValueError, match="guidance scale"),
            ):
                sampler.call(seeds, SMALL["class"].conditions(seeds))


def test_the_latents_of_flux_are_unpacked_as_by_its_pipeline() -> None:
    latents = torch.arange(2 * 4 * 6 * 8.0).reshape(2, 24, 8)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    positions = torch.stack([torch.zeros(24), rows.flatten(), columns.flatten()], 1)
    expected = FluxPipeline._unpack_latents(latents, height=8 * 8, width=12 * 8, vae_scale_factor=8)
    assert torch.equal(_unpacked(latents, {"img_ids": positions})[:, :, 0], expected)


def test_without_cache_dit(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    for rival in all_rivals().values():
        if rival.group == "cache-dit":
            assert 'pip install "relcache[peers]"' in rival.unfit(subject.model)

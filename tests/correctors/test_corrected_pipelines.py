"""Gaps made good in pipelines: several at once, and those that step copies of their scheduler."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import requesting
import torch
from small_pipelines import ltx2
from test_whose_call import skyreels
from tiny import CopyingPipeline, run_pipeline, tiny_pipeline
from torch import Tensor

import relcache
from relcache import Replay


def test_pipelines_that_share_a_transformer_are_corrected_apart() -> None:
    """One inside the other's callback, with a scheduler of the same class: each as alone."""
    first = tiny_pipeline()
    second = type(first)(**{**first.components, "scheduler": copy.deepcopy(first.scheduler)})

    def run(pipe: Any, seed: int) -> Tensor:
        pipe.set_progress_bar_config(disable=True)
        made = pipe(
            class_labels=[seed], num_inference_steps=12, generator=torch.Generator().manual_seed(seed),
            guidance_scale=1.0, output_type="np",
        )  # fmt: skip
        return torch.as_tensor(made.images)

    with relcache.enable(first, full_steps=5) as handle:
        alone = [run(first, 1), run(second, 2)]
        assert handle.report().corrections
        step, inside = first.scheduler.step, []
        own = type(first.scheduler).step

        def nested(*args: Any, **kwargs: Any) -> Any:
            if len(inside) == 0:
                inside.append(run(second, 2))
            return step(*args, **kwargs)

        first.scheduler.step = nested
        assert torch.equal(run(first, 1), alone[0])
        assert torch.equal(inside[0], alone[1])
        del first.scheduler.step
    assert type(first.scheduler).step is own


def test_schedulers_that_are_copied_for_each_frame() -> None:
    """SkyReels-V2: each frame's own scheduler makes its updates, and each is corrected."""
    pipe, call = skyreels(13)
    made = []
    for corrector in ("none", Replay()):
        with relcache.enable(pipe, full_steps=4, corrector=corrector) as handle:
            made.append(requesting.run(pipe, call, steps=8))
            report = handle.report()
    assert report.notes == []
    full = report.full_steps
    assert [step for step, _ in report.corrections] == [b for a, b in pairwise(full) if b - a > 1]
    assert not torch.equal(*made)
    assert "step" not in vars(pipe.scheduler)
    with relcache.enable(pipe, full_steps=4) as handle:
        requesting.run(pipe, call, steps=8, ar_step=2, causal_block_size=2)
        assert any("beyond the budget" in note for note in handle.report().notes)


def test_a_pipeline_that_steps_a_copy_of_its_scheduler() -> None:
    """The copy's updates are corrected as the scheduler's own would be, once."""

    plain = tiny_pipeline()
    copying = CopyingPipeline(**plain.components)
    copying.set_progress_bar_config(disable=True)
    made = []
    for pipe in (plain, copying):
        with relcache.enable(pipe, full_steps=4) as handle:
            for _ in range(2):
                pictures = run_pipeline(pipe, [3, 5])
                assert handle.report().corrections
                assert handle.report().notes == []
        made.append(pictures)
    assert torch.equal(*made)
    assert "step" not in vars(plain.scheduler)


def test_copies_are_let_go_with_the_handle() -> None:
    """A scheduler that was copied while relcache was enabled is afterwards like any other."""
    first, second = tiny_pipeline(), tiny_pipeline()
    with relcache.enable(first, full_steps=4) as handle:
        run_pipeline(first, [3])
        copied = copy.deepcopy(first.scheduler)
        expected, again = copied.step, first.scheduler
        assert "step" in vars(copied)
    assert "step" not in vars(copied)
    assert "step" not in vars(again)
    assert expected.__name__ == "step"
    second.scheduler = copied
    for _ in range(2):  # by a first handle, and by one that takes over
        handle = relcache.enable(second, full_steps=4)
        run_pipeline(second, [3])
        assert handle.report().corrections
        assert handle.report().notes == []
        second.scheduler = copy.deepcopy(second.scheduler)
    handle.disable()
    assert "step" not in vars(second.scheduler)


def test_pictures_and_sound_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """LTX-2: one call of the transformer gives both, and a copy of the scheduler makes the updates of the sound.

    Held against Euler's sums: from the gap's first sample on, each output in it lies on the line between its ends.
    """
    pipe, call = ltx2()
    kind, made = type(pipe.scheduler), {}
    own = kind.step

    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        made.setdefault(id(self), []).append((model_output.clone(), sample.clone()))
        return own(self, model_output, timestep, sample, **options)

    monkeypatch.setattr(kind, "step", step)
    with relcache.enable(pipe, full_steps=4, corrector=Replay(theta=0.0)) as handle:
        pipe(**call, num_inference_steps=9, generator=torch.Generator().manual_seed(0))
        report = handle.report()
    assert report.notes == []
    streams = [updates for updates in made.values() if len(updates) == 9]
    assert [updates[0][1].shape for updates in streams] == [(1, 48, 8), (1, 5, 8)]
    sigmas = pipe.scheduler.sigmas
    for updates in streams:
        for start, end in pairwise(report.full_steps):
            expected = updates[start + 1][1]
            for place in range(start + 1, end):
                line = torch.lerp(updates[start][0], updates[end][0], (place - start) / (end - start))
                expected = expected + (sigmas[place + 1] - sigmas[place]) * line
            torch.testing.assert_close(updates[end][1], expected, rtol=1e-5, atol=1e-5)

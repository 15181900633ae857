"""What the corrections cost: time of a corrected run against the same run uncorrected, with the scheduler's updates.

    python benchmarks/correction_cost.py --out benchmarks/results/correction-cost.json

DiT-XL/2 and FLUX with a few of their blocks and random weights, 14 full steps of 50 at the stack, in turn in one
process: the ratio of each round, and its median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import diffusers
import torch

import relcache
from relcache.bench import files
from relcache.bench.stopwatch import keep_memory
from relcache.bench.subjects import Course, course_of

STEPS, FULL = 50, 14


def run(course: Course, corrector: Any) -> tuple[float, int]:
    """Seconds of a denoising loop, and how many gaps were corrected."""
    model, first = course.model, course.calls[0]
    name = course.spec.sample or "hidden_states"
    is_dit = type(model).__name__.startswith("DiT")
    scheduler = (
        diffusers.DDIMScheduler(clip_sample=False) if is_dit else diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    )
    scheduler.set_timesteps(STEPS)
    sample = first[name].clone()
    with relcache.enable(
        model, relcache.auto(FULL, corrector=corrector), scheduler=scheduler, num_inference_steps=STEPS
    ) as handle:
        began = time.perf_counter()
        for moment in scheduler.timesteps:
            given = moment.expand(len(sample)) if is_dit else moment.expand(len(sample)) / 1000
            with torch.no_grad():
                output = model(**{**first, name: sample, course.spec.timestep: given}, return_dict=False)[0]
            output = output[:, : sample.shape[1]] if is_dit else output
            sample = scheduler.step(output, moment, sample, return_dict=False)[0]
        seconds = time.perf_counter() - began
        return seconds, len(handle.report().corrections)


def main() -> None:
    """Time both models, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keep_memory()
    found: dict[str, Any] = {}
    for name, blocks, size in (("dit", [2], None), ("flux", [1, 1], "256")):
        course = course_of(name, "cpu", "float32", STEPS, blocks, size)
        run(course, None)
        ratios, corrected = [], 0
        for _ in range(options.rounds):
            plain, _ = run(course, None)
            seconds, corrected = run(course, relcache.Replay())
            ratios.append(seconds / plain)
        found[course.about] = {"ratios": ratios, "median": statistics.median(ratios), "gaps corrected": corrected}
        print(course.about, found[course.about])
        files.write_json(options.out, found)


if __name__ == "__main__":
    main()

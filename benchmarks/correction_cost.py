"""What the corrections cost, and how much faster the default is: times of whole loops, with the scheduler's updates.

    python benchmarks/correction_cost.py --out benchmarks/results/correction-cost.json
    python benchmarks/correction_cost.py --whole --device cuda --dtype bfloat16 --out benchmarks/results/gpu/correction-cost.json

The paper's models with random weights, 14 full steps of 50 at the stack. In turn in one process: full compute, the
default without corrections, the default. The ratio of each round and its median. On a CPU models have a few of their
blocks; `--whole` takes all of them, at the models' own sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from pathlib import Path
from typing import Any

import diffusers
import torch

import relcache
from relcache.bench import files
from relcache.bench.speed.stopwatch import Clock, keep_memory
from relcache.bench.speed.subjects import Course, course_of

STEPS, FULL = 50, 14
FEW = {"dit": ([2], None), "flux": ([1, 1], "256")}
WHOLE = {"dit": ([], None), "flux": ([], "1024"), "hunyuan": ([], None)}


@torch.no_grad()
def run(course: Course, method: relcache.Method | None) -> tuple[float, int]:
    """Seconds of a denoising loop, and how many gaps were corrected; with full compute where there is no method."""
    model, first, clock = course.model, course.calls[0], Clock(course.device)
    name = course.spec.sample or "hidden_states"
    kind = type(model).__name__
    is_dit = kind.startswith("DiT")
    scheduler = (
        diffusers.DDIMScheduler(clip_sample=False) if is_dit else diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    )
    scheduler.set_timesteps(STEPS)
    sample = first[name].clone()
    with contextlib.ExitStack() as stack:
        handle = None
        if method is not None:
            handle = relcache.enable(model, method, scheduler=scheduler, num_inference_steps=STEPS)
            stack.enter_context(handle)
        began = clock.now()
        for moment in scheduler.timesteps:
            given = moment.to(course.device).expand(len(sample))
            given = given / 1000 if kind.startswith("Flux") else given.to(first[course.spec.timestep].dtype)
            output = model(**{**first, name: sample, course.spec.timestep: given}, return_dict=False)[0]
            output = output[:, : sample.shape[1]] if is_dit else output
            sample = scheduler.step(output, moment, sample, return_dict=False)[0]
        seconds = clock.between(began, clock.now())
        return seconds, len(handle.report().corrections) if handle else 0


def main() -> None:
    """Time the models, and write what was found after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--whole", action="store_true", help="all blocks, at the models' own sizes")
    options = parser.parse_args()
    keep_memory()
    found: dict[str, Any] = {}
    for name, (blocks, size) in (WHOLE if options.whole else FEW).items():
        course = course_of(name, options.device, options.dtype, STEPS, blocks, size)
        plain, corrected = relcache.auto(FULL, corrector=None), relcache.auto(FULL)
        run(course, plain)
        rows, gaps = [], 0
        for _ in range(options.rounds):
            full, without = run(course, None)[0], run(course, plain)[0]
            seconds, gaps = run(course, corrected)
            rows.append({"full": full, "uncorrected": without, "corrected": seconds})
        ratios = [row["corrected"] / row["uncorrected"] for row in rows]
        speedups = [row["full"] / row["corrected"] for row in rows]
        found[course.about] = {
            "seconds": rows,
            "ratios": ratios,
            "median": statistics.median(ratios),
            "times faster than full compute": statistics.median(speedups),
            "gaps corrected": gaps,
        }
        print(course.about, found[course.about], flush=True)
        files.write_json(options.out, found)
        del course
        if options.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

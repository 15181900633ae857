"""Time the corrections and the default's speedup over whole loops, with the scheduler's updates.

    python benchmarks/correction_cost.py --out benchmarks/results/correction-cost.json
    python benchmarks/correction_cost.py --whole --device cuda --dtype bfloat16 \\
        --out benchmarks/results/gpu/correction-cost.json

The paper's models run with random weights and 14 full steps of 50 at the stack. One process runs full compute, the
default without corrections and the default in turn. The result has the ratio of each round and its median. By default
models have a few of their blocks; `--whole` takes all of them, at the models' own sizes.
"""

from __future__ import annotations

import contextlib
import statistics
from typing import Any

import diffusers
import torch
from shared import parser_for

import relcache
from relcache.bench import files
from relcache.bench.sampling.stopwatch import Clock, keep_memory
from relcache.bench.speed.subjects import Course, course_of

STEPS, FULL = 50, 14
FEW = {"dit": ([2], None), "flux": ([1, 1], "256")}
WHOLE = {"dit": ([], None), "flux": ([], "1024"), "hunyuan": ([], None)}


@torch.no_grad()
def run(course: Course, method: relcache.Method | None) -> tuple[float, int]:
    """Return the seconds of a denoising loop and the number of corrected gaps; without a method by full compute."""
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
            timestep = moment.to(course.device).expand(len(sample))
            flux = kind.startswith("Flux")
            timestep = timestep / 1000 if flux else timestep.to(first[course.spec.timestep].dtype)
            output = model(**{**first, name: sample, course.spec.timestep: timestep}, return_dict=False)[0]
            output = output[:, : sample.shape[1]] if is_dit else output
            sample = scheduler.step(output, moment, sample, return_dict=False)[0]
        seconds = clock.between(began, clock.now())
        return seconds, len(handle.report().corrections) if handle else 0


def main() -> None:
    """Time the models, and write the results after each."""
    parser = parser_for(__doc__, out_required=True)
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

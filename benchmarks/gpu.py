"""Check and time two features that need a GPU: offload to the host's memory between steps, and CUDA graphs.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

With `offload="cpu"` features travel on their own streams beside the work. The outputs must equal those of features
that stay, to the last bit, with less device memory. With `mode="reduce-overhead"` torch.compile replays CUDA graphs,
which overwrite the memory of the replay before. The outputs must equal those of the model compiled without them. Both
run on the paper's models at full width with random weights, in bfloat16. Times are medians of one run after a warm-up.
"""

from __future__ import annotations

import statistics
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from shared import parser_for
from torch import Tensor

import relcache
from relcache.bench import files
from relcache.bench.sampling.stopwatch import Clock
from relcache.bench.speed.subjects import Course, course_of, device_name

FEW = {"dit": [4], "flux": [1, 2]}
METHODS = {"taylorseer": relcache.TaylorSeer(2, interval=4), "rfc": relcache.RFC(2, threshold=0.5)}


@torch.no_grad()
def outputs_of(course: Course, enable: Callable[[], relcache.Handle]) -> dict[str, Any]:
    """Return the outputs of a second run, the milliseconds of its full and cached steps, and its peak memory."""
    clock, handle = Clock(course.device), enable()
    try:
        for _ in range(2):
            handle.reset()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before, outputs, moments = torch.cuda.memory_allocated(), [], []
            for call in course.calls:
                began = clock.now()
                output = course.model(**call, return_dict=False)[0]
                moments.append((began, clock.now()))
                outputs.append(output.clone())
        full, report = handle.full_steps, handle.report()
        peak = torch.cuda.max_memory_allocated() - before
    finally:
        handle.disable()
    each = [1e3 * clock.between(*moment) for moment in moments]
    return {
        "outputs": outputs,
        "full_steps": full,
        "full_ms": statistics.median(ms for step, ms in enumerate(each) if step in full),
        "cached_ms": statistics.median(ms for step, ms in enumerate(each) if step not in full),
        "peak_gb": peak / 1e9,
        "cache_gb": report.cache_bytes / 1e9,
        "device_gb": report.device_bytes / 1e9,
        "notes": report.notes,
    }


def distance(outputs: list[Tensor], others: list[Tensor]) -> float:
    """Return the greatest relative difference of a step's outputs."""
    pairs = zip(outputs, others, strict=True)
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)


def shown(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "outputs"}


def offloading(name: str, method: str, granularity: Any, steps: int) -> dict[str, Any]:
    """Compare a run with features on the device and one with them in the host's memory."""
    course = course_of(name, "cuda", "bfloat16", steps)
    chosen = replace(METHODS[method], granularity=granularity)
    stay = outputs_of(course, lambda: relcache.enable(course.model, chosen))
    go = outputs_of(course, lambda: relcache.enable(course.model, chosen, offload="cpu"))
    equal = all(map(torch.equal, stay["outputs"], go["outputs"]))
    return {"about": course.about, "on the device": shown(stay), "offloaded": shown(go), "bit-equal": equal}


def graphs(name: str, method: str, granularity: Any, steps: int) -> dict[str, Any]:
    """Compare a run of a compiled model and one with CUDA graphs."""
    chosen = replace(METHODS[method], granularity=granularity)
    results: dict[str, Any] = {}
    outputs: list[Tensor] = []
    for mode in ("default", "reduce-overhead"):
        torch._dynamo.reset()
        torch.manual_seed(0)  # the loop's inputs
        course = course_of(name, "cuda", "bfloat16", steps, blocks=FEW[name])
        course.model.compile(mode=mode)
        result = outputs_of(course, lambda model=course.model: relcache.enable(model, chosen))
        results |= {"about": course.about, mode: shown(result)}
        if outputs:
            results["relative difference"] = distance(result["outputs"], outputs)
        outputs = result["outputs"]
    return results


def main() -> None:
    parser = parser_for(__doc__, out_required=True)
    parser.add_argument("--only", choices=("offload", "graphs"), action="append")
    options = parser.parse_args()
    only = options.only or ["offload", "graphs"]
    checks: dict[str, Callable[[], dict[str, Any]]] = {}
    if "offload" in only:
        for name, method, granularity in (("dit", "rfc", "module"), ("flux", "taylorseer", "module"),
                                          ("flux", "rfc", "module"), ("flux", "rfc", "stack")):  # fmt: skip
            checks[f"offload, {name}, {method}, {granularity}"] = (
                lambda name=name, method=method, granularity=granularity: offloading(name, method, granularity, 12)
            )
    if "graphs" in only:
        for name, method, granularity in (("dit", "taylorseer", "stack"), ("dit", "rfc", "module"),
                                          ("dit", "rfc", "stack"), ("flux", "rfc", "module")):  # fmt: skip
            checks[f"graphs, {name}, {method}, {granularity}"] = (
                lambda name=name, method=method, granularity=granularity: graphs(name, method, granularity, 16)
            )
    results: dict[str, Any] = {"device": device_name("cuda"), "torch": torch.__version__}
    for name, check in checks.items():
        try:
            results[name] = check()
        except Exception:  # go on with the other checks
            results[name] = {"failed": traceback.format_exc().splitlines()[-25:]}
        torch.cuda.empty_cache()
        print(name, {key: value for key, value in results[name].items() if key != "about"}, flush=True)
        files.write_json(options.out, results)


if __name__ == "__main__":
    main()

"""Measure some rows of a race again, without relcache's adapters: each package enabled as its own documentation does.

    python benchmarks/race_rows.py benchmarks/results/race/race-small-flux --out benchmarks/results/race/rows.json

It reads the thresholds of the race's runs at a number of full steps, samples the same prompts and seeds in batches of
the race's size, and compares the mean PSNR to full compute with the race's. Same seeds should give nearly the same
mean. The rows in batches of one show how much a decision for a whole batch costs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cache_dit
import diffusers
import torch
from shared import about, parser_for
from torch import Tensor

from relcache.bench import files
from relcache.bench.quality.metrics.pair import psnr
from relcache.bench.race.equal_time import interval
from relcache.bench.sampling.pipelines import load_pipeline


@contextmanager
def unipc(pipe: Any, run: dict[str, Any]) -> Iterator[int]:
    own = pipe.scheduler
    shift = own.config.get("shift", 1.0)
    pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(
        own.config, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
    )
    try:
        yield round(run["nfc"])
    finally:
        pipe.scheduler = own


@contextmanager
def first_block_cache(pipe: Any, run: dict[str, Any]) -> Iterator[int]:
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=run["threshold"]))
    try:
        yield 50
    finally:
        pipe.transformer.disable_cache()


@contextmanager
def dbcache(pipe: Any, run: dict[str, Any]) -> Iterator[int]:
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=2, num_inference_steps=50,
        residual_diff_threshold=run["threshold"],
    )  # fmt: skip
    cache_dit.enable_cache(pipe, cache_config=config)
    try:
        yield 50
    finally:
        cache_dit.disable_cache(pipe)


ROWS: dict[str, Callable[..., Any]] = {"unipc": unipc, "first-block-cache": first_block_cache, "dbcache": dbcache}


def sampled(pipe: Any, settings: dict[str, Any], batch: int, steps: int) -> Tensor:
    """Return the race's pictures as 8-bit numbers in [0, 1], float32 (n, channels, height, width)."""
    made = []
    for start in range(0, len(settings["seeds"]), batch):
        rows = slice(start, start + batch)
        pictures = pipe(
            settings["conditions"][rows], num_inference_steps=steps, output_type="np", **settings["setup"]["options"],
            generator=[torch.Generator().manual_seed(seed) for seed in settings["seeds"][rows]],
        ).images  # fmt: skip
        made.append(torch.as_tensor(pictures).movedim(-1, -3))
    return (torch.cat(made) * 255).round() / 255


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("race", type=Path)
    parser.add_argument("--nfc", type=int, default=14)
    options = parser.parse_args()
    settings = json.loads((options.race / "settings.json").read_text(encoding="utf-8"))
    race = json.loads((options.race / "race.json").read_text(encoding="utf-8"))
    pipe = load_pipeline(settings["setup"]["model"])
    size = settings["batch"]
    full = {batch: sampled(pipe, settings, batch, 50) for batch in (size, 1)}
    rows = []
    for name, enabled in ROWS.items():
        run = next(run for run in race["runs"] if (run["method"], run["nfc_target"]) == (name, options.nfc))
        found: dict[str, Any] = {"row": run["title"], "nfc": run["nfc"], "race": run["psnr"]}
        for batch, key in ((size, "again"), (1, "in batches of one")):
            with enabled(pipe, run) as steps:
                found[key] = list(interval(psnr(sampled(pipe, settings, batch, steps), full[batch]).numpy()))
        mean, least, most = run["psnr"]
        found |= {"difference": found["again"][0] - mean, "within": bool(least <= found["again"][0] <= most)}
        rows.append(found)
        print(found, flush=True)
    if options.out:
        files.write_json(options.out, {"about": {**about(options), "race": str(options.race)}, "rows": rows})


if __name__ == "__main__":
    main()

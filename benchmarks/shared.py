"""The parts that several benchmark scripts share: the command line, sampling, and the written results."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from relcache.bench.comparison.arguments import call_options, conditions_for
from relcache.bench.comparison.entries import named_config
from relcache.bench.sampling.batches import Sampler, Samples
from relcache.bench.sampling.pipelines import load_pipeline
from relcache.methods import method_from_config


def parser_for(description: str | None, *, out_required: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the option `--out`, described by a script's docstring."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=out_required)
    return made


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that decide the results, for the results' file."""
    return {name: value for name, value in vars(options).items() if name != "out"}


def one_batch(model: str, steps: int, seeds: Sequence[int], *load: str) -> tuple[Any, Callable[[], Tensor]]:
    """Return the pipeline of a shipped model, and a function that samples `seeds` in one batch.

    The function returns float32 (n, channels, height, width), of clips (n, frames, channels, height, width), in [0, 1].
    """
    pipeline = load_pipeline(model, *load)
    sampler = Sampler(pipeline, steps, len(seeds), call_options(model, None, None, None, []))
    return pipeline, lambda: sampler.call(seeds, conditions_for(model, None, seeds))


def sampled(sampler: Sampler, method: str, conditions: Sequence[int | str]) -> Samples:
    """Sample the conditions with the seeds 0, 1, … by a method given as text, and print a dot for each batch."""
    chosen = method_from_config(named_config(method))
    return sampler.run(chosen, list(range(len(conditions))), conditions, lambda count: print(".", end="", flush=True))

"""Measure how often a shipped text model shows what its prompt says, by full compute or any method.

    python benchmarks/prompt_agreement.py text --samples 256 --out benchmarks/results/prompt-agreement-text.json

Half of the prompts name a pair of colour and kind that is not in the training data. The recogniser judges.
"""

from __future__ import annotations

import json
import random

from shared import parser_for, sampled

from relcache.bench import files
from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.quality.measures import make_measure
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.pipelines import load_pipeline
from relcache_models import shapes


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("task", choices=("text", "video"))
    parser.add_argument("--samples", type=int, default=256, help="number for each sort of prompt")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--method", default="full", help="as in relcache sample")
    parser.add_argument("--model", help="default: the shipped model of the task")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    benchmark = SMALL[options.task]
    guidance = benchmark.guidance if options.guidance is None else options.guidance
    call = {**benchmark.options, "guidance_scale": guidance}
    pipeline = load_pipeline(options.model or benchmark.model, options.device)
    sampler = Sampler(pipeline, options.steps, 32, call)
    judge = make_measure("recogniser", "cpu", **benchmark.measures["recogniser"])
    result = {name: getattr(options, name) for name in ("task", "steps", "method", "samples")} | call
    for held_out in (False, True):
        prompts = [
            str(shapes.sample_prompt(random.Random(seed), video=options.task == "video", held_out=held_out))
            for seed in range(options.samples)
        ]
        made = sampled(sampler, options.method, prompts)
        result["held out" if held_out else "of training"] = {
            name: float(right.float().mean())
            for name, right in judge((made.images * 255).round().byte(), made.images, prompts).items()
            if right.ndim == 1
        }
    print("\n" + json.dumps(result, indent=2))
    if options.out:
        files.write_json(options.out, result)


if __name__ == "__main__":
    main()

"""Share of the shipped model's pictures that the shipped classifier takes for the class asked for, full compute.

python benchmarks/class_agreement.py --samples 1000 --out benchmarks/results/class-agreement.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import relcache_models
from relcache.bench import files
from relcache.bench.comparison.entries import named_config
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.pipelines import DEFAULT_MODEL, load_pipeline
from relcache.methods import method_from_config
from relcache_models.classifier import Classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--method", default="full", help="as in relcache sample")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    pipeline = load_pipeline(DEFAULT_MODEL, options.device)
    labels = [index % 10 for index in range(options.samples)]
    sampler = Sampler(pipeline, batch=50, options={"guidance_scale": options.guidance})
    samples = sampler.run(
        method_from_config(named_config(options.method)),
        list(range(options.samples)),
        labels,
        lambda count: print(".", end="", flush=True),
    )
    classifier = Classifier.from_pretrained(relcache_models.folder("classifier-fashion-mnist"))
    with torch.no_grad():
        predicted = torch.cat([classifier(part).argmax(1) for part in samples.images.split(250)])
    right = predicted == torch.tensor(labels)
    names = {number: name for name, number in pipeline.labels.items()}
    by_class = {names[n]: float(right[torch.tensor(labels) == n].float().mean()) for n in range(10)}
    result = {
        "samples": options.samples,
        "guidance": options.guidance,
        "method": options.method,
        "agreement": float(right.float().mean()),
        "by_class": by_class,
        "seconds": samples.seconds,
    }
    print("\n" + json.dumps(result, indent=2))
    if options.out:
        files.write_json(options.out, result)


if __name__ == "__main__":
    main()

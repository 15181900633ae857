"""Measure the share of the shipped DiT's pictures in which the shipped classifier sees the requested class.

python benchmarks/class_agreement.py --samples 1000 --out benchmarks/results/class-agreement.json
"""

from __future__ import annotations

import json

import torch
from shared import parser_for, sampled

import relcache_models
from relcache.bench import files
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.pipelines import DEFAULT_MODEL, load_pipeline
from relcache_models.classifier import Classifier


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--method", default="full", help="as in relcache sample")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    pipeline = load_pipeline(DEFAULT_MODEL, options.device)
    labels = [index % 10 for index in range(options.samples)]
    sampler = Sampler(pipeline, batch=50, options={"guidance_scale": options.guidance})
    samples = sampled(sampler, options.method, labels)
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

"""FLOPs of 50 steps of the paper's three models at the paper's sizes, and the bytes that a cache would hold there.

    python benchmarks/flops.py --out benchmarks/results/flops.json

Nothing is computed and no weight is needed: the real classes run on the meta device.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import diffusers
import torch

import relcache
from relcache import Size
from relcache.models import SPECS

STEPS = 50
# Model, its size in latents, rows per picture or clip, and the published TFLOPs (linear layers only but for DiT).
CASES = {
    "DiT-XL/2, 256 x 256, guidance": (
        "DiTTransformer2DModel",
        {"num_layers": 28, "sample_size": 32, "out_channels": 8},
        Size(2, 32, 32),
        23.74,
    ),
    "FLUX.1 dev, 992 x 992, 512 text tokens": (
        "FluxTransformer2DModel",
        {"guidance_embeds": True},
        Size(1, 124, 124, text=512),
        2813.5,
    ),
    "HunyuanVideo, 480 x 640 x 33, 256 text tokens": (
        "HunyuanVideoTransformer3DModel",
        {"guidance_embeds": True},
        Size(1, 60, 80, 9, 256),
        7520.0,
    ),
}


def measure(class_name: str, config: dict[str, object], size: Size) -> dict[str, float]:
    spec = next(spec for spec in SPECS if spec.class_name == class_name)
    with torch.device("meta"):
        model = getattr(diffusers, class_name)(**config).to(torch.bfloat16).eval()
    inputs = spec.example(model, size)
    handle = relcache.enable(model, relcache.RFC(order=1, threshold=0.1))
    return {
        "units": len(handle.units),
        "tflops": STEPS * relcache.count_flops(model, **inputs) / 1e12,
        "tflops_without_attention_products": STEPS * relcache.count_flops(model, attention=False, **inputs) / 1e12,
        "cache_gb_order_1": handle.estimate(
            size.height, width=size.width, frames=size.frames, batch=size.batch, text=size.text
        )
        / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    print("| model | units | TFLOPs | without attention products | published | cache, order 1, GB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (class_name, config, size, published) in CASES.items():
        row = {"model": name, **measure(class_name, config, size), "published": published}
        rows.append(row)
        print(
            f"| {name} | {row['units']} | {row['tflops']:.2f} | {row['tflops_without_attention_products']:.2f} "
            f"| {published} | {row['cache_gb_order_1']:.2f} |"
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"steps": STEPS, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

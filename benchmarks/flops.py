"""Count the FLOPs of 50 steps of the paper's three models at the paper's sizes, and the bytes of a cache.

    python benchmarks/flops.py --out benchmarks/results/flops.json

The real classes run on the meta device, which computes nothing and needs no weights.
"""

from __future__ import annotations

import diffusers
import torch
from shared import parser_for

import relcache
from relcache import Size
from relcache.bench import files
from relcache.models import SPECS

STEPS = 50
# Class, config, size in latents, and the published TFLOPs (of linear layers only, except for DiT).
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
    out = parser_for(__doc__).parse_args().out
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
    if out:
        files.write_json(out, {"steps": STEPS, "rows": rows})


if __name__ == "__main__":
    main()

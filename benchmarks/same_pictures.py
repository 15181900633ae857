"""Test whether a change of the code changed a picture, by digests of each method's samples on the shipped models.

    python benchmarks/same_pictures.py --out before.json
    python benchmarks/same_pictures.py --out after.json --against before.json

Each method, granularity, packed type and way of running samples two seeds of 20 steps. A digest is that of the samples'
bytes, so equal digests mean pictures that are equal to the last bit. Digests compare only on one machine, with one
version of torch and one number of threads. With `--against` the command fails if one differs.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from shared import parser_for

import relcache
import relcache_models
from relcache.bench import files

STEPS = 20
METHODS = (
    "full", "fora:interval=3", "taylorseer:order=1,interval=3", "taylorseer:order=2,interval=4",
    "newton:order=2,interval=3", "linear:interval=3", "rfe:order=1,interval=3", "rfe:order=2,interval=3",
    "rfc:order=1,threshold=0.2", "rfc:order=2,threshold=0.2", "rfc:order=2,threshold=0.2,norm=tensor",
    "rfc:order=2,threshold=0.2,token_stride=3",
    "rcs:order=2,threshold=0.2", "rfc:order=2,full_steps=8", "plan:full_steps=[0,1,2,5,9,14,19]", "auto:full_steps=7",
    "auto:full_steps=5,order=1", "auto:full_steps=7,corrector=none", "taylorseer:order=2,interval=4,corrector=replay",
)  # fmt: skip
OPTIONS: tuple[dict[str, Any], ...] = (
    {"cache_dtype": "bfloat16"}, {"cache_dtype": "int8"}, {"cache_dtype": "float8"}, {"offload": "cpu"},
    {"finer": 2}, {"memory_limit": "600 kB"}, {"free_at_end": True},
)  # fmt: skip


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each method at each granularity, and each further option with two methods."""
    for method in METHODS:
        for granularity in ("module", "block", "stack"):
            yield method, {"granularity": granularity}
    for method in ("rfc:order=2,threshold=0.2", "auto:full_steps=7"):
        for options in OPTIONS:
            yield method, options


def pipelines() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield the shipped models with the arguments of a short call."""
    diffusers.utils.logging.disable_progress_bar()
    prompts = ["a small red circle above a blue square", "a large green star"]
    text = {"height": 64, "width": 64, "max_sequence_length": 16, "prompt": prompts}
    clip = {"height": 48, "width": 48, "num_frames": 9, "prompt": ["a large red circle moves left"]}
    for name, kind, call in (
        ("dit-fashion-mnist", "DiTPipeline", {"class_labels": [1, 7], "guidance_scale": 1.5}),
        ("small-flux", "FluxPipeline", text),
        ("small-video", "HunyuanVideoPipeline", clip),
    ):
        pipe = getattr(diffusers, kind).from_pretrained(relcache_models.folder(name), torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        yield name, pipe, call


def digest_of(pipe: Any, call: dict[str, Any]) -> str:
    """Return the digest of two seeds' samples, before anything rounds them to 8 bits."""
    digest = hashlib.sha256()
    for seed in (0, 1):
        output = pipe(
            **call, num_inference_steps=STEPS, output_type="np", generator=torch.Generator().manual_seed(seed)
        )
        digest.update(next(iter(output.values())).tobytes())
    return digest.hexdigest()[:16]


def main() -> None:
    """Sample with each setting, and compare."""
    parser = parser_for(__doc__, out_required=True)
    parser.add_argument("--against", type=Path, help="the digests of the code before")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, str] = {}
    for name, pipe, call in pipelines():
        for method, changes in settings():
            key = f"{name} {method} {' '.join(f'{k}={v}' for k, v in changes.items())}"
            with relcache.enable(pipe, method, **changes) as handle:
                digest = digest_of(pipe, call)
                found[key] = f"{digest} {handle.report().nfc}"
            print(key, found[key], flush=True)
        files.write_json(options.out, found)
    if options.against is not None:
        before = files.read_json(options.against)
        others = {key for key in before.keys() | found.keys() if before.get(key) != found.get(key)}
        print(f"{len(found) - len(others)} of {len(before)} settings give the same pictures to the last bit")
        if others:
            sys.exit("other pictures:\n" + "\n".join(sorted(others)))


if __name__ == "__main__":
    main()

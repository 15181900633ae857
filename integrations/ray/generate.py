"""Make a picture of each prompt in a file, on several workers of Ray Data: each has a pipeline with relcache.

python integrations/ray/generate.py prompts.txt --model black-forest-labs/FLUX.1-dev --workers 8 --gpus 1
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import ray.data


class Pictures:
    """One worker: a pipeline with relcache enabled. Each picture's noise is that of the prompt's line."""

    def __init__(self, model: str, full_steps: int, options: dict[str, Any], folder: Path):
        import torch
        from diffusers import DiffusionPipeline

        import relcache

        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self._pipe = DiffusionPipeline.from_pretrained(model, dtype=dtype).to(device)
        self._handle = relcache.enable(self._pipe, full_steps=full_steps)
        self._options, self._folder = options, folder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make the picture of one prompt; return its line, file and full steps."""
        import torch

        noise = torch.Generator().manual_seed(row["line"])
        picture = self._pipe(row["prompt"], generator=noise, **self._options).images[0]
        file = self._folder / f"{row['line']:05}.png"
        picture.save(file)
        return {"line": row["line"], "file": str(file), "full_steps": len(self._handle.full_steps)}


def generate(
    prompts: list[str],
    model: str,
    folder: Path,
    *,
    workers: int = 1,
    gpus: float = 0,
    full_steps: int = 14,
    **options: Any,
) -> list[dict[str, Any]]:
    """Make the pictures, and return line, file and full steps of each, by line.

    `options` are those of the pipeline's call, such as num_inference_steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"line": line, "prompt": prompt} for line, prompt in enumerate(prompts)]
    rows = ray.data.from_items(lines, override_num_blocks=len(prompts)).map(
        Pictures, fn_constructor_args=(model, full_steps, options, folder.resolve()), num_gpus=gpus,
        num_cpus=0,  # reserves none: workers that reserved all of them would leave none to Ray's own tasks
        compute=ray.data.ActorPoolStrategy(size=workers),
    )  # fmt: skip
    return sorted(rows.take_all(), key=lambda row: row["line"])


def main() -> None:
    """Read the command line, and make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", type=Path, help="a text file with a prompt on each line")
    parser.add_argument("--model", required=True, help="a hub id, or a folder with a pipeline of diffusers")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each worker")
    parser.add_argument("--full-steps", type=int, default=14)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", type=int, help="height and width in pixels; by default the pipeline's own")
    chosen = parser.parse_args()
    prompts = [line for line in chosen.prompts.read_text().splitlines() if line.strip()]
    size = {"height": chosen.size, "width": chosen.size} if chosen.size else {}
    for row in generate(
        prompts, chosen.model, chosen.out, workers=chosen.workers, gpus=chosen.gpus, full_steps=chosen.full_steps,
        num_inference_steps=chosen.steps, **size,
    ):  # fmt: skip
        print(f"{row['file']}: {row['full_steps']} of {chosen.steps} steps full")


if __name__ == "__main__":
    main()

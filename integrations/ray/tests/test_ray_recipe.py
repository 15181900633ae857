"""The recipe on two local workers: the pictures of one pipeline, each with its budget."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from matplotlib import image

import relcache
import relcache_models

pytest.importorskip("ray.data", reason="the recipe needs ray[data]")
FILE = Path(__file__).parent.parent / "generate.py"


def test_two_workers(tmp_path: Path) -> None:
    model, lines = str(relcache_models.folder("small-flux")), ["a red disc on blue", "a green ring on yellow"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(lines))
    options = {"--model": model, "--steps": "10", "--full-steps": "4", "--workers": "2", "--size": "64"}
    options["--out"] = str(tmp_path / "out")
    words = [word for option in options.items() for word in option]
    command = [sys.executable, str(FILE), str(prompts), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.count("4 of 10 steps full") == 2, done.stderr
    pipe = diffusers.DiffusionPipeline.from_pretrained(model)
    relcache.enable(pipe, full_steps=4)
    for line, (prompt, file) in enumerate(zip(lines, sorted((tmp_path / "out").iterdir()), strict=True)):
        noise = torch.Generator().manual_seed(line)
        picture = pipe(prompt, num_inference_steps=10, generator=noise, output_type="np", height=64, width=64).images[0]
        assert abs(image.imread(file) - picture).max() <= 1 / 255

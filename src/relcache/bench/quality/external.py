"""Run metrics with packages that conflict with diffusers, each in its own environment and process.

`relcache environment NAME` makes the environment. Without it, a warning says so and the metric is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path
from torch import Tensor

from relcache.bench.files import check_folder, read_json
from relcache.checks import unknown


@dataclass(frozen=True)
class Environment:
    """The arguments of each pip install, in order, and the metric's script in `relcache.bench.quality.scripts`."""

    steps: tuple[tuple[str, ...], ...]
    script: str


ENVIRONMENTS = {
    "image-reward": Environment(
        (
            ("setuptools<70", "wheel", "numpy<2"),
            ("torch==2.1.2", "torchvision==0.16.2"),
            (
                "image-reward==1.5", "transformers==4.33.3", "timm==0.6.13", "accelerate==0.23.0",
                "diffusers==0.21.4", "huggingface-hub==0.17.3", "openai-clip",
            ),
        ),
        "image_reward_scores.py",
    ),
    "vbench": Environment(
        (
            ("setuptools<70", "wheel", "numpy<2"),
            ("torch==2.1.2", "torchvision==0.16.2"),
            ("vbench==0.1.5",),
            ("--no-build-isolation", "detectron2@git+https://github.com/facebookresearch/detectron2.git"),
        ),
        "vbench_scores.py",
    ),
}  # fmt: skip
"""Versions that the packages' authors pin. Both need Python 3.8 to 3.11."""


def folder_of(name: str) -> Path:
    """Return the folder of a metric's environment: in RELCACHE_ENVIRONMENTS, else in the user's cache."""
    root = os.environ.get("RELCACHE_ENVIRONMENTS") or user_cache_path("relcache", appauthor=False) / "environments"
    return Path(root) / name


def packages_of(name: str) -> list[str]:
    """Return the packages that the environment of a metric has; raise ValueError if the name is unknown."""
    if name not in ENVIRONMENTS:
        raise ValueError(unknown("environment", name, ENVIRONMENTS))
    return [package for step in ENVIRONMENTS[name].steps for package in step if not package.startswith("--")]


def _python(name: str) -> Path:
    folder = folder_of(name)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def require(name: str) -> Path:
    """Return the interpreter of a metric's environment; raise ValueError if there is none."""
    if not (folder_of(name) / "ready").exists():
        raise ValueError(f"{name} needs an environment of its own: relcache environment {name}")
    return _python(name)


def vbench_prompts() -> dict[str, set[str]]:
    """Return the prompts of VBench's standard suite, in its order, and the dimensions that judge each.

    Raises ValueError without VBench's environment.
    """
    try:
        require("vbench")
    except ValueError as error:
        raise ValueError(f"the prompts of VBench come with its package: {error}; or give --prompts") from error
    found = next(folder_of("vbench").rglob("vbench/VBench_full_info.json"), None)
    if found is None:
        raise ValueError(f"{folder_of('vbench')} has no vbench/VBench_full_info.json: make it again")
    known: dict[str, set[str]] = {}
    for entry in read_json(found, [{"prompt_en": str, "dimension": [str]}]):
        known.setdefault(entry["prompt_en"], set()).update(entry["dimension"])
    return known


def make(name: str, python: str | None = None, tell: Callable[[str], None] = lambda text: None) -> Path:
    """Make the environment of a metric and return its folder; replace an existing one.

    Args:
        name: a key of ENVIRONMENTS.
        python: another interpreter than this one.
        tell: called with each command before it runs.

    Raises:
        ValueError: the name is unknown, or a command failed; the message has its last lines.
    """
    packages_of(name)
    folder = folder_of(name)
    check_folder(folder.parent)
    if python is not None:
        _run_command([python, "--version"], lambda text: None)  # before the existing environment is deleted
    shutil.rmtree(folder, ignore_errors=True)
    if python is None:
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    else:
        _run_command([python, "-m", "venv", str(folder)], tell)
    for step in ENVIRONMENTS[name].steps:
        _run_command([str(_python(name)), "-m", "pip", "install", *step], tell)
    (folder / "ready").write_text(f"{sys.version}\n")
    return folder


def _run_command(command: Sequence[str], tell: Callable[[str], None]) -> None:
    """Run a command; raise ValueError with its last lines if it fails."""
    tell(" ".join(command))
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"{command[0]} cannot be run ({error.strerror})") from error
    if ended.returncode:
        raise ValueError(f"{' '.join(command)} failed:\n{_last_lines(ended.stdout + ended.stderr)}")


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-5:])


class External:
    """A process of a metric's script, which answers requests; raises ValueError without its environment."""

    def __init__(self, name: str, device: str, **request: Any):
        self.name, self.request = name, {"device": device, **request}
        script = resources("relcache.bench.quality.scripts").joinpath(ENVIRONMENTS[name].script)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [str(require(name)), str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, text=True,
        )  # fmt: skip

    def __call__(self, images: Tensor, prompts: Sequence[int | str]) -> Any:
        """Return the reply for samples (n, …), uint8, and their n prompts.

        Raises:
            ValueError: the script failed; the message has its last lines.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            samples = Path(folder) / "samples.npz"
            np.savez(samples, images=images.numpy())
            request = {**self.request, "samples": str(samples), "prompts": list(prompts)}
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                pass  # then there is no reply
            reply = self._process.stdout.readline()
        if not reply:
            self._log.seek(0)
            raise ValueError(f"{self.name} failed in {folder_of(self.name)}:\n{_last_lines(self._log.read())}")
        return json.loads(reply)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()

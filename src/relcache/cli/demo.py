"""`relcache demo`: the comparison of methods on the shipped models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relcache.cli import options
from relcache.cli.compare import compare
from relcache.cli.terminal import begin, plain_errors, relief_of


def run_demo(
    task: Annotated[str, typer.Option(help="class, text, video, or all of them.")] = "class",
    samples: Annotated[int, typer.Option(help="Pictures or clips per method.")] = 16,
    steps: options.Steps = 50,
    seed: options.Seed = 0,
    out: Annotated[Path, typer.Option(help="Output folder, with a subfolder for each task.")] = Path("relcache-demo"),
    methods: options.Methods = None,
    nfc: options.Targets = None,
    guidance: options.Guidance = None,
    batch: options.Batch = 32,
    calibration_samples: options.CalibrationSamples = 6,
    device: options.Device = "auto",
) -> None:
    """Sample the shipped models with every method at equal cost and compare with full compute.

    The task class is a class-conditional DiT. The tasks text and video make pictures and clips from prompts, with the
    architectures of FLUX and HunyuanVideo. Prints a table and writes tables and sheets. The same command resumes an
    interrupted run.
    """
    with plain_errors(resumes=True) as relief:
        options.check_methods(methods)
        begin()
        from relcache.bench.comparison.benchmarks import SMALL
        from relcache.bench.comparison.prepare import Arguments, tasks
        from relcache.bench.sampling.pipelines import usable_device

        relief += relief_of(batch)
        arguments = Arguments(
            methods=methods, nfc=nfc, samples=samples, steps=steps, seeds=str(seed), guidance=guidance, batch=batch,
            calibration_samples=calibration_samples, device=usable_device(device),
        )  # fmt: skip
        for name in tasks(task):
            compare(SMALL[name], arguments, out / name, first="auto")

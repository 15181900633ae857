"""`relcache analyze`: how features change over the steps, and the error of each forecast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relcache.cli import options
from relcache.cli.terminal import begin, plain_errors, progress_bar, relief_of, say


def record_analysis(
    model: options.Model = None,
    methods: options.Methods = "fora,taylorseer-1,rfe-1",
    interval: Annotated[int, typer.Option(min=2, help="Steps from one full step to the next.")] = 4,
    samples: Annotated[int, typer.Option(min=1, help="Pictures or clips.")] = 8,
    steps: options.Steps = 50,
    seed: options.Seed = 0,
    prompt: options.Prompts = None,
    guidance: options.Guidance = None,
    size: options.Size = None,
    frames: options.Frames = None,
    option: options.Option = None,
    module: options.Modules = None,
    granularity: Annotated[str, typer.Option(help="Forecast each module, each block, or the stack.")] = "module",
    batch: options.Batch = 4,
    out: Annotated[Path, typer.Option(help="Folder for numbers and figures.")] = Path("relcache-analysis"),
    device: options.Device = "auto",
    dtype: options.DType = "float32",
    offload: options.Offload = "none",
) -> None:
    """Record how a model's features change and the error of each forecast, in one run with full compute.

    All methods forecast from the same full steps, so they differ in their forecaster alone. Draws the paper's figures
    1 and 2.
    """
    with plain_errors(resumes=True) as relief:
        options.check_methods(methods, rivals=False)
        begin()
        from relcache.bench.comparison.analysis import analyze
        from relcache.bench.comparison.arguments import call_options, conditions_for
        from relcache.bench.comparison.entries import choose
        from relcache.bench.pages.illustrations import illustrate, summary
        from relcache.bench.sampling.pipelines import usable_device
        from relcache.methods import named_granularity

        relief += relief_of(batch, device, dtype, offload)
        model = options.model_or_default(model, prompt)
        entries = choose(methods, rivals=False)
        seeds = [seed + index for index in range(samples)]
        with progress_bar() as bar:
            task = bar.add_task("full compute", total=samples)
            known = analyze(
                model, entries, conditions_for(model, prompt, seeds), seeds, out, interval=interval, steps=steps,
                batch=batch,
                options=call_options(model, guidance, size, frames, option or []), device=usable_device(device),
                dtype=dtype, offload=offload, granularity=named_granularity(granularity),
                modules=module or (), advance=lambda count: bar.advance(task, count),
            )  # fmt: skip
            written = illustrate(out, module or ())
        found = summary(known)
        for key, value in found.items():
            if isinstance(value, float):
                say(f"{key}: {value:.3g}")
        for name, value in found["relative L1 error of the output"].items():
            say(f"relative L1 error of the output, {name}: {value:.3g}")
        say(f"Written to {out}: {', '.join(path.name for path in written)}")

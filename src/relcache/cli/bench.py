"""`relcache bench`: a command for each of the paper's benchmarks, and one for the speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from relcache.cli import options
from relcache.cli.compare import compare
from relcache.cli.race import race
from relcache.cli.speed import time_methods
from relcache.cli.terminal import begin, plain_errors, relief_of, say

bench_app = typer.Typer(
    help="Run the paper's benchmarks, with every method on the same seeds, or measure the speed.",
    no_args_is_help=True,
)


def _quality_command(benchmark: str) -> Callable[..., None]:
    """Return the command of one of the paper's benchmarks."""

    def command(
        model: Annotated[str | None, typer.Option(help="A shipped model, a folder, or a hub id.")] = None,
        preset: Annotated[
            str, typer.Option(help="paper for the published protocol, small for a shipped model.")
        ] = "paper",
        methods: options.Methods = None,
        nfc: options.Targets = None,
        samples: Annotated[int | None, typer.Option(help="Pictures or clips per method.")] = None,
        steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
        seeds: Annotated[str, typer.Option(help="The first seed, or a seed for each sample: 0-9,20,30-39.")] = "0",
        prompts: Annotated[Path | None, typer.Option(help="File with a prompt on each line, or a CSV file.")] = None,
        guidance: options.Guidance = None,
        size: options.Size = None,
        frames: options.Frames = None,
        option: options.Option = None,
        batch: Annotated[int | None, typer.Option(min=1, help="Samples per batch; by default the preset's.")] = None,
        calibration_samples: options.CalibrationSamples = 6,
        reference: Annotated[Path | None, typer.Option(help="ADM's reference batch (.npz), for FID and sFID.")] = None,
        inception: Annotated[Path | None, typer.Option(help="File with the Inception weights.")] = None,
        alexnet: Annotated[Path | None, typer.Option(help="File with AlexNet's weights, for LPIPS.")] = None,
        clip: Annotated[str | None, typer.Option(help="Folder or hub id of the CLIP model for the CLIP score.")] = None,
        workers: Annotated[str, typer.Option(help="A number, or the address of a Ray cluster.")] = "1",
        threads: Annotated[int, typer.Option(min=0, help="CPU threads of each worker; 0 keeps torch's number.")] = 0,
        html: Annotated[bool, typer.Option("--html", help="Also write everything into one page, report.html.")] = False,
        out: Annotated[Path, typer.Option(help="Output folder, with a subfolder for each benchmark.")] = Path(
            "relcache-bench"
        ),
        device: options.Device = "auto",
        dtype: options.DType = "float32",
        offload: options.Offload = "none",
    ) -> None:
        with plain_errors(resumes=True) as relief:
            options.check_methods(methods)
            begin()
            from relcache.bench.comparison.arguments import call_options
            from relcache.bench.comparison.benchmarks import benchmark_of
            from relcache.bench.comparison.pool import is_here
            from relcache.bench.comparison.prepare import Arguments, is_protocol, read_prompts, with_measure
            from relcache.bench.comparison.summaries import against
            from relcache.bench.pages.page import write_page
            from relcache.bench.sampling.pipelines import usable_device

            chosen = benchmark_of(benchmark, preset)
            if prompts is not None and chosen.task == "class":
                raise ValueError("--prompts is for text-to-image and text-to-video; class-conditional takes classes")
            relief += relief_of(batch or chosen.batch, device, dtype, offload)
            arguments = Arguments(
                model=model, methods=methods, nfc=nfc, samples=samples, steps=steps, seeds=seeds, guidance=guidance,
                batch=batch, calibration_samples=calibration_samples,
                device=usable_device(device) if is_here(workers) else device, dtype=dtype, offload=offload,
                prompts=None if prompts is None else read_prompts(prompts), threads=threads,
                options=call_options(None, None, size, frames, option or []),
            )  # fmt: skip
            columns = dict(chosen.columns)
            if "inception" in chosen.measures:
                weights = None if inception is None else str(inception.resolve())
                chosen = with_measure(chosen, "inception", weights=weights)
                columns = {**against(reference, inception, usable_device(device)), **columns}
            elif reference is not None or inception is not None:
                raise ValueError("--reference and --inception are for class-conditional with the paper's preset")
            for name, key, source in (
                ("lpips", "weights", alexnet and str(alexnet.resolve())),
                ("clip", "model", clip),
            ):
                if source is None:
                    continue
                if name not in chosen.measures:
                    raise ValueError(f"{benchmark} with the preset {preset} does not measure {name}")
                chosen = with_measure(chosen, name, **{key: source})
            for path in (reference, inception, alexnet):
                if path is not None and not path.is_file():
                    raise ValueError(f"there is no file {path}")
            protocol = benchmark if preset == "paper" and is_protocol(chosen, arguments) else ""
            compare(chosen, arguments, out / benchmark, workers, columns, protocol)
            if html:
                say(f"Written to {write_page(out / benchmark)}")

    command.__doc__ = f"""Run the paper's {benchmark} benchmark: methods on the same seeds, in the paper's columns.

    The same command resumes an interrupted run, with any number of workers.
    """
    return command


for _name in ("class-conditional", "text-to-image", "text-to-video"):  # the keys of `benchmarks.NAMES`
    bench_app.command(_name)(_quality_command(_name))
bench_app.command("race")(race)
bench_app.command("speed")(time_methods)

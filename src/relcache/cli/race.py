"""`relcache bench race`: relcache, fewer steps and other caches at equal measured time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from relcache.bench.tables import equal_time_rows
from relcache.cli import options
from relcache.cli.compare import compare
from relcache.cli.terminal import begin, console, plain_errors, relief_of, say, terminal_table

MOST_SHOWN = 6  # contestants for each budget in the terminal
SHOWN = {"psnr": "PSNR, dB", "exact": "to the exact solution"}


def race(
    model: Annotated[str, typer.Option(help="A shipped model, a folder, or a hub id.")] = "small-flux",
    methods: Annotated[str, typer.Option(help="race for all contestants; or as in the other benchmarks.")] = "race",
    nfc: Annotated[str | None, typer.Option(help="Numbers of full steps; 25,20,14,10,8,6 for 50 steps.")] = None,
    samples: Annotated[int | None, typer.Option(help="Pictures or clips per contestant; 64.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; 50.")] = None,
    seeds: Annotated[str, typer.Option(help="The first seed, or a seed for each sample: 0-9,20,30-39.")] = "0",
    prompts: Annotated[Path | None, typer.Option(help="File with a prompt on each line, or a CSV file.")] = None,
    guidance: options.Guidance = None,
    size: options.Size = None,
    frames: options.Frames = None,
    option: options.Option = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per batch; 8 for shipped models, else 1.")] = None,
    calibration_samples: options.CalibrationSamples = 8,
    exact_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps of the exact solution; 0 for none. 500 for shipped models, else 0.")
    ] = None,
    alexnet: Annotated[Path | None, typer.Option(help="File with AlexNet's weights, for LPIPS.")] = None,
    workers: Annotated[str, typer.Option(help="A number, or the address of a Ray cluster.")] = "1",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each worker; 0 keeps torch's number.")] = 0,
    out: Annotated[Path, typer.Option(help="Output folder, with a subfolder for the model.")] = Path("relcache-race"),
    device: options.Device = "auto",
    dtype: options.DType = "float32",
    offload: options.Offload = "none",
) -> None:
    """Race relcache against solvers with fewer steps and other caches, at equal measured time.

    Writes tables, figures and a page. The same command resumes an interrupted race. Times hold for one kind of
    machine, and several workers on one machine disturb each other.
    """
    with plain_errors(resumes=True) as relief:
        options.check_methods(methods)
        begin()
        from relcache.bench.comparison.arguments import call_options
        from relcache.bench.comparison.pool import is_here
        from relcache.bench.comparison.prepare import Arguments, read_prompts
        from relcache.bench.files import slug
        from relcache.bench.pages.page import write_page
        from relcache.bench.race.prepare import race_benchmark, race_columns
        from relcache.bench.race.results import write_race
        from relcache.bench.rivals.registry import all_rivals, is_solver
        from relcache.bench.sampling.pipelines import usable_device

        benchmark = race_benchmark(model, None if alexnet is None else str(alexnet.resolve()), exact_steps)
        if prompts is not None and benchmark.task == "class":
            raise ValueError("--prompts is for models that take prompts; this one takes classes")
        if alexnet is not None and not alexnet.is_file():
            raise ValueError(f"there is no file {alexnet}")
        relief += relief_of(batch or benchmark.batch, device, dtype, offload)
        if is_here(workers):
            device = usable_device(device)
        arguments = Arguments(
            model=model, methods=methods, nfc=nfc, samples=samples, steps=steps, seeds=seeds, guidance=guidance,
            batch=batch, calibration_samples=calibration_samples, device=device, dtype=dtype, offload=offload,
            prompts=None if prompts is None else read_prompts(prompts), threads=threads, timed=True,
            options=call_options(None, None, size, frames, option or []),
        )  # fmt: skip
        if methods == "race" and all(is_solver(name) for name in all_rivals()):
            say("Solvers alone: other caches are in the package relcache-rivals (docs/benchmarks.md).")
        folder = out / f"race-{slug(Path(model).name)}"
        comparison = compare(benchmark, arguments, folder, workers, quiet=True)
        result = write_race(comparison, race_columns(benchmark))
        _print(result)
        say(f"Written to {write_page(folder)}, {folder / 'race.md'} and {folder / 'race.json'}")


def _print(race: dict[str, Any]) -> None:
    """Print the best contestants at the time of each run of the default."""
    rows = []
    for table in race["equal_time"]:
        for row in equal_time_rows(race, table)[: MOST_SHOWN + 1]:
            row |= {f"{key}_lead": f"{row[f'{key}_lead']} ~" for key, parted in row["parted"].items() if not parted}
            rows.append({**row, "nfc": table["nfc"]})
    columns = [("at the time of", "nfc", ""), ("contestant", "title", "")]
    for key, heading in SHOWN.items():
        if rows and key in rows[0]:
            columns += [(heading, key, ""), ("lead", f"{key}_lead", "")]
    console.print(terminal_table(rows, race["about"], columns, section="nfc"))
    console.print(
        "The best by PSNR to full compute. The lead is the default's; a ~ marks one whose interval holds 0. All "
        "contestants and runs are in race.md."
    )
    if not race["equal_time"]:
        console.print("Nothing is compared at equal time without the default: give --methods auto,… as well.")
    for title, reason in race["unfit"].items():
        console.print(f"not run: {title}: {reason}", markup=False, highlight=False)

"""Run a comparison of methods for `bench` and `demo`, and print its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from relcache.cli.terminal import console, errors, progress_bar, rich_table, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from relcache.bench.comparison.benchmarks import Benchmark, Column
    from relcache.bench.comparison.comparison import Comparison
    from relcache.bench.comparison.pool import Pool
    from relcache.bench.comparison.prepare import Arguments


def compare(
    benchmark: Benchmark,
    arguments: Arguments,
    out: Path,
    workers: str = "1",
    columns: Mapping[str, Column] | None = None,
    protocol: str = "",
    quiet: bool = False,
    first: str = "",
) -> Comparison:
    """Run a comparison with a progress bar, draw and print its table unless `quiet`, and return it.

    The results of the method `first` come before all others, with a sheet of pictures.
    """
    from relcache.bench.comparison.pool import make_pool
    from relcache.bench.comparison.prepare import prepare
    from relcache.bench.files import check_folder
    from relcache.bench.pages.page import PAGE
    from relcache.bench.pages.results import TABLES, write_results
    from relcache.bench.saved import SETTINGS

    columns = benchmark.columns if columns is None else columns
    with progress_bar() as bar:
        work = bar.add_task("loading", total=None)
        comparison = prepare(
            benchmark, arguments, out.resolve(),
            announce=lambda text: bar.update(work, description=text),
            advance=lambda count: bar.advance(work, count),
            warn=lambda text: errors.print(text, highlight=False, markup=False),
        )  # fmt: skip
        check_folder(out, [*TABLES, SETTINGS, PAGE])
        with make_pool(comparison.settings.setup, workers) as pool:
            early = [entry for entry in comparison.entries if entry.name == first]
            if early and not (out / TABLES[0]).exists():
                _show_first(replace(comparison, entries=early), pool, bar, work, columns)
            bar.reset(work, total=comparison.size, description="all methods")
            comparison.run(pool)
        bar.update(work, description="measuring")
        rows, written = write_results(comparison, columns, protocol, draw=not quiet)
        bar.update(work, description="done")
    if quiet:
        return comparison
    setup = comparison.settings.setup
    about = (
        f"{setup.model}: {comparison.settings.samples} samples, {setup.steps} steps, "
        f"guidance {setup.options['guidance_scale']:g}"
    )
    console.print(rich_table(rows, about, columns))
    console.print(
        f"PSNR and SSIM are against full compute; {benchmark.meaning}. FLOPs and seconds are per sample, seconds on "
        "this machine."
    )
    for name, reason in comparison.not_run(lambda entry: entry.name).items():
        console.print(f"not run: {name}: {reason}", markup=False, highlight=False)
    say(f"Written to {out}: {', '.join(path.name for path in written)}")
    return comparison


def _show_first(comparison: Comparison, pool: Pool, bar: Progress, work: TaskID, columns: Mapping[str, Column]) -> None:
    """Run the comparison of one method with full compute, and print how near it comes, and where its pictures are."""
    from relcache.bench.pages.results import write_results

    bar.update(work, total=comparison.size, description="full compute, and the default")
    comparison.run(pool)
    (full, *own), written = write_results(comparison, columns)
    for row in own:
        bar.console.print(
            f"{row['method']}, {row['nfc']:g} full steps of {full['nfc']:g}: {row['psnr']:.1f} dB to full compute, "
            f"{row['seconds']:.3g} s a sample instead of {full['seconds']:.3g}", highlight=False, markup=False,
            soft_wrap=True,
        )  # fmt: skip
    sheets = [path for path in written if path.suffix in (".png", ".gif") and "nfc" in path.name]
    if sheets:
        bar.console.print(f"Look at {sheets[0]}", highlight=False, markup=False, soft_wrap=True)

"""Draw the loss curves of training runs from their logs.

    python training/draw_losses.py shipped-models/src/relcache_models/*/loss*.jsonl

It writes `X.png` beside each log `X.jsonl`, with a panel for each loss.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

OTHERS = ("update", "samples_per_second", "seconds", "learning_rate", "samples")


def draw(log: Path) -> Path:
    """Draw the log's losses, and return the figure's path."""
    rows = [json.loads(row) for row in log.read_text().splitlines()]
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if name not in OTHERS]
    figure, axes = pyplot.subplots(1, len(names), figsize=(4.2 * len(names), 2.8), squeeze=False, layout="constrained")
    for name, axis in zip(names, axes[0], strict=True):
        known = [(row["update"], row[name]) for row in rows if row.get(name) is not None]
        axis.plot(*zip(*known, strict=True), color="#0072B2", linewidth=1)
        axis.set(xlabel="update", ylabel=name, yscale="log")
        axis.grid(color="#dddddd", linewidth=0.6)
    figure.savefig(log.with_suffix(".png"), dpi=110, facecolor="white", metadata={"Software": None})
    pyplot.close(figure)
    return log.with_suffix(".png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+")
    for log in parser.parse_args().logs:
        print(draw(log))


if __name__ == "__main__":
    main()

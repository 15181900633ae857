"""The parts that the training scripts of the shape models share: checkpoints, a log of losses, learning rates."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn


def learning_rate(update: int, updates: int, warmup: int = 100, cooldown: float = 0.3) -> float:
    """Return a factor: a warm-up, a constant stretch, then a linear fall to 1 % over the last `cooldown` of the run."""
    if update < warmup:
        return (update + 1) / warmup
    start = updates * (1 - cooldown)
    return min(1.0, max(0.01, (updates - update) / max(1.0, updates - start)))


class Run:
    """A training run in a folder, with `checkpoint.pt` and `loss.jsonl`. Ctrl-C and SIGTERM save and stop it.

    Iterating yields the numbers of the remaining updates. A checkpoint stores the objects of `keep`, which have
    `state_dict` and `load_state_dict`. `average` is an exponential moving average of `model`'s weights.
    """

    def __init__(self, folder: Path, updates: int, model: nn.Module, *, every: int, ema: float = 0.0, **keep: Any):
        self.folder, self.updates, self.model, self.every, self.ema = folder, updates, model, every, ema
        self.keep = {"model": model, **keep}
        self.update, self.seconds, self.stopping = 0, 0.0, False
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.rows: list[dict[str, float]] = []
        self.samples = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = folder / "checkpoint.pt"
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            for name, kept in self.keep.items():
                kept.load_state_dict(saved[name])
            self.average = {name: value.to(self.average[name].device) for name, value in saved["average"].items()}
            self.update, self.seconds = saved["update"], saved["seconds"]
            self._forget_rows_after_the_checkpoint()
            print(f"resumed at update {self.update}", flush=True)

    def __iter__(self):
        signals = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(name, lambda *_: setattr(self, "stopping", True)) for name in signals]
        self.started = time.perf_counter()
        while self.update < self.updates and not self.stopping:
            yield self.update
        for name, handler in zip(signals, before, strict=True):
            signal.signal(name, handler)
        if self.rows:
            self._log()
        self.save()
        print(f"stopped at update {self.update} of {self.updates}", flush=True)

    @property
    def is_complete(self) -> bool:
        """Tell whether all updates are done."""
        return self.update >= self.updates

    def _forget_rows_after_the_checkpoint(self) -> None:
        """Remove the log's rows after the checkpoint: a killed run repeats those updates."""
        log = self.folder / "loss.jsonl"
        if log.exists():
            kept = [row for row in log.read_text().splitlines(True) if json.loads(row)["update"] <= self.update]
            temporary = log.with_suffix(".tmp")
            temporary.write_text("".join(kept))
            os.replace(temporary, log)

    def done(self, batch: int, **values: float) -> None:
        """Finish an update of `batch` samples with these losses."""
        self.update += 1
        self.rows.append(values)
        if not all(math.isfinite(value) for value in values.values()):
            raise RuntimeError(f"a loss is not finite at update {self.update}: {values}; lower the learning rate")
        if self.ema:
            decay = min(self.ema, (1 + self.update) / (10 + self.update))
            current = self.model.state_dict()
            floats = [name for name, value in current.items() if value.is_floating_point()]
            torch._foreach_lerp_([self.average[n] for n in floats], [current[n] for n in floats], 1 - decay)
        self.samples += batch
        if self.update % 50 == 0:
            self._log()
        if self.update % self.every == 0:
            self.save()

    def _log(self) -> None:
        """Add a row to the log, with the means since the last one."""
        elapsed, self.started = time.perf_counter() - self.started, time.perf_counter()
        self.seconds += elapsed
        row = {"update": self.update} | {n: sum(r[n] for r in self.rows) / len(self.rows) for n in self.rows[-1]}
        row |= {"samples_per_second": round(self.samples / elapsed, 2), "seconds": round(self.seconds, 1)}
        with (self.folder / "loss.jsonl").open("a") as file:
            file.write(json.dumps({k: round(v, 7) for k, v in row.items()}) + "\n")
        print(row, flush=True)
        self.rows, self.samples = [], 0

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        temporary = self.checkpoint.with_suffix(".tmp")
        states = {name: kept.state_dict() for name, kept in self.keep.items()}
        torch.save(
            states | {"average": self.average, "update": self.update, "seconds": self.seconds},
            temporary,
        )
        os.replace(temporary, self.checkpoint)

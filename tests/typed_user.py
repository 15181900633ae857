"""What a user of `mypy --strict` writes: `.ci/run` checks its types."""

from __future__ import annotations

import relcache
from relcache import FORA, RFC, Handle, Report, auto


def run(pipe: object) -> float | None:
    handle: Handle = relcache.enable(pipe, RFC(order=2, threshold=0.12), full_steps=14)
    with handle.request(full_steps=8):
        pass
    with relcache.enable(pipe, auto(speedup=3.0)) as other:
        print(other.full_steps, other.corrections, other.units)
    report: Report = handle.report()
    print(handle.summary(), handle.estimate(1024, width=1024), handle.choose(1024, width=1024))
    relcache.enable(pipe, FORA(4), forecaster=None)
    relcache.enable(pipe, forecaster=relcache.Newton(2), schedule=relcache.Interval(5), corrector=relcache.Replay())
    spec = relcache.ModelSpec("M", modules=("a", relcache.joint("b", "c", "d")), conditioning=("text",))
    preset = relcache.calibrate(pipe, [{"prompt": "x"}], full_steps=8)
    preset.save("x.json")
    relcache.enable(pipe, preset, spec=spec)
    relcache.disable(pipe)
    return report.seconds

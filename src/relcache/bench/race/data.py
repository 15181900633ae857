"""The Fréchet distance to the data that the shipped models were trained on: scenes that their generator draws."""

from __future__ import annotations

import random
from functools import cache

from relcache.bench.comparison.comparison import Comparison, Variant
from relcache.bench.quality.measures import make_measure
from relcache.bench.quality.metrics import distribution
from relcache_models import shapes

FIRST_SCENE, SCENES, AT_ONCE = 2_000_000_000, 1024, 64  # seeds that neither training nor results use


@cache
def data_distribution(model: str, side: int, frames: int) -> distribution.Gaussian:
    """Return the distribution of a recogniser's features of drawn pictures, or of clips for more than one frame."""
    return _drawn(model, side, frames, FIRST_SCENE, SCENES)


def distance_to_data(comparison: Comparison, variant: Variant) -> float | None:
    """Measure the Fréchet distance of a recogniser's features to drawn scenes; None for fewer than two samples."""
    if not comparison.takes("recogniser") or comparison.settings.samples < 2:
        return None
    own = distribution.fit(comparison.values(variant, "recogniser", "features"))
    return distribution.frechet_distance(own, data_distribution(*_drawing(comparison)))


def least_distance(comparison: Comparison) -> float:
    """Return the distance to the data of as many other drawn scenes: the bias of so few samples."""
    few = _drawn(*_drawing(comparison), FIRST_SCENE + SCENES, comparison.settings.samples)
    return distribution.frechet_distance(few, data_distribution(*_drawing(comparison)))


def _drawing(comparison: Comparison) -> tuple[str, int, int]:
    """Return the recogniser, and the side and frames of the samples."""
    setup = comparison.settings.setup
    frames = int(setup.options.get("num_frames", 1))
    return str(setup.measures["recogniser"]["model"]), int(setup.options["height"]), frames


def _drawn(model: str, side: int, frames: int, first: int, number: int) -> distribution.Gaussian:
    measure, parts = make_measure("recogniser", "cpu", model=model), []
    for seed in range(first, first + number, AT_ONCE):
        rng = random.Random(seed)
        count = min(AT_ONCE, first + number - seed)
        prompts = [shapes.sample_prompt(rng, video=frames > 1, held_out=None) for _ in range(count)]
        scenes = [shapes.compose(prompt, rng, frames=frames) for prompt in prompts]
        images = (shapes.render(scenes, side, seed) * 255).round().byte()
        parts.append(measure(images, images, [str(prompt) for prompt in prompts])["features"])
    return distribution.fit(parts)

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
    measure, parts = make_measure("recogniser", "cpu", model=model), []
    for seed in range(FIRST_SCENE, FIRST_SCENE + SCENES, AT_ONCE):
        rng = random.Random(seed)
        prompts = [shapes.sample_prompt(rng, video=frames > 1, held_out=None) for _ in range(AT_ONCE)]
        scenes = [shapes.compose(prompt, rng, frames=frames) for prompt in prompts]
        images = (shapes.render(scenes, side, seed) * 255).round().byte()
        parts.append(measure(images, images, [str(prompt) for prompt in prompts])["features"])
    return distribution.fit(parts)


def distance_to_data(comparison: Comparison, variant: Variant) -> float | None:
    """Measure the Fréchet distance of a recogniser's features to drawn scenes; None for fewer than two samples."""
    if not comparison.takes("recogniser") or comparison.settings.samples < 2:
        return None
    setup = comparison.settings.setup
    data = data_distribution(
        str(setup.measures["recogniser"]["model"]),
        int(setup.options["height"]),
        int(setup.options.get("num_frames", 1)),
    )
    return distribution.frechet_distance(distribution.fit(comparison.values(variant, "recogniser", "features")), data)

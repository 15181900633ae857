"""The generator of scenes, and the recogniser that judges what shows them."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

import relcache_models
from relcache_models import shapes
from relcache_models.recogniser import Recogniser
from relcache_models.shapes import COLOURS, KINDS, Prompt, Shape, compose, parse, render, sample_prompt


def scene_of(text: str, seed: int = 0, frames: int = 1) -> shapes.Scene:
    return compose(parse(text), random.Random(seed), frames=frames)


@given(some.integers(0, 10**6), some.booleans(), some.sampled_from([None, True, False]))
def test_a_prompt_is_what_its_words_say(seed: int, video: bool, held_out: bool | None) -> None:
    prompt = sample_prompt(random.Random(seed), video=video, held_out=held_out)
    assert parse(str(prompt)) == prompt
    assert (prompt.motion is not None) == video
    assert held_out is None or prompt.held_out == held_out


def test_words() -> None:
    prompt = parse("A small red circle above a blue square.")
    assert prompt == Prompt((Shape("circle", "red", "small"), Shape("square", "blue")), relation="above")
    assert parse("an orange ring bounces") == Prompt((Shape("ring", "orange"),), motion="bounces")
    assert str(parse("a large orange star at the top")) == "a large orange star at the top"
    below = parse("a blue square below a red circle")
    assert [shape.kind for shape in below.ordered] == ["circle", "square"]
    assert below.layout == "vertical"


def test_an_open_colour_is_any_but_a_held_out_one() -> None:
    prompt = parse("a large ring in the middle")
    assert prompt == Prompt((Shape("ring", None, "large"),), place="middle")
    assert str(prompt) == "a large ring in the middle"
    assert shapes.said([prompt])["colour0"].tolist() == [-1]
    scenes = [compose(prompt, random.Random(seed)) for seed in range(300)]
    assert shapes.labels(scenes)["colour0"].tolist() == [-1] * 300
    nearest = {min(COLOURS, key=lambda name: math.dist(COLOURS[name], scene.paints[0])) for scene in scenes}
    assert nearest == set(COLOURS) - {"green"}  # a green ring is held out
    assert compose(parse("a red ring"), random.Random(0)).paints == (COLOURS["red"],)


@pytest.mark.parametrize(
    "text",
    ["", "a cat", "a red circle above", "a red circle on a blue square", "red circle", "a red circle grows slowly",
     "a red circle left of a blue square at the top"],
)  # fmt: skip
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a prompt of the shapes: a \[small\|large\] \[COLOUR\] KIND"):
        parse(text)


def test_held_out_pairs_leave_every_word_in_training() -> None:
    kept = [(colour, kind) for colour in COLOURS for kind in KINDS if (colour, kind) not in shapes.HELD_OUT]
    assert {colour for colour, _ in kept} == set(COLOURS)
    assert {kind for _, kind in kept} == set(KINDS)


@given(some.integers(0, 10**6), some.booleans())
def test_shapes_stay_inside_and_apart(seed: int, video: bool) -> None:
    rng = random.Random(seed)
    scene = compose(sample_prompt(rng, video=video), rng, frames=9 if video else 1)
    for path in scene.path:
        for x, y, radius in path:
            assert radius < x < 1 - radius
            assert radius < y < 1 - radius
    if len(scene.shapes) == 2:
        (ax, ay, ar), (bx, by, br) = (path[0] for path in scene.path)
        along, aside = (by - ay, bx - ax) if scene.layout == "vertical" else (bx - ax, by - ay)
        assert along >= ar + br
        assert abs(aside) <= along / 2


@pytest.mark.parametrize(
    ("motion", "change"),
    [("moves left", (-1, 0, 0)), ("moves right", (1, 0, 0)), ("moves up", (0, -1, 0)), ("moves down", (0, 1, 0)),
     ("grows", (0, 0, 1)), ("shrinks", (0, 0, -1))],
)  # fmt: skip
def test_motions_move(motion: str, change: tuple[int, int, int]) -> None:
    for seed in range(20):
        (path,) = scene_of(f"a red star {motion}", seed, frames=9).path
        for before, after in pairwise(path):
            signs = tuple((b > a) - (b < a) for a, b in zip(before, after, strict=True))
            assert signs == change


def test_a_bounce_turns_round() -> None:
    for seed in range(20):
        (path,) = scene_of("a red star bounces", seed, frames=9).path
        assert len({x for x, _, _ in path}) == 1
        heights = [y for _, y, _ in path]
        turns = [(b - a) * (c - b) < 0 for a, b, c in zip(heights, heights[1:], heights[2:], strict=False)]
        assert any(turns)


def test_what_grows_or_shrinks_has_no_size() -> None:
    """It has every size; to say one means nothing, and nothing is judged by it."""
    prompts = [parse("a small red circle grows"), parse("a small red circle bounces")]
    assert shapes.said(prompts)["size0"].tolist() == [-1, 0]
    scenes = [scene_of("a large red circle shrinks", frames=9), scene_of("a large red circle bounces", frames=9)]
    assert shapes.labels(scenes)["size0"].tolist() == [-1, 1]


def test_pictures_show_the_colour_where_the_shape_is() -> None:
    for colour, rgb in COLOURS.items():
        scene = scene_of(f"a large {colour} square in the middle")
        ((x, y, _),) = scene.path[0]
        pixel = render([scene], 64, 0)[0, 0, :, int(y * 64), int(x * 64)]
        nearest = min(
            COLOURS, key=lambda name: (pixel / pixel.max() - torch.tensor(COLOURS[name]) / max(COLOURS[name])).norm()
        )
        assert nearest == colour, (pixel, rgb)


def test_edges_are_smooth_and_pictures_the_same_at_every_size() -> None:
    """At twice the side, the average of each 2 x 2 pixels is about the pixel of the smaller picture."""
    scenes = [scene_of(f"a large white {kind} in the middle") for kind in KINDS]
    small, large = render(scenes, 64, 0)[:, 0], render(scenes, 128, 0)[:, 0]
    assert (torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean() < 0.01


def test_occupancy_is_where_the_render_shows_each_kind() -> None:
    scenes = [scene_of(f"a white {kind} left of a red {KINDS[number - 1]}") for number, kind in enumerate(KINDS)]
    covered = shapes.occupancy(scenes, 64)[:, 0]
    assert covered.shape == (len(KINDS), len(KINDS), 64, 64)
    pixels = render(scenes, 64, 0)[:, 0]
    for number in range(len(KINDS)):
        red, green = pixels[number, 0], pixels[number, 1]
        assert (covered[number, number] > 0.5)[(red > 0.6) & (green > 0.6)].float().mean() > 0.95
        assert (covered[number, number - 1] > 0.5)[(red > 0.5) & (green < 0.2)].float().mean() > 0.95
        assert covered[number].sum((-2, -1)).gt(0).sum() == 2
    (clip,) = shapes.occupancy([scene_of("a large red star moves left", frames=9)], 24)
    star = clip[:, KINDS.index("star")]
    where = (star * torch.arange(24)).sum((-2, -1)) / star.sum((-2, -1))
    assert (where.diff() < 0).all()


def test_pictures_depend_on_the_seed_alone() -> None:
    scenes = [scene_of("a red circle left of a blue star", seed) for seed in range(3)]
    assert torch.equal(render(scenes, 32, 5), render(scenes, 32, 5))
    assert not torch.equal(render(scenes, 32, 5), render(scenes, 32, 6))


def test_labels_and_what_is_said() -> None:
    prompt = parse("a blue square right of a small red circle")
    shown = shapes.labels([compose(prompt, random.Random(0))])
    wanted = shapes.said([prompt])
    assert shown["kind0"].tolist() == wanted["kind0"].tolist() == [KINDS.index("circle")]
    assert shown["layout"].tolist() == wanted["layout"].tolist() == [shapes.LAYOUTS.index("horizontal")]
    assert wanted["size1"].tolist() == [-1]
    assert shown["size1"].item() in (0, 1)
    assert wanted["motion"].tolist() == [-1]


RECOGNISERS = {"recogniser-pictures": (64, 1), "recogniser-clips": (48, 9)}
SHIPPED = [name for name in RECOGNISERS if name in relcache_models.names()]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_recogniser_is_right_about_real_renders(name: str) -> None:
    side, frames = RECOGNISERS[name]
    recogniser = Recogniser.from_pretrained(relcache_models.folder(name))
    rng = random.Random(12345)
    prompts = [sample_prompt(rng, video=frames > 1, held_out=None) for _ in range(200)]
    clips = render([compose(prompt, rng, frames=frames) for prompt in prompts], side, 12345)
    assert recogniser.judge(clips, prompts)["right"].float().mean() >= 0.95  # of 200; 0.97 of thousands
    metrics = json.loads((relcache_models.folder(name) / "metrics.json").read_text())
    assert metrics["right"] >= 0.97


@pytest.mark.parametrize("name", SHIPPED)
def test_the_recogniser_finds_what_is_wrong(name: str) -> None:
    """Each word of a prompt changed to another one is found out by its own score and by `right`."""
    side, frames = RECOGNISERS[name]
    recogniser = Recogniser.from_pretrained(relcache_models.folder(name))
    rng = random.Random(1)
    end = "moves left" if frames > 1 else "on the left"
    prompts = [Prompt((Shape("star", "red", "small"),))] * 20
    prompts = [parse(f"{prompt} {end}") for prompt in prompts]
    clips = render([compose(prompt, rng, frames=frames) for prompt in prompts], side, 1)
    star = prompts[0].shapes[0]
    others = {
        "kind": replace(prompts[0], shapes=(replace(star, kind="ring"),)),
        "colour": replace(prompts[0], shapes=(replace(star, colour="blue"),)),
        "size": replace(prompts[0], shapes=(replace(star, size="large"),)),
    }
    others["motion" if frames > 1 else "place"] = (
        replace(prompts[0], motion="moves right") if frames > 1 else replace(prompts[0], place="right")
    )
    for key, other in others.items():
        judged = recogniser.judge(clips, [other] * len(clips))
        assert judged[key].float().mean() <= 0.1
        assert not (judged["right"] & ~judged[key]).any()
        assert all(judged[name].float().mean() >= 0.9 for name in judged if name not in (key, "right"))


def test_the_recogniser_refuses_what_it_cannot_judge() -> None:
    recogniser = Recogniser(64)
    with pytest.raises(ValueError, match="2 clips and 1 prompts"):
        recogniser.judge(torch.zeros(2, 1, 3, 64, 64), [parse("a red star")])
    with pytest.raises(ValueError, match="judges pictures, for which 'a red star grows' is no prompt"):
        recogniser.judge(torch.zeros(1, 1, 3, 64, 64), [parse("a red star grows")])
    with pytest.raises(ValueError, match=r"takes \(n, 1, 3, 64, 64\), got \(1, 1, 3, 32, 32\)"):
        recogniser(torch.zeros(1, 1, 3, 32, 32))

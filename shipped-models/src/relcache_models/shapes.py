"""Scenes of coloured shapes: the words that describe them, and the pictures and clips that show them.

relcache's text models are trained on this generator alone. A prompt names one or two shapes and their places ("a small
red circle above a blue square"), or one shape and its motion ("a large white star bounces"). Everything else is drawn
at random: an open size, colour or place, the background, the light.

Lengths are fractions of the picture's side, so a scene can be drawn at any resolution. Pictures are float tensors in
[0, 1], drawn from signed distances with anti-aliased edges.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

KINDS = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = {
    "red": (0.86, 0.14, 0.14),
    "orange": (0.96, 0.55, 0.10),
    "yellow": (0.96, 0.90, 0.20),
    "green": (0.18, 0.68, 0.24),
    "blue": (0.18, 0.34, 0.92),
    "purple": (0.60, 0.22, 0.74),
    "white": (0.95, 0.95, 0.95),
}
SIZES = {"small": (0.105, 0.135), "large": (0.18, 0.22)}
CLIP_SIZES = {"small": (0.14, 0.17), "large": (0.23, 0.27)}  # clips have fewer pixels
PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom",
          "middle": "in the middle"}  # fmt: skip
RELATIONS = ("above", "below", "left of", "right of")
MOTIONS = ("moves left", "moves right", "moves up", "moves down", "grows", "shrinks", "bounces")
LAYOUTS = (*PLACES, "corner", "vertical", "horizontal")

HELD_OUT = frozenset(
    {("purple", "circle"), ("orange", "square"), ("white", "triangle"), ("blue", "star"), ("green", "ring"),
     ("yellow", "cross")}
)  # fmt: skip
"""Pairs of colour and kind that no training prompt contains."""

RESIZING = ("grows", "shrinks")  # motions through all sizes: a size word means nothing beside them
MARGIN = 0.03
GRAMMAR = (
    "a [small|large] [COLOUR] KIND [on the left|on the right|at the top|at the bottom|in the middle], "
    "a [small|large] [COLOUR] KIND above|below|left of|right of a [small|large] [COLOUR] KIND, or "
    "a [small|large] [COLOUR] KIND moves left|moves right|moves up|moves down|grows|shrinks|bounces; "
    f"COLOUR is one of {', '.join(COLOURS)}, KIND one of {', '.join(KINDS)}"
)


@dataclass(frozen=True)
class Shape:
    """One shape as a prompt names it; `colour` and `size` are None where the prompt leaves them open."""

    kind: str
    colour: str | None
    size: str | None = None

    def __str__(self) -> str:
        words = [word for word in (self.size, self.colour, self.kind) if word]
        return f"{'an' if words[0] == 'orange' else 'a'} {' '.join(words)}"


@dataclass(frozen=True)
class Prompt:
    """The content of a prompt.

    `shapes` are one or two. Two shapes have a `relation` of RELATIONS. One shape may have a `place`, a key of PLACES,
    or in a clip a `motion` of MOTIONS. Each is None where it does not apply or is left open.
    """

    shapes: tuple[Shape, ...]
    place: str | None = None
    relation: str | None = None
    motion: str | None = None

    def __str__(self) -> str:
        text = str(self.shapes[0])
        if self.relation:
            return f"{text} {self.relation} {self.shapes[1]}"
        if self.motion:
            return f"{text} {self.motion}"
        return f"{text} {PLACES[self.place]}" if self.place else text

    @property
    def held_out(self) -> bool:
        """Tell whether it names a pair of colour and kind that no training prompt contains."""
        return any((shape.colour, shape.kind) in HELD_OUT for shape in self.shapes)

    @property
    def ordered(self) -> tuple[Shape, ...]:
        """Return the shapes from top to bottom or from left to right."""
        return self.shapes[::-1] if self.relation in ("below", "right of") else self.shapes

    @property
    def layout(self) -> str | None:
        """Return one of LAYOUTS, or None if the prompt leaves the place open."""
        if self.relation:
            return "vertical" if self.relation in ("above", "below") else "horizontal"
        return self.place


def parse(text: str) -> Prompt:
    """Parse a prompt, in any case and with or without a final stop.

    Raises:
        ValueError: `text` does not follow the grammar, which the message gives.
    """
    words = text.lower().strip().rstrip(".!").split()

    def shape() -> Shape:
        if not words or words.pop(0) not in ("a", "an"):
            raise ValueError
        size = words.pop(0) if words and words[0] in SIZES else None
        colour = words.pop(0) if words and words[0] in COLOURS else None
        kind = words.pop(0)
        if kind not in KINDS:
            raise ValueError
        return Shape(kind, colour, size)

    try:
        first, rest = shape(), " ".join(words)
        if not rest:
            return Prompt((first,))
        if rest in MOTIONS:
            return Prompt((first,), motion=rest)
        if rest in PLACES.values():
            return Prompt((first,), place=next(place for place, said in PLACES.items() if said == rest))
        relation = next(relation for relation in RELATIONS if rest.startswith(relation + " "))
        del words[: len(relation.split())]
        second = shape()
        if words:
            raise ValueError
    except (ValueError, IndexError, StopIteration):
        raise ValueError(f"{text!r} is not a prompt of the shapes: {GRAMMAR}") from None
    return Prompt((first, second), relation=relation)


def sample_prompt(
    rng: random.Random, *, video: bool = False, held_out: bool | None = False, open_colours: float = 0.0
) -> Prompt:
    """Draw a random prompt; half of the pictures show two shapes, and two of three shapes have a size.

    The prompt must (`held_out` True), must not (False) or may (None) name a held-out pair. `open_colours` is the share
    of shapes whose colour is left open.
    """
    while True:
        two = not video and rng.random() < 0.5
        shapes = tuple(
            Shape(rng.choice(KINDS), rng.choice(tuple(COLOURS)), rng.choice((None, *SIZES))) for _ in range(1 + two)
        )
        prompt = Prompt(shapes)
        if two:
            prompt = replace(prompt, relation=rng.choice(RELATIONS))
        elif video:
            prompt = replace(prompt, motion=rng.choice(MOTIONS))
            if prompt.motion in RESIZING:
                prompt = replace(prompt, shapes=(replace(shapes[0], size=None),))
        elif rng.random() < 0.7:
            prompt = replace(prompt, place=rng.choice(tuple(PLACES)))
        if open_colours:
            found = (replace(s, colour=None) if rng.random() < open_colours else s for s in prompt.shapes)
            prompt = replace(prompt, shapes=tuple(found))
        if held_out is None or prompt.held_out == held_out:
            return prompt


@dataclass(frozen=True)
class Scene:
    """The content of a picture or a clip: a prompt whose open parts are decided.

    `shapes`, with their sizes, go from top to bottom or from left to right. `path` has the centre's x and y and the
    radius for each shape and frame. `paints` has the colours of the shapes, red, green and blue in [0, 1].
    """

    shapes: tuple[Shape, ...]
    layout: str
    path: tuple[tuple[tuple[float, float, float], ...], ...]
    angles: tuple[float, ...]
    paints: tuple[tuple[float, float, float], ...]
    motion: str | None = None


def _between(rng: random.Random, low: float, high: float) -> float:
    return rng.uniform(low, max(low, high))


def compose(prompt: Prompt, rng: random.Random, *, frames: int = 1) -> Scene:
    """Draw a scene that shows `prompt`; without a motion all frames are the same."""
    sizes = [shape.size or rng.choice(tuple(SIZES)) for shape in prompt.ordered]
    shapes = tuple(replace(shape, size=size) for shape, size in zip(prompt.ordered, sizes, strict=True))
    radii = [rng.uniform(*(CLIP_SIZES if prompt.motion else SIZES)[size]) for size in sizes]
    layout = "middle" if prompt.motion else prompt.layout or rng.choice((*PLACES, "corner"))
    if prompt.motion:
        path = [_motion(prompt.motion, radii[0], rng, frames)]
    elif prompt.relation:
        path = [(where,) * frames for where in _pair(layout == "vertical", radii, rng)]
    else:
        path = [(_single(layout, radii[0], rng),) * frames]
    angles = tuple(rng.uniform(-0.25, 0.25) for _ in shapes)
    paints = tuple(COLOURS[shape.colour] if shape.colour else _paint(shape.kind, rng) for shape in shapes)
    return Scene(shapes, layout, tuple(path), angles, paints, prompt.motion)


def _paint(kind: str, rng: random.Random) -> tuple[float, float, float]:
    """Draw a lively colour, but none nearest to one that is held out for `kind`."""
    while True:
        pale = rng.random() < 0.2
        saturation, value = (rng.uniform(0, 0.1), 0.95) if pale else (rng.uniform(0.55, 1), rng.uniform(0.6, 1))
        paint = colorsys.hsv_to_rgb(rng.random(), saturation, value)
        nearest = min(COLOURS, key=lambda name: math.dist(COLOURS[name], paint))
        if (nearest, kind) not in HELD_OUT:
            return paint


def _single(layout: str, radius: float, rng: random.Random) -> tuple[float, float, float]:
    edge = radius + MARGIN
    near, far = _between(rng, edge, 0.34), 1 - _between(rng, edge, 0.34)
    middle = rng.uniform(0.44, 0.56), rng.uniform(0.44, 0.56)
    x = {"left": near, "right": far, "corner": rng.choice((near, far))}.get(layout, middle[0])
    near, far = _between(rng, edge, 0.34), 1 - _between(rng, edge, 0.34)
    y = {"top": near, "bottom": far, "corner": rng.choice((near, far))}.get(layout, middle[1])
    return x, y, radius


def _pair(vertical: bool, radii: list[float], rng: random.Random) -> list[tuple[float, float, float]]:
    first, second = radii
    room = 1 - first - second - 2 * MARGIN
    apart = _between(rng, min(room, first + second + 0.04), room)
    start = _between(rng, first + MARGIN, 1 - MARGIN - second - apart)
    while True:
        aside = [_between(rng, radius + MARGIN, 1 - MARGIN - radius) for radius in radii]
        if abs(aside[0] - aside[1]) <= 0.5 * apart:
            break
    centres = [(aside[0], start, first), (aside[1], start + apart, second)]
    return centres if vertical else [(y, x, radius) for x, y, radius in centres]


def _motion(motion: str, radius: float, rng: random.Random, frames: int) -> tuple[tuple[float, float, float], ...]:
    times = [frame / max(1, frames - 1) for frame in range(frames)]
    if motion in RESIZING:
        small, large = rng.uniform(0.12, 0.15), rng.uniform(0.24, 0.28)
        x, y = (_between(rng, large + MARGIN, 1 - MARGIN - large) for _ in range(2))
        ends = (small, large) if motion == "grows" else (large, small)
        return tuple((x, y, ends[0] + (ends[1] - ends[0]) * time) for time in times)
    low, high = radius + MARGIN, 1 - MARGIN - radius
    if motion == "bounces":
        x, ground = _between(rng, low, high), high - rng.uniform(0, 0.06)
        height, phase = rng.uniform(0.2, 0.3), rng.uniform(0, 1)
        return tuple((x, ground - height * abs(math.sin(math.pi * (phase + time))), radius) for time in times)
    length = rng.uniform(0.22, 0.36)
    start, aside = _between(rng, low, high - length), _between(rng, low, high)
    along = [start + length * (time if motion in ("moves right", "moves down") else 1 - time) for time in times]
    if motion in ("moves left", "moves right"):
        return tuple((where, aside, radius) for where in along)
    return tuple((aside, where, radius) for where in along)


def _distances(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the signed distances to each kind of radius 1, (…, kinds, y, x) in the order of KINDS."""
    length = torch.hypot(u, v)
    sector = 2 * math.pi / 5
    folded = ((torch.atan2(u, -v) + sector / 2) % sector - sector / 2).abs()
    inner = 0.46  # radius of the star's inner corners
    normal = torch.tensor([inner * math.sin(sector / 2), 1.05 - inner * math.cos(sector / 2)])
    normal = normal / normal.norm()  # of the edge from an outer to an inner corner
    star = length * (folded.cos() * normal[0] + folded.sin() * normal[1]) - 1.05 * normal[0]
    side = torch.maximum(u.abs(), v.abs())
    slope = 0.5 * math.sqrt(3)
    triangle = torch.maximum(v - 0.5, slope * u.abs() - 0.5 * v - 0.5)
    bar = torch.minimum(torch.maximum(u.abs() - 1, v.abs() - 0.33), torch.maximum(v.abs() - 1, u.abs() - 0.33))
    return torch.stack([length - 0.95, side - 0.76, triangle, star, (length - 0.75).abs() - 0.25, bar], -3)


def render(scenes: Sequence[Scene], side: int, seed: int) -> torch.Tensor:
    """Draw `scenes`, which must have equally many frames: float32 (scenes, frames, 3, side, side) in [0, 1].

    `seed` decides the backgrounds, their textures and the tints of the colours.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(len(scenes), *shape, generator=generator) * (high - low) + low

    axis = (torch.arange(side) + 0.5) / side
    y, x = axis[:, None].expand(side, side), axis[None, :].expand(side, side)

    base = uniform(0.22, 0.52, 1, 1, 1) + uniform(-0.05, 0.05, 3, 1, 1)
    cloud = F.interpolate(uniform(-0.09, 0.09, 1, 5, 5), size=(side, side), mode="bicubic", align_corners=True)
    angle, period = uniform(0, math.pi, 1, 1, 1), uniform(0.1, 0.2, 1, 1, 1)
    along = x * angle.cos() + y * angle.sin() + uniform(0, 1, 1, 1, 1)
    stripes = uniform(0.015, 0.035, 1, 1, 1) * torch.sin(2 * math.pi * along / period)
    picture = (base + cloud + stripes)[:, None].repeat(1, len(scenes[0].path[0]), 1, 1, 1)
    for position in range(2):
        tint = uniform(-0.05, 0.05, 1, 3, 1, 1)
        rows = [row for row, scene in enumerate(scenes) if position < len(scene.shapes)]
        if rows:
            picture[rows] = _painted(picture[rows], [scenes[row] for row in rows], position, tint[rows], x, y)
    return picture.clamp(0, 1)


def _painted(
    picture: torch.Tensor, scenes: list[Scene], position: int, tint: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """Draw the shape at `position` of each of `scenes` on `picture`: its shadow, then itself, lit from the top left."""
    side = picture.shape[-1]
    colour = torch.tensor([scene.paints[position] for scene in scenes])[:, None, :, None, None] + tint
    shadow = (0.5 - _edge(scenes, position, x, y, shift=0.03)[0] / (0.05 * side)).clamp(0, 1)
    edge, away = _edge(scenes, position, x, y)
    light = (0.9 - 0.22 * away).clamp(0.55, 1.15)
    rim = 1 - 0.35 * (1 + edge / (0.035 * side)).clamp(0, 1)
    return torch.lerp(picture * (1 - 0.4 * shadow), (colour * light * rim).clamp(0, 1), (0.5 - edge).clamp(0, 1))


def _edge(
    scenes: Sequence[Scene], position: int, x: torch.Tensor, y: torch.Tensor, shift: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return signed distances to the edge in pixels, and from the light in radii, each (…, frames, 1, y, x)."""
    side = x.shape[-1]
    path = torch.tensor([scene.path[position] for scene in scenes])[..., None, None]  # scenes, frames, 3, 1, 1
    turn = torch.tensor([scene.angles[position] for scene in scenes])[:, None, None, None]
    kind = torch.tensor([KINDS.index(scene.shapes[position].kind) for scene in scenes])
    across = (x - path[:, :, 0] - shift) / path[:, :, 2]
    down = (y - path[:, :, 1] - shift) / path[:, :, 2]
    each = _distances(across * turn.cos() + down * turn.sin(), down * turn.cos() - across * turn.sin())
    index = kind[:, None, None, None, None].expand(-1, each.shape[1], 1, side, side)
    return each.gather(2, index) * path[:, :, 2, None] * side, (across + down)[:, :, None]


def occupancy(scenes: Sequence[Scene], side: int) -> torch.Tensor:
    """Return the share of each of side × side cells that each kind covers, float32 (scenes, frames, kinds, side, side).

    All `scenes` must have equally many frames.
    """
    axis = (torch.arange(side) + 0.5) / side
    y, x = axis[:, None].expand(side, side), axis[None, :].expand(side, side)
    covered = torch.zeros(len(scenes), len(scenes[0].path[0]), len(KINDS), side, side)
    for position in range(2):
        rows = [row for row, scene in enumerate(scenes) if position < len(scene.shapes)]
        if rows:
            edge, _ = _edge([scenes[row] for row in rows], position, x, y)
            kinds = [KINDS.index(scenes[row].shapes[position].kind) for row in rows]
            covered[rows, :, kinds] += (0.5 - edge[:, :, 0]).clamp(0, 1)
    return covered.clamp(max=1)


def labels(scenes: Sequence[Scene]) -> dict[str, torch.Tensor]:
    """Return the content of `scenes` as class numbers, int64 (scenes,); -1 stands for a missing second shape.

    The keys are layout, in LAYOUTS, motion, in MOTIONS, and kind, colour, size with the suffix 0 or 1. A shape that
    grows or shrinks has the size -1.
    """
    found: dict[str, list[int]] = {"layout": [], "motion": []}
    for scene in scenes:
        found["layout"].append(LAYOUTS.index(scene.layout))
        found["motion"].append(MOTIONS.index(scene.motion) if scene.motion else -1)
        for position in range(2):
            shape = scene.shapes[position] if position < len(scene.shapes) else None
            for name, words in (("kind", KINDS), ("colour", tuple(COLOURS)), ("size", tuple(SIZES))):
                value = None if name == "size" and scene.motion in RESIZING else getattr(shape, name, None)
                found.setdefault(f"{name}{position}", []).append(words.index(value) if value else -1)
    return {name: torch.tensor(values) for name, values in found.items()}


def said(prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
    """Return the content of `prompts` in the form of `labels`; -1 stands for an open part."""
    found: dict[str, list[int]] = {"layout": [], "motion": []}
    for prompt in prompts:
        found["layout"].append(LAYOUTS.index(prompt.layout) if prompt.layout else -1)
        found["motion"].append(MOTIONS.index(prompt.motion) if prompt.motion else -1)
        for position in range(2):
            shape = prompt.ordered[position] if position < len(prompt.shapes) else None
            for name, words in (("kind", KINDS), ("colour", tuple(COLOURS)), ("size", tuple(SIZES))):
                value = None if name == "size" and prompt.motion in RESIZING else getattr(shape, name, None)
                found.setdefault(f"{name}{position}", []).append(words.index(value) if value else -1)
    return {name: torch.tensor(values) for name, values in found.items()}

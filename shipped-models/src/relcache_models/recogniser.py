"""The recogniser of shapes, which judges whether a picture or a clip shows what its prompt says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from relcache_models import shapes
from relcache_models.weights import load_into

FRAMES_RIGHT = 0.75  # the share of a clip's frames that must show the right shape


class Recogniser(nn.Module):
    """Convolutions on each frame, and linear layers on the features; motion is read from all frames together.

    Args:
        side: height and width of a frame in pixels, a multiple of 16.
        frames: 1 for pictures.
    """

    def __init__(self, side: int, frames: int = 1, width: int = 192) -> None:
        super().__init__()
        self.side, self.frames = side, frames

        def stage(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        self.trunk = nn.Sequential(
            *stage(3, 16, 1),
            *stage(16, 32, 2),
            *stage(32, 32, 1),
            *stage(32, 64, 2),
            *stage(64, 64, 1),
            *stage(64, 96, 2),
            *stage(96, 96, 2),
            nn.Flatten(),
            nn.Linear(96 * (side // 16) ** 2, width),
            nn.ReLU(),
        )
        names = {"kind": len(shapes.KINDS), "colour": len(shapes.COLOURS), "size": len(shapes.SIZES)}
        self.whole = nn.Sequential(nn.Linear(frames * width, width), nn.ReLU())
        positions = range(2 if frames == 1 else 1)
        self.heads = nn.ModuleDict(
            {f"{name}{position}": nn.Linear(width, count) for name, count in names.items() for position in positions}
        )
        if frames == 1:
            self.heads["layout"] = nn.Linear(width, len(shapes.LAYOUTS))
        else:
            self.heads["motion"] = nn.Linear(width, len(shapes.MOTIONS))

    def _encoded(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of each frame (n, frames, width) and of the whole clip (n, width)."""
        if clips.ndim != 5 or clips.shape[1:] != (self.frames, 3, self.side, self.side):
            raise ValueError(
                f"the recogniser takes (n, {self.frames}, 3, {self.side}, {self.side}), got {tuple(clips.shape)}"
            )
        each = self.trunk((clips * 2 - 1).flatten(0, 1)).unflatten(0, clips.shape[:2])
        return each, self.whole(each.flatten(1))

    @torch.no_grad()
    def features(self, clips: torch.Tensor) -> torch.Tensor:
        """Return the features (n, width) of `clips` (n, frames, 3, side, side) in [0, 1], all float32."""
        return self._encoded(clips)[1]

    def forward(self, clips: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the float32 logits of `clips` (n, frames, 3, side, side) in [0, 1], by the names of `shapes.labels`.

        Each is (n, classes). Kind and colour of clips are read from each frame, (n, frames, classes).
        """
        each, whole = self._encoded(clips)
        by_frame = ("kind0", "colour0") if self.frames > 1 else ()
        return {name: head(each if name in by_frame else whole) for name, head in self.heads.items()}

    @torch.no_grad()
    def judge(self, clips: torch.Tensor, prompts: Sequence[shapes.Prompt]) -> dict[str, torch.Tensor]:
        """Judge whether `clips` (n, frames, 3, side, side) show what `prompts` say, as bool tensors (n,).

        Keys: kind, colour, size (of all shapes), place or motion, and `right`, which is all of them. Parts that a
        prompt leaves open are right. A clip's kind and colour are right if three quarters of its frames show them.

        Raises:
            ValueError: clips of another size, another number of clips than of prompts, or prompts of the other sort.
        """
        if len(clips) != len(prompts):
            raise ValueError(f"{len(clips)} clips and {len(prompts)} prompts: give one prompt for each")
        for prompt in prompts:
            if (prompt.motion is not None) != (self.frames > 1):
                sort = "pictures" if self.frames == 1 else "clips"
                raise ValueError(f"this recogniser judges {sort}, for which {str(prompt)!r} is no prompt")
        right = {name: torch.ones(len(clips), dtype=torch.bool) for name in ("kind", "colour", "size")}
        where = "place" if self.frames == 1 else "motion"
        right[where] = torch.ones(len(clips), dtype=torch.bool)
        said = shapes.said(prompts)
        for name, logits in self(clips).items():
            shown = logits.argmax(-1).cpu()
            wanted = said[name]
            match = shown == (wanted if shown.ndim == 1 else wanted[:, None])
            if match.ndim == 2:
                match = match.float().mean(1) >= FRAMES_RIGHT
            open_ = wanted == -1
            if name == "layout":
                single = torch.tensor([layout not in ("vertical", "horizontal") for layout in shapes.LAYOUTS])
                match |= open_ & single[shown]
            else:
                match |= open_
            key = where if name in ("layout", "motion") else name[:-1]
            right[key] &= match
        right["right"] = torch.stack(list(right.values())).all(0)
        return right

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Recogniser:
        """Load the recogniser in `folder` (`config.json`, `model.safetensors`), in evaluation mode.

        Raises:
            FileNotFoundError: `folder` has no recogniser.
            ValueError: its weights or its config are broken.
        """
        weights, config = Path(folder) / "model.safetensors", Path(folder) / "config.json"
        for path in (weights, config):
            if not path.is_file():
                raise FileNotFoundError(f"{folder} holds no {path.name}")
        try:
            recogniser = cls(**json.loads(config.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{config} is not the config of a recogniser ({error})") from error
        load_into(recogniser, weights)
        return recogniser.eval()

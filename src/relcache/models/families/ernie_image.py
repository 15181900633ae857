"""ERNIE-Image (Baidu): attention and feed-forward of each block over image and text."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from relcache.models.inputs import call, filled, image, text
from relcache.models.padding import before_padding
from relcache.models.spec import ModelSpec, Part


def _valid(arguments: Mapping[str, Any], tokens: int) -> Tensor:
    """Return the tokens that count: the sequence is the image, then the text with its padding."""
    return before_padding(arguments["text_lens"], arguments["text_bth"].shape[1], tokens)


ERNIE_IMAGE = ModelSpec(
    class_name="ErnieImageTransformer2DModel",
    modules=("layers.*.self_attention", Part("layers.*.mlp", layout="tokens first")),
    conditioning=("text_bth",),
    padding=(("layers*:*", _valid),),
    inputs=call(
        hidden_states=image("in_channels"),
        timestep=filled(500.0),
        text_bth=text("text_in_dim"),
        text_lens=filled("text"),
    ),
    text=256,  # as many as the prompt has; the pipeline makes prompts longer
)

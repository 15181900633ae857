"""Lumina-Image 2.0 (Alpha-VLLM, arXiv 2503.21758): refiner of the noisy image, then blocks over text and image."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from relcache.models.inputs import call, filled, image, text
from relcache.models.padding import before_padding
from relcache.models.spec import ModelSpec


def _valid(arguments: Mapping[str, Any], tokens: int) -> Tensor:
    """Return the tokens that count: the sequence is the text, the image, then padding."""
    lengths = arguments["encoder_attention_mask"].sum(1)
    return before_padding(lengths, lengths.max(), tokens)


LUMINA2 = ModelSpec(
    class_name="Lumina2Transformer2DModel",
    modules=("noise_refiner.*.attn", "noise_refiner.*.feed_forward", "layers.*.attn", "layers.*.feed_forward"),
    conditioning=("encoder_hidden_states",),
    time_runs=1,
    padding=(("layers*:*", _valid),),
    inputs=call(
        hidden_states=image("in_channels"),
        timestep=filled(0.5),
        encoder_hidden_states=text("cap_feat_dim"),
        encoder_attention_mask=filled(1, "batch", "text"),
    ),
    text=256,  # at most: the transformer drops the padding
)

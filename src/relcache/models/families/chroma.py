"""Chroma (lodestones, 2025): FLUX.1's double and single blocks; one network embeds the timestep for all of them."""

from relcache.models.families.flux import DOUBLE_AND_SINGLE
from relcache.models.inputs import call, filled, packed, packed_ids, packed_tokens, text
from relcache.models.spec import ModelSpec

CHROMA = ModelSpec(
    class_name="ChromaTransformer2DModel",
    modules=DOUBLE_AND_SINGLE,
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=packed("in_channels"),
        encoder_hidden_states=text("joint_attention_dim"),
        timestep=filled(0.5),
        img_ids=packed_ids,
        txt_ids=filled(0.0, "text", 3),
        attention_mask=filled(1.0, "batch", lambda config, size: size.text + packed_tokens(config, size)),
    ),
    text=512,
)

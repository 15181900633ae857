"""Bria 3.2 and FIBO (Bria AI, 2025): double blocks with joint attention, then single blocks.

In FIBO each block reads another layer of the text encoder, which replaces half of the text's channels.
"""

from relcache.models.families.flux import DOUBLE_AND_SINGLE
from relcache.models.inputs import call, filled, grid_ids, packed, packed_ids, random, several, text
from relcache.models.spec import ModelSpec

BRIA = ModelSpec(
    class_name="BriaTransformer2DModel",
    modules=DOUBLE_AND_SINGLE,
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=packed("in_channels"),
        encoder_hidden_states=text("joint_attention_dim"),
        timestep=filled(500.0),
        img_ids=packed_ids,
        txt_ids=filled(0.0, "text", 3),
    ),
    text=128,
)

BRIA_FIBO = ModelSpec(
    class_name="BriaFiboTransformer2DModel",
    modules=DOUBLE_AND_SINGLE,
    conditioning=("encoder_hidden_states", "text_encoder_layers"),
    inputs=call(
        hidden_states=random("batch", lambda config, size: size.height * size.width, "in_channels"),
        encoder_hidden_states=text("joint_attention_dim"),
        timestep=filled(500.0),
        img_ids=lambda config, size: grid_ids(1, size.height, size.width),
        txt_ids=filled(0.0, "text", 3),
        text_encoder_layers=several(
            lambda config, size: config.num_layers + config.num_single_layers, text("text_encoder_dim")
        ),
    ),
    text=3000,  # the pipeline's limit; it pads to the longest prompt only, but its prompts are long
)

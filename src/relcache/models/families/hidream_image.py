"""HiDream-I1 (HiDream.ai, arXiv 2505.22705): double blocks with joint attention, then single blocks.

The feed-forwards of the image are mixtures of experts, each mixture one unit.
"""

from relcache.models.inputs import call, filled, image, random, text
from relcache.models.spec import ModelSpec, joint

HIDREAM_IMAGE = ModelSpec(
    class_name="HiDreamImageTransformer2DModel",
    modules=(
        joint("double_stream_blocks.*.block.attn1", "norm_hidden_states", "norm_encoder_hidden_states"),
        "double_stream_blocks.*.block.ff_i",
        "double_stream_blocks.*.block.ff_t",
        "single_stream_blocks.*.block.attn1",
        "single_stream_blocks.*.block.ff_i",
    ),
    conditioning=("encoder_hidden_states_t5", "encoder_hidden_states_llama3", "pooled_embeds"),
    timestep="timesteps",
    inputs=call(
        hidden_states=image("in_channels"),
        timesteps=filled(500.0),
        encoder_hidden_states_t5=text(lambda config, size: config.caption_channels[0]),
        # each block reads one layer of the text encoder
        encoder_hidden_states_llama3=random(
            lambda config, size: max(config.llama_layers) + 1,
            "batch",
            "text",
            lambda config, size: config.caption_channels[1],
        ),
        pooled_embeds=random("batch", "text_emb_dim"),
    ),
    text=128,  # of each of the three texts that a double block reads
)

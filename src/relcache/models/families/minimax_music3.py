"""MiniMax Music 3 (MiniMax): attention and feed-forward of each block, on windows of latent audio of length `width`."""

from relcache.models.inputs import call, filled, random
from relcache.models.spec import ModelSpec, parallel

MINIMAX_MUSIC3 = ModelSpec(
    class_name="MiniMaxMusic3Transformer1DModel",
    modules=("transformer_blocks.*.attn", parallel("transformer_blocks.*", ("ff_in",), "ff_out")),
    conditioning=("encoder_hidden_states",),
    time_runs=1,
    inputs=call(
        hidden_states=random("batch", "in_channels", "width"),
        timestep=filled(0.5),
        encoder_hidden_states=random("batch", "width", "condition_dim"),  # one for each position
    ),
)

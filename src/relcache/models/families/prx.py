"""PRX (Photoroom): attention of the image to text and image, and the feed-forward, of each block."""

from relcache.models.inputs import call, filled, image, text
from relcache.models.spec import ModelSpec, parallel

PRX = ModelSpec(
    class_name="PRXTransformer2DModel",
    modules=("blocks.*.attention", parallel("blocks.*", ("gate_proj", "up_proj"), "down_proj")),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=image("in_channels"),
        timestep=filled(0.5),
        encoder_hidden_states=text("context_in_dim"),
        attention_mask=filled(True, "batch", "text"),
    ),
    text=256,
)

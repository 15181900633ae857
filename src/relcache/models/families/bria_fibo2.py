"""FIBO 2 (Bria AI, 2026): Z-Image's noise refiner and blocks; some blocks also attend to the text encoder.

The perceiver makes gist tokens of the text. It does not depend on the sample and is computed at every step.
"""

from relcache.models.inputs import call, filled, image, random
from relcache.models.spec import ModelSpec

BRIA_FIBO2 = ModelSpec(
    class_name="BriaFibo2Transformer2DModel",
    modules=(
        "noise_refiner.*.attention",
        "noise_refiner.*.feed_forward",
        "layers.*.attention",
        "layers.*.cross_attention?",
        "layers.*.feed_forward",
    ),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=image("in_channels"),
        timestep=filled(0.5),
        # one text for the perceiver, and one for each block that attends to the text encoder
        encoder_hidden_states=random(
            "batch", lambda config, size: 1 + len(config.injection_layer_ids), "text", "cap_feat_dim"
        ),
    ),
    text=4096,  # the pipeline's limit; the blocks read 512 gist tokens of 2048 or more
)

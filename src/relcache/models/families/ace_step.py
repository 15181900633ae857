"""ACE-Step 1.5 (ACE Studio and StepFun, arXiv 2602.00744): attention, cross-attention and feed-forward of each block.

The length of latent audio is `width`.
"""

from relcache.models.inputs import call, filled, random, text, where
from relcache.models.spec import ModelSpec

ACE_STEP = ModelSpec(
    class_name="AceStepTransformer1DModel",
    modules=("layers.*.self_attn", "layers.*.cross_attn", "layers.*.mlp"),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=random("batch", "width", "audio_acoustic_hidden_dim"),
        timestep=filled(0.5),
        timestep_r=filled(0.5),
        encoder_hidden_states=text(where("encoder_hidden_size", "encoder_hidden_size", "hidden_size")),
        context_latents=random(
            "batch", "width", lambda config, size: config.in_channels - config.audio_acoustic_hidden_dim
        ),
    ),
    text=256,
)

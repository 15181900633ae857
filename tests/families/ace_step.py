from families import Family
from relcache import Size

FAMILY = Family(
    "AceStepTransformer1DModel",
    {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "in_channels": 12,
        "audio_acoustic_hidden_dim": 4,
        "patch_size": 2,
        "sliding_window": 2,
        "encoder_hidden_size": 24,
    },
    units=2 * 3,
    size=Size(batch=2, height=1, width=16, text=5),
)

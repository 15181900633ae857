from families import Family
from relcache import Size

FAMILY = Family(
    "StableAudioDiTModel",
    {
        "sample_size": 12,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "num_key_value_attention_heads": 1,
        "cross_attention_dim": 16,
        "time_proj_dim": 16,
        "global_states_input_dim": 10,
        "cross_attention_input_dim": 12,
    },
    units=2 * 3,
    size=Size(batch=2, height=1, width=12, text=5),
)

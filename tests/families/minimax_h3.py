from families import Family
from relcache import Size

FAMILY = Family(
    "MiniMaxH3Transformer3DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "hidden_size": 24,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "ffn_dim": 48,
        "in_channels": 4,
        "audio_in_channels": 6,
        "patch_size": (1, 2, 2),
        "text_dim": 12,
        "freq_dim": 32,
        "time_embed_hidden_dim": 24,
        "time_embed_dim": 16,
        "rope_freq_dim": 2,
    },
    units=2 * 2,
    size=Size(batch=3, height=4, width=6, frames=2, text=5),  # two samples would be as many as there are timesteps
)

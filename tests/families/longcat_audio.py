from families import Family
from relcache import Size

CONFIG = {"dit_dim": 32, "dit_depth": 2, "dit_heads": 2, "dit_text_dim": 12, "latent_dim": 4, "ff_mult": 2.0}
SIZE = Size(batch=2, height=1, width=12, text=5)

FAMILIES = [
    Family("LongCatAudioDiTTransformer", CONFIG, units=2 * 3, size=SIZE),
    Family(
        "LongCatAudioDiTTransformer",
        {**CONFIG, "cross_attn": False, "adaln_type": "local", "use_latent_condition": False, "long_skip": False},
        units=2 * 2,
        size=SIZE,
        variant="without-cross-attention",
    ),
]

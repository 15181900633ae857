from families import VIDEO, Family

LTX2 = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "audio_in_channels": 6,
    "audio_out_channels": 6,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "num_layers": 2,
    "caption_channels": 12,
}

FAMILIES = [
    Family("LTX2VideoTransformer3DModel", LTX2, units=2 * 8, size=VIDEO),
    Family(
        "LTX2VideoTransformer3DModel",
        LTX2
        | {
            "gated_attn": True,
            "cross_attn_mod": True,
            "audio_gated_attn": True,
            "audio_cross_attn_mod": True,
            "use_prompt_embeddings": False,
            "perturbed_attn": True,
            "rope_type": "split",
        },
        units=2 * 8,
        size=VIDEO,
        variant="2.3",
    ),
]

"""Transformers of diffusers that are not cached, each with the reason."""

UNSUPPORTED: dict[str, str] = {
    "DreamLiteTransformer2DModel": "a building block of DreamLite's U-Net; no pipeline calls it step by step",
    "RFD4ProteinaTransformer": "its forward runs one trunk several times, and a different number of times in each step",
    "TransformerTemporalModel": "a building block of video U-Nets; no pipeline calls it step by step",
}

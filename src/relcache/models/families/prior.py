"""Prior of unCLIP (OpenAI, arXiv 2204.06125), Kandinsky 2 and Shap-E: denoises an embedding, not an image.

Attention and feed-forward of each block are cached. A pipeline calls it `prior`.
"""

from typing import Any

import torch

from relcache.models.inputs import Size
from relcache.models.spec import ModelSpec


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    # The config fixes the number of tokens: each position has an embedding of its own.
    tokens = (size.batch, config.num_embeddings, config.embedding_dim)
    inputs = {
        "hidden_states": torch.randn(tokens),
        "timestep": torch.tensor(500),
        "proj_embedding": torch.randn(size.batch, config.embedding_proj_dim or config.embedding_dim),
    }
    if config.encoder_hid_proj_type is not None:  # Shap-E takes no text
        inputs["hidden_states"] = torch.randn(size.batch, config.embedding_dim)
        inputs["encoder_hidden_states"] = torch.randn(tokens)
        inputs["attention_mask"] = torch.ones(tokens[:2], dtype=torch.bool)
    return inputs


PRIOR = ModelSpec(
    class_name="PriorTransformer",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.ff"),
    conditioning=("proj_embedding", "encoder_hidden_states"),
    inputs=_inputs,
    text=77,
)

"""Prior of unCLIP (OpenAI, arXiv 2204.06125), Kandinsky 2 and Shap-E: denoises an embedding, not a picture.

Attention and feed-forward of each block are cached. A pipeline calls it `prior`.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    # The numbers of tokens are the model's: positions are learned one by one.
    many = (size.batch, config.num_embeddings, config.embedding_dim)
    inputs = {
        "hidden_states": torch.randn(many),
        "timestep": torch.tensor(500),
        "proj_embedding": torch.randn(size.batch, config.embedding_proj_dim or config.embedding_dim),
    }
    if config.encoder_hid_proj_type is not None:  # Shap-E is given no text
        inputs["hidden_states"] = torch.randn(size.batch, config.embedding_dim)
        inputs["encoder_hidden_states"] = torch.randn(many)
        inputs["attention_mask"] = torch.ones(many[:2], dtype=torch.bool)
    return inputs


PRIOR = ModelSpec(
    class_name="PriorTransformer",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.ff"),
    conditioning=("proj_embedding", "encoder_hidden_states"),
    inputs=_inputs,
    text=77,
)

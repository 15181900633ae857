"""ConsisID (PKU-YuanGroup, arXiv 2411.17440): CogVideoX; the video attends to a face after every other block."""

from relcache.models.inputs import call, filled, patches, random, rotation, several, text, where
from relcache.models.spec import ModelSpec, joint

CONSISID = ModelSpec(
    class_name="ConsisIDTransformer3DModel",
    modules=(
        joint("transformer_blocks.*.attn1"),
        "transformer_blocks.*.ff",
        joint("perceiver_cross_attention.*?", "hidden_states"),  # its first argument is the face
    ),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=random("batch", "frames", "in_channels", "height", "width"),
        encoder_hidden_states=text("text_embed_dim"),
        timestep=filled(500),
        image_rotary_emb=where(
            "use_rotary_positional_embeddings",
            rotation(lambda config, size: size.frames * patches(config, size), "attention_head_dim"),
        ),
        # one face for all samples
        id_cond=where("is_train_face", random(1, "LFE_id_dim")),
        id_vit_hidden=where("is_train_face", several("LFE_num_scale", random(1, 577, "LFE_vit_dim"))),
    ),
    text=226,
)

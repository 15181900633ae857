"""Train the text encoders of small-flux and small-video, and make their tokenizers.

    python training/train_text_encoders.py --out runs/text-encoders

They are small versions of CLIP's text model, T5's encoder and Llama. Each is trained alone, before the transformers,
until a linear layer reads the content of a prompt from its features. It takes minutes on two cores, and the same
command resumes. It writes `clip`, `t5` and `llama` in transformers' format, each with its tokenizer. Checkpoints and
losses are in `training-clip` and so on.

Two properties are built in rather than learnt.

*Padding is inert in T5.* FLUX masks padding neither in T5 nor in its own attention, and pads to the caller's length,
512 by default. Here no token attends to padding, and all padding tokens come out as the same vector. So the features of
the words do not depend on the amount of padding (`settle`).

*HunyuanVideo's prompt template is 95 tokens.* The pipeline cuts off a fixed number of features, those of its
instruction. So the Llama tokenizer turns that instruction into exactly 95 tokens.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from torch import nn

from loop import Run, learning_rate
from relcache_models import shapes

WIDTH = 64
HEADS = 4
CONSTANT, FLAG = WIDTH - 2, WIDTH - 1  # T5's two reserved features
LOUD, REPEL = 3e4, 16.0
UNSEEN = 1_000_000_000  # seed of the final test prompts
CLASSES = {
    "layout": len(shapes.LAYOUTS),
    "motion": len(shapes.MOTIONS),
    **{f"kind{i}": len(shapes.KINDS) for i in range(2)},
    **{f"colour{i}": len(shapes.COLOURS) for i in range(2)},
    **{f"size{i}": len(shapes.SIZES) for i in range(2)},
}


def words() -> list[str]:
    """Return all words of the grammar, sorted."""
    phrases = (*shapes.KINDS, *shapes.COLOURS, *shapes.SIZES, *shapes.PLACES.values(), *shapes.RELATIONS,
               *shapes.MOTIONS, "a an")  # fmt: skip
    return sorted({word for phrase in phrases for word in phrase.split()})


def word_tokenizer(specials: list[str], *, ending: str, normalizers: tuple = ()) -> tokenizers.Tokenizer:
    """Return a tokenizer of whole lower-case words without punctuation; a given `ending` follows each text."""
    vocabulary = {word: number for number, word in enumerate([*specials, *words()])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [
            *normalizers,
            tokenizers.normalizers.Lowercase(),
            tokenizers.normalizers.Replace(tokenizers.Regex("[.,!]"), " "),
        ]
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if ending:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"$A {ending}", special_tokens=[(ending, vocabulary[ending])]
        )
    return tokenizer


def t5_tokenizer() -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(["<pad>", "</s>", "<unk>"], ending="</s>"),
        pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512,
    )  # fmt: skip


def llama_tokenizer() -> transformers.PreTrainedTokenizerFast:
    instruction = DEFAULT_PROMPT_TEMPLATE["template"].split("{}")[0]
    normalizers = (
        tokenizers.normalizers.Replace(instruction, "<system> " * DEFAULT_PROMPT_TEMPLATE["crop_start"]),
        tokenizers.normalizers.Replace("<|eot_id|>", " <eot> "),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(["<pad>", "<eot>", "<unk>", "<system>"], ending="", normalizers=normalizers),
        pad_token="<pad>", eos_token="<eot>", unk_token="<unk>", padding_side="right", model_max_length=512,
    )  # fmt: skip


def clip_tokenizer() -> transformers.CLIPTokenizer:
    """Train byte-pair merges until each word of the grammar is one token; other words fall into pieces."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    alphabet = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2000, min_frequency=1, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*words(), *alphabet], trainer)
    model = json.loads(backend.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary.setdefault(special, len(vocabulary))
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split()) for merge in model["merges"]]
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    broken = [word for word in words() if len(tokenizer(word).input_ids) != 3]
    if broken:
        raise RuntimeError(f"these words are not one token: {broken}")
    return tokenizer


def clip_encoder(tokenizer: transformers.CLIPTokenizer) -> transformers.CLIPTextModel:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=WIDTH,
        num_hidden_layers=2, num_attention_heads=HEADS, max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return transformers.CLIPTextModel(config)


def t5_encoder(tokenizer: transformers.PreTrainedTokenizerFast) -> transformers.T5EncoderModel:
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=4 * WIDTH, num_layers=3, num_heads=HEADS,
        relative_attention_num_buckets=32, relative_attention_max_distance=64, dropout_rate=0.0, pad_token_id=0,
        feed_forward_proj="relu",
    )  # fmt: skip
    return transformers.T5EncoderModel(config)


def llama_encoder(tokenizer: transformers.PreTrainedTokenizerFast) -> transformers.LlamaModel:
    """Return a Llama of four layers; HunyuanVideo's pipeline uses the first two."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaModel(config)


@torch.no_grad()
def settle(encoder: transformers.T5EncoderModel) -> None:
    """Set the reserved weights of T5, which make padding inert.

    Feature CONSTANT is 1 for words, and feature FLAG is LOUD for padding. No layer writes to either. Only one feature
    of each head reads them: its query is CONSTANT, its key is FLAG, negated. So the attention logit of a word to
    padding is far below all others. FLAG dominates a padding token, so the final norm makes all of them the same
    vector.
    """
    reserved = slice(CONSTANT, None)
    table = encoder.shared.weight
    table[:, reserved] = 0
    table[:, CONSTANT] = 1
    table[0] = 0
    table[0, FLAG] = LOUD
    first = torch.arange(HEADS) * (WIDTH // HEADS)
    for block in encoder.encoder.block:
        attention, feed_forward = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
        for projection in (attention.q, attention.k, attention.v, feed_forward.wi):
            projection.weight[:, reserved] = 0
        for projection in (attention.o, feed_forward.wo):
            projection.weight[reserved] = 0
        attention.q.weight[first] = 0
        attention.k.weight[first] = 0
        attention.q.weight[first, CONSTANT] = REPEL
        attention.k.weight[first, FLAG] = -REPEL
        for layer in block.layer:
            layer.layer_norm.weight[reserved] = 1
    encoder.encoder.final_layer_norm.weight[reserved] = 1


def features(encoder: nn.Module, tokenizer, texts: list[str], prefix: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features (texts, tokens, WIDTH) that a pipeline would use, and their loss weights (texts, tokens).

    In T5 all words count. In CLIP the pooled token counts. In Llama, which is causal, the last token counts most.
    `prefix` is the number of instruction tokens before the prompt.
    """
    if isinstance(encoder, transformers.LlamaModel):
        texts = ["<system> " * prefix + text + " <eot>" for text in texts]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = tokens.input_ids, tokens.attention_mask.float()
    if isinstance(encoder, transformers.CLIPTextModel):
        pooled = encoder(ids).pooler_output[:, None]
        return pooled, torch.ones(len(texts), 1)
    if isinstance(encoder, transformers.T5EncoderModel):
        return encoder(ids)[0], mask
    hidden = encoder(ids, attention_mask=tokens.attention_mask, output_hidden_states=True).hidden_states[-3]
    last = F.one_hot(mask.sum(1).long() - 1, mask.shape[1])
    return hidden[:, prefix:], (0.05 * mask + last)[:, prefix:]


def train(name: str, encoder: nn.Module, tokenizer, options: argparse.Namespace) -> None:
    """Train one encoder and write it with its tokenizer."""
    torch.manual_seed(0)
    heads = nn.ModuleDict({key: nn.Linear(WIDTH, count + 1) for key, count in CLASSES.items()})
    model = nn.ModuleDict({"encoder": encoder, "heads": heads})
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.01)
    settled = settle if isinstance(encoder, transformers.T5EncoderModel) else lambda encoder: None
    settled(encoder)

    def right(prompts: list[shapes.Prompt], prefix: int) -> tuple[torch.Tensor, torch.Tensor]:
        found, weight = features(encoder, tokenizer, [str(prompt) for prompt in prompts], prefix)
        loss, correct = torch.zeros(()), torch.ones(len(prompts), dtype=torch.bool)
        best = weight.argmax(1)
        for key, values in shapes.said(prompts).items():
            logits = heads[key](found)
            target = (values + 1)[:, None].expand(weight.shape)
            each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(weight)
            loss = loss + (each * weight).sum() / weight.sum()
            correct &= logits[torch.arange(len(prompts)), best].argmax(-1) == values + 1
        return loss, correct

    run = Run(options.out / f"training-{name}", options.updates, model, every=250, optimiser=optimiser)
    for update in run:
        rng = random.Random(update)
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * learning_rate(update, options.updates)
        prompts = [
            shapes.sample_prompt(rng, video=rng.random() < 0.4, open_colours=options.open_colours)
            for _ in range(options.batch)
        ]
        loss, _ = right(prompts, rng.choice((0, DEFAULT_PROMPT_TEMPLATE["crop_start"])))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        settled(encoder)
        run.done(options.batch, loss=loss.item())
    if not run.is_complete:
        raise SystemExit(f"{name} is not finished: run the same command to resume")
    rng = random.Random(UNSEEN)
    with torch.no_grad():
        for held_out in (False, True):
            prompts = [shapes.sample_prompt(rng, video=i % 2 == 0, held_out=held_out) for i in range(options.checks)]
            said = "held-out" if held_out else "other"
            print(name, said, "prompts understood:", right(prompts, 95)[1].float().mean().item(), flush=True)
    encoder.eval().save_pretrained(options.out / name)
    tokenizer.save_pretrained(options.out / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=("t5", "clip", "llama"), default=("t5", "clip", "llama"))
    parser.add_argument("--updates", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--open-colours", type=float, default=0.3, help="share of shapes whose colour is left open")
    parser.add_argument("--checks", type=int, default=1000, help="test prompts of each sort at the end")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    for name, make_tokenizer, make_encoder in (
        ("t5", t5_tokenizer, t5_encoder),
        ("clip", clip_tokenizer, clip_encoder),
        ("llama", llama_tokenizer, llama_encoder),
    ):
        if name not in options.only:
            continue
        tokenizer = make_tokenizer()
        train(name, make_encoder(tokenizer), tokenizer, options)


if __name__ == "__main__":
    main()

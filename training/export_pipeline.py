"""Write small-flux (`text`) or small-video (`video`) as a pipeline folder, from the results of the training scripts.

    python training/export_pipeline.py text --out shipped-models/src/relcache_models/small-flux
    python training/export_pipeline.py video --out shipped-models/src/relcache_models/small-video

It stores the moving average of the transformer's weights in half precision. The run need not be finished.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    HunyuanVideoPipeline,
)

import pipeline_folder
from train_transformer import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("text", "video"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", type=Path, help="default: runs/transformer-TASK")
    parser.add_argument("--autoencoder", type=Path, help="default: runs/autoencoder-TASK/autoencoder")
    parser.add_argument("--text-encoders", type=Path, default=Path("runs/text-encoders"))
    parser.add_argument("--heads", type=int, default=4)
    options = parser.parse_args()
    run = options.run or Path(f"runs/transformer-{options.task}")
    autoencoder = options.autoencoder or Path(f"runs/autoencoder-{options.task}/autoencoder")

    saved = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    transformer = build(options.task, options.heads)
    transformer.load_state_dict(saved["average"])
    transformer = transformer.half().eval()
    texts = options.text_encoders
    clip = transformers.CLIPTextModel.from_pretrained(texts / "clip", dtype=torch.float32)
    clip_tokenizer = transformers.CLIPTokenizer.from_pretrained(texts / "clip")
    if options.task == "text":
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=AutoencoderKL.from_pretrained(autoencoder),
            text_encoder=clip,
            tokenizer=clip_tokenizer,
            text_encoder_2=transformers.T5EncoderModel.from_pretrained(texts / "t5", dtype=torch.float32),
            tokenizer_2=transformers.PreTrainedTokenizerFast.from_pretrained(texts / "t5"),
            transformer=transformer,
        )
    else:
        pipeline = HunyuanVideoPipeline(
            text_encoder=transformers.LlamaModel.from_pretrained(texts / "llama", dtype=torch.float32),
            tokenizer=transformers.PreTrainedTokenizerFast.from_pretrained(texts / "llama"),
            transformer=transformer,
            vae=AutoencoderKLHunyuanVideo.from_pretrained(autoencoder),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder_2=clip,
            tokenizer_2=clip_tokenizer,
        )
    pipeline_folder.write_pipeline(options.out, pipeline)
    for log, name in (
        (run / "loss.jsonl", "loss.jsonl"),
        (autoencoder.parent / "loss.jsonl", "loss-autoencoder.jsonl"),
        (autoencoder.parent / "reconstruction.png", "reconstruction.png"),
    ):
        shutil.copyfile(log, options.out / name)
    print(f"{options.out}: the average of {saved['update']} updates")


if __name__ == "__main__":
    main()

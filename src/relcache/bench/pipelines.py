"""Loading class-conditional pipelines: a shipped model by name, a local folder, or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, DiTPipeline
from diffusers.utils import logging

import relcache_models

DEFAULT_MODEL = "dit-fashion-mnist"


def load_pipeline(model: str = DEFAULT_MODEL, device: str = "auto", dtype: str = "float32") -> DiTPipeline:
    """The class-conditional pipeline `model` on `device`, ready to sample.

    Args:
        model: name of a shipped model, a folder in diffusers' format, or a hub id such as "facebook/DiT-XL-2-256".
        device: "cpu", "cuda", …; "auto" takes a GPU where there is one.
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        ValueError: an unknown dtype, a folder that holds no pipeline or a broken one, or a pipeline of another task.
    """
    precision = getattr(torch, dtype, None)
    if precision not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is float32, bfloat16 or float16, got {dtype!r}")
    source: str | Path = relcache_models.folder(model) if model in relcache_models.names() else model
    if Path(source).is_dir() and not (Path(source) / "model_index.json").is_file():
        raise ValueError(f"{source} holds no model_index.json, so it is not a pipeline folder of diffusers")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"the device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(source, dtype=precision)
    except Exception as error:
        raise ValueError(
            f"could not load {model!r} ({type(error).__name__}: {error}). Shipped models: "
            f"{', '.join(relcache_models.names())}; else give a folder in diffusers' format or a hub id"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    if not isinstance(pipeline, DiTPipeline):
        raise ValueError(f"{model} is a {type(pipeline).__name__}; this command samples class-conditional DiTPipelines")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def number_of_classes(pipeline: DiTPipeline) -> int:
    """How many classes the pipeline has pictures of: those it has names for, else all of its transformer's."""
    return max(pipeline.labels.values(), default=pipeline.transformer.config.num_embeds_ada_norm - 1) + 1


def class_numbers(pipeline: DiTPipeline, names: list[str]) -> list[int]:
    """Class labels from names or numbers.

    Raises:
        ValueError: a name that the pipeline does not know; the message lists those that it does.
    """
    known = {name.lower(): number for name, number in pipeline.labels.items()}
    numbers = []
    for name in names:
        if name.strip().isdigit():
            numbers.append(int(name))
        elif name.strip().lower() in known:
            numbers.append(known[name.strip().lower()])
        else:
            raise ValueError(f"unknown class {name!r}; the model knows {', '.join(pipeline.labels) or 'numbers only'}")
    for number in numbers:
        if number >= number_of_classes(pipeline):
            raise ValueError(f"unknown class {number}; the model's classes are 0 to {number_of_classes(pipeline) - 1}")
    return numbers

"""Load pipelines: a shipped model by name, a local folder, or a hub id."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

import relcache_models
from relcache.checks import did_you_mean, unknown

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, DiTPipeline


DEFAULT_MODEL = "dit-fashion-mnist"
MODEL_INDEX = "model_index.json"  # in each folder of a pipeline
DTYPES = ("float32", "bfloat16", "float16")
OFFLOADS = ("none", "model", "group", "sequential")
MOST_NAMES = 3  # of weights in a message
OF_TRANSFORMERS = re.compile(r"LOAD REPORT\S* from: (?P<folder>.+)")
ROW = re.compile(r"^\s*(?P<name>\S+)\s*\|\s*(?P<state>MISSING|MISMATCH)", re.MULTILINE)
OF_DIFFUSERS = re.compile(
    r"not initialized from the model checkpoint at (?P<folder>.+?) and are newly .*?:\s*\[(?P<names>.*?)\]"
)


def load_pipeline(
    model: str = DEFAULT_MODEL, device: str = "auto", dtype: str = "float32", offload: str = "none"
) -> DiffusionPipeline:
    """Load the pipeline `model` onto `device`, ready to sample.

    Args:
        model: name of a shipped model, a folder in diffusers' format, or a hub id such as "facebook/DiT-XL-2-256" or
            "black-forest-labs/FLUX.1-dev".
        device: "cpu", "cuda", …; "auto" takes a GPU if there is one.
        dtype: "float32", "bfloat16" or "float16".
        offload: "none", or the weights that stay in main memory until they are needed: whole models ("model"), single
            layers copied while others compute ("group"), or single layers ("sequential"). Each saves more GPU memory
            than the one before, and is slower.

    Raises:
        ValueError: an unknown dtype or offload, an unusable device, a folder without a pipeline, or with a broken one.
    """
    precision = precision_of(dtype)
    if offload not in OFFLOADS:
        raise ValueError(unknown("offload", offload, OFFLOADS))
    source = model_folder(model)
    if source.is_file():
        raise ValueError(f"{source} is a file: give a folder in diffusers' format")
    if source.is_dir() and not (source / MODEL_INDEX).is_file():
        raise ValueError(f"{source} holds no {MODEL_INDEX}, so it is not a pipeline folder of diffusers")
    device = usable_device(device)
    if offload != "none" and torch.device(device).type == "cpu":
        raise ValueError(f"offload {offload!r} keeps weights off a GPU until they are needed; on the CPU leave it out")
    pipeline = _load(model, source, precision)
    pipeline.set_progress_bar_config(disable=True)
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    elif offload == "group":
        # Single layers: hooks on blocks would miss the calls of an autoencoder's parts.
        pipeline.enable_group_offload(
            onload_device=torch.device(device), offload_device=torch.device("cpu"), offload_type="leaf_level",
            use_stream=torch.device(device).type == "cuda",
        )  # fmt: skip
    else:
        pipeline.to(device)
    return pipeline


def model_folder(model: str) -> Path:
    """Return the folder of a shipped model, else `model` as a path."""
    return relcache_models.folder(model) if model in relcache_models.names() else Path(model)


def precision_of(dtype: str) -> torch.dtype:
    """Return the torch dtype of this name.

    Raises:
        ValueError: an unsupported dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(unknown("dtype", dtype, DTYPES))
    return getattr(torch, dtype)


def usable_device(device: str) -> str:
    """Return `device`; for "auto" a GPU if there is one, else the CPU.

    Raises:
        ValueError: a device that cannot be used here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # also for "meta", which has no values
        raise ValueError(f"the device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _load(model: str, source: Path, precision: torch.dtype) -> Any:
    with silent_imports():
        from diffusers import DiffusionPipeline

    failed: Exception | None = None
    with quiet_loading() as messages:
        try:
            pipeline = DiffusionPipeline.from_pretrained(source if source.is_dir() else model, dtype=precision)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            failed = error
    lacking = missing_weights(messages)
    if failed is not None:
        broken = _broken(source) if source.is_dir() else ""
        reason = "; ".join(filter(None, (broken, lacking))) + " " * bool(broken or lacking)
        reason += f"({type(failed).__name__}: {' '.join(str(failed).split())})"
        shipped = pipelines_shipped()
        raise ValueError(
            f"could not load {model!r}: {did_you_mean(model, shipped)}{reason}. Shipped models: {', '.join(shipped)}; "
            "else give a folder in diffusers' format or a hub id"
        ) from failed
    if lacking:
        raise ValueError(f"could not load {model!r}: {lacking}")
    return pipeline


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def silent_imports() -> Iterator[None]:
    """Suppress all warnings and log lines, as other packages print them when they are imported."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def quiet_loading() -> Iterator[list[str]]:
    """Suppress progress bars and output of both libraries, and yield the list that collects their warnings."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    collector = _Collector()
    with ExitStack() as stack:
        for library in (diffusers_logging, transformers_logging):
            stack.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_warning()
            library.disable_default_handler()
            stack.callback(library.enable_default_handler)
            library.add_handler(collector)
            stack.callback(library.remove_handler, collector)
            if library.is_progress_bar_enabled():
                stack.callback(library.enable_progress_bar)
            library.disable_progress_bar()
        yield collector.messages


def missing_weights(messages: list[str]) -> str:
    """Describe weights that are missing or have another shape, for a message; return "" without any."""
    found = []
    for text in messages:
        report, line = OF_TRANSFORMERS.search(text), OF_DIFFUSERS.search(text)
        names = [row["name"] for row in ROW.finditer(text)] if report else []
        if line:
            names = re.findall(r"'([^']+)'", line["names"])
        if names:
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            folder = (report or line)["folder"].strip()  # type: ignore[index]
            found.append(
                f"the weights in {folder} lack {', '.join(names[:MOST_NAMES])}{more}, or have them in another shape"
            )
    return "; ".join(found)


def pipelines_shipped() -> list[str]:
    """Return the names of the shipped models that can be sampled."""
    return [name for name in relcache_models.names() if (relcache_models.folder(name) / MODEL_INDEX).is_file()]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that main memory or a device's memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    pattern = r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED"
    return isinstance(error, RuntimeError) and re.search(pattern, str(error), re.IGNORECASE) is not None


def _broken(folder: Path) -> str:
    """Describe the files of `folder` that cannot be read, for a message; return "" if all can."""
    found = []
    for path in sorted(folder.rglob("*.*")):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as weights:
                    weights.keys()
            elif path.suffix == ".json" and not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
                raise ValueError("it holds no table")
        except Exception as error:
            found.append(f"{path} is broken: {error}")
    return "; ".join(found)


def is_class_conditional(pipeline: Any) -> bool:
    """Whether the pipeline takes classes, not prompts."""
    from diffusers import DiTPipeline

    return isinstance(pipeline, DiTPipeline)


def number_of_classes(pipeline: DiTPipeline) -> int:
    """Return how many classes the pipeline can draw: all that it names, else all of its transformer's."""
    return max(pipeline.labels.values(), default=pipeline.transformer.config.num_embeds_ada_norm - 1) + 1


def class_names(model: str) -> dict[int, str]:
    """Return the names of the classes that the pipeline in a folder, or a shipped one, can draw; none for a hub id."""
    try:
        index = json.loads((model_folder(model) / MODEL_INDEX).read_text(encoding="utf-8"))
        return {int(label): str(name) for label, name in (index.get("id2label") or {}).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def class_count(model: str) -> int | None:
    """Return how many classes the pipeline in a folder, or a shipped one, can draw; None for a hub id."""
    folder = model_folder(model)
    try:
        labels = json.loads((folder / MODEL_INDEX).read_text(encoding="utf-8")).get("id2label") or {}
        config = json.loads((folder / "transformer/config.json").read_text(encoding="utf-8"))
        return max((int(label) for label in labels), default=config.get("num_embeds_ada_norm", 1000) - 1) + 1
    except (OSError, ValueError, TypeError, AttributeError):  # loading it will say what is wrong
        return None


def class_numbers(pipeline: DiTPipeline, names: list[str]) -> list[int]:
    """Return the class labels of names or numbers.

    Raises:
        ValueError: a name that the pipeline does not know; the message lists the known names.
    """
    known = {name.lower(): number for name, number in pipeline.labels.items()}
    numbers = []
    for name in names:
        if re.fullmatch("[0-9]{1,9}", name.strip()):
            numbers.append(int(name))
        elif name.strip().lower() in known:
            numbers.append(known[name.strip().lower()])
        else:
            if not pipeline.labels:
                raise ValueError(f"unknown class {name!r}: the model has numbers only, as it names no classes")
            raise ValueError(unknown("class", name.strip(), pipeline.labels))
    for number in numbers:
        if number >= number_of_classes(pipeline):
            raise ValueError(f"unknown class {number}; the model's classes are 0 to {number_of_classes(pipeline) - 1}")
    return numbers

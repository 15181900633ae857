"""The shipped models: plain diffusers loads them, they are small, and their pictures show the class asked for."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline, DiTTransformer2DModel, FluxPipeline, HunyuanVideoPipeline
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

import relcache
import relcache_models
from relcache_models import shapes
from relcache_models.classifier import Classifier
from relcache_models.recogniser import Recogniser
from relcache_models.weights import load_weights

MODEL = relcache_models.folder("dit-fashion-mnist")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")


def test_names_and_folders() -> None:
    assert relcache_models.names() == [
        "classifier-fashion-mnist", "dit-fashion-mnist", "recogniser-clips", "recogniser-pictures", "small-flux",
        "small-video",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="there are: classifier-fashion-mnist, dit-fashion-mnist, recogniser"):
        relcache_models.folder("dit-cifar")


def test_sizes() -> None:
    assert size(MODEL) <= 24e6
    assert size(relcache_models.folder("classifier-fashion-mnist")) <= 2e6
    assert size(relcache_models.folder("small-flux")) <= 24e6
    assert size(relcache_models.folder("small-video")) <= 24e6
    assert size(relcache_models.folder("recogniser-pictures")) <= 2e6
    assert size(relcache_models.folder("recogniser-clips")) <= 2e6
    assert sum(size(relcache_models.folder(name)) for name in relcache_models.names()) <= 48e6
    assert size(Path(relcache.__file__).parent) < 1.0e6  # what the library's own wheel holds
    for name in relcache_models.names():
        assert (relcache_models.folder(name) / "README.md").stat().st_size > 500


@pytest.mark.parametrize("kind", [Classifier, Recogniser])
def test_broken_judges_are_named(kind: type, tmp_path: Path) -> None:
    name = "classifier-fashion-mnist" if kind is Classifier else "recogniser-pictures"
    shutil.copytree(relcache_models.folder(name), tmp_path / "judge")
    weights = tmp_path / "judge" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"{re.escape(str(weights))} is broken"):
        kind.from_pretrained(tmp_path / "judge")
    whole = load_weights(relcache_models.folder(name) / "model.safetensors")
    first, *_ = sorted(whole)
    for changed, message in (
        ({key: value for key, value in whole.items() if key != first}, f"lacks the weight {first}"),
        ({**whole, "more": torch.zeros(1)}, "holds more, which is no weight of it"),
        ({**whole, first: torch.zeros(7, 7)}, re.escape(f"{first} is (7, 7), expected")),
    ):
        save_file(changed, weights)
        with pytest.raises(ValueError, match=f"{re.escape(str(weights))}.* {message}"):
            kind.from_pretrained(tmp_path / "judge")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        kind.from_pretrained(tmp_path / "judge")


@pytest.mark.parametrize("content", ["null", "{", '{"sides": 3}', '{"side": "x"}', '{"side": -16}'])
def test_the_config_of_a_recogniser_that_was_edited(content: str, tmp_path: Path) -> None:
    shutil.copytree(relcache_models.folder("recogniser-pictures"), tmp_path / "judge")
    (tmp_path / "judge/config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is not the config of a recogniser|of this config|expected"):
        Recogniser.from_pretrained(tmp_path / "judge")


def test_pictures_of_another_size_are_refused_by_the_classifier() -> None:
    judge = Classifier.from_pretrained(relcache_models.folder("classifier-fashion-mnist"))
    with pytest.raises(ValueError, match=r"takes \(n, 1, 28, 28\), got \(2, 3, 32, 32\)"):
        judge(torch.zeros(2, 3, 32, 32))


def test_text_encoders_are_as_older_versions_name_them() -> None:
    """transformers 4 knows no `TokenizersBackend`; its CLIP wants vocabulary and merges in files, and longer names."""
    for model in ("small-flux", "small-video"):
        folder = relcache_models.folder(model)
        index = json.loads((folder / "model_index.json").read_text())
        for name in ("tokenizer", "tokenizer_2"):
            kind = json.loads((folder / name / "tokenizer_config.json").read_text())["tokenizer_class"]
            assert index[name] == ["transformers", kind]
            assert kind in ("PreTrainedTokenizerFast", "CLIPTokenizer")
            if kind == "CLIPTokenizer":
                vocabulary = json.loads((folder / name / "vocab.json").read_text())
                tokenizer = CLIPTokenizer.from_pretrained(folder / name)
                assert vocabulary.items() <= tokenizer.get_vocab().items()
                assert (folder / name / "merges.txt").read_text().startswith("#version: 0.2\n")
        clip = folder / ("text_encoder" if model == "small-flux" else "text_encoder_2") / "model.safetensors"
        assert all(name.startswith("text_model.") for name in load_weights(clip))


def test_transformer_loads_as_the_plain_class() -> None:
    transformer = DiTTransformer2DModel.from_pretrained(MODEL / "transformer")
    assert len(transformer.transformer_blocks) >= 12
    assert all(parameter.isfinite().all() for parameter in transformer.parameters())


def test_autoencoder_is_the_identity() -> None:
    vae = DiTPipeline.from_pretrained(MODEL).vae
    pictures = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert (vae.decode(pictures).sample - pictures).abs().max() < 5e-4
        assert (vae.encode(pictures).latent_dist.mode() - pictures).abs().max() < 5e-4


def test_pictures_show_the_class_asked_for() -> None:
    """Of 60 pictures made with full compute; the whole claim, over 1,000, is in the model card with its command."""
    pipeline = DiTPipeline.from_pretrained(MODEL)
    pipeline.set_progress_bar_config(disable=True)
    labels = [index % 10 for index in range(60)]
    pictures = pipeline(
        labels, 1.5, [torch.Generator().manual_seed(seed) for seed in range(60)], 25, output_type="pt"
    ).images
    classifier = Classifier.from_pretrained(relcache_models.folder("classifier-fashion-mnist"))
    with torch.no_grad():
        right = (classifier(pictures).argmax(1) == torch.tensor(labels)).float().mean()
    assert right >= 0.75  # 85 % less two standard deviations of a share of 60


class Prompted(NamedTuple):
    """What is known of a shipped model that is asked by prompts: how it is called, and what judges it."""

    pipeline: type[DiffusionPipeline]
    options: dict[str, int]
    recogniser: str
    right: float  # the card's share of prompts wholly right, less two standard deviations of a share of 24
    prompts: list[str]


PROMPTED = {
    "small-flux": Prompted(
        FluxPipeline, {"height": 64, "width": 64, "max_sequence_length": 16}, "recogniser-pictures", 0.76,
        ["a large red circle above a large blue square", "a small white star on the left", "a purple ring"],
    ),
    "small-video": Prompted(
        HunyuanVideoPipeline, {"height": 48, "width": 48, "num_frames": 9}, "recogniser-clips", 0.6,
        ["a large red circle moves left", "a small white star bounces", "a purple ring grows"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=PROMPTED)
def small(request: pytest.FixtureRequest) -> tuple[Prompted, DiffusionPipeline]:
    """A model that is asked by prompts, as plain diffusers loads it."""
    known = PROMPTED[request.param]
    pipeline = known.pipeline.from_pretrained(relcache_models.folder(request.param))
    pipeline.set_progress_bar_config(disable=True)
    return known, pipeline


def shown(
    small: tuple[Prompted, DiffusionPipeline], prompts: list[str], seeds: list[int], steps: int, **changes: int
) -> Tensor:
    """What the plain pipeline makes with the model's options and `changes`: (n, frames, 3, height, width)."""
    known, pipeline = small
    made = pipeline(
        prompts, num_inference_steps=steps, output_type="pt",
        generator=[torch.Generator().manual_seed(seed) for seed in seeds], **{**known.options, **changes},
    )  # fmt: skip
    return made.frames if hasattr(made, "frames") else made.images[:, None]


def test_prompted_models_are_of_the_size_they_say(small: tuple[Prompted, DiffusionPipeline]) -> None:
    config = small[1].transformer.config
    assert (config.num_layers, config.num_single_layers) == (4, 8)
    assert config.num_attention_heads * config.attention_head_dim == 128
    assert all(parameter.isfinite().all() for parameter in small[1].transformer.parameters())


def test_what_is_made_shows_what_prompts_say(small: tuple[Prompted, DiffusionPipeline]) -> None:
    """Of 24 prompts with full compute; the whole claim, over 128, is in the model card with its command."""
    known, _ = small
    video = "num_frames" in known.options
    prompts = [shapes.sample_prompt(random.Random(seed), video=video) for seed in range(24)]
    made = shown(small, [str(prompt) for prompt in prompts], list(range(24)), steps=20)
    recogniser = Recogniser.from_pretrained(relcache_models.folder(known.recogniser))
    assert recogniser.judge(made, prompts)["right"].float().mean() >= known.right


@pytest.mark.parametrize("small", ["small-flux"], indirect=True)
def test_padding_of_the_prompt_hardly_matters(small: tuple[Prompted, DiffusionPipeline]) -> None:
    """With 512 text tokens, as FLUX has them unless told, the picture is about that with 16."""
    prompts = small[0].prompts[:1]
    short, long = (shown(small, prompts, [0], 12, max_sequence_length=length) for length in (16, 512))
    assert (short - long).abs().mean() < 0.03


def test_prompts_in_one_batch_do_not_touch(small: tuple[Prompted, DiffusionPipeline]) -> None:
    """With steps fixed beforehand, what is made alone and what is made among others agree to 1e-4."""
    known, pipeline = small
    with relcache.enable(pipeline, relcache.method_from_text("plan:full_steps=[0,1,2,5,9,14],order=2")):
        together = shown(small, known.prompts, [0, 1, 2], steps=18)
        for row, prompt in enumerate(known.prompts):
            alone = shown(small, [prompt], [row], steps=18)
            assert (together[row] - alone[0]).abs().max() < 1e-4

"""The training scripts on very little data, for very few updates: they run, resume, and export what they trained."""

from __future__ import annotations

import gzip
import io
import json
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline
from torch import Tensor

SCRIPTS = Path(__file__).parents[2] / "training"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with four IDX files, two of them gzipped."""
    folder = tmp_path / "data"
    folder.mkdir()
    random = np.random.default_rng(0)
    for stem, count in (("train", 40), ("t10k", 20)):
        pictures = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        head = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pictures.tobytes()))
        head = b"\x00\x00\x08\x01" + count.to_bytes(4, "big")
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return folder


def script(name: str, *arguments: object) -> str:
    """Output of a training script, run as `python name` would but in this process, which has imported what it needs."""
    path = str(SCRIPTS / name)
    output = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [path, *map(str, arguments)]),
        mock.patch.object(sys, "path", [str(SCRIPTS), *sys.path]),
        redirect_stdout(output),
    ):
        runpy.run_path(path, run_name="__main__")
    return output.getvalue()


def train(data: Path, run: Path, export: Path, updates: int) -> str:
    return script(
        "train_dit.py", "--data", data, "--run", run, "--export", export, "--updates", updates, "--batch", 4,
        "--layers", 2, "--heads", 2, "--head-width", 8, "--no-compile", "--checkpoint-every", 3,
    )  # fmt: skip


def test_training_resumes_and_exports(data: Path, tmp_path: Path) -> None:
    assert "stopped at update 4 of 4" in train(data, tmp_path / "run", tmp_path / "export", 4)
    assert "resumed at update 4" in train(data, tmp_path / "run", tmp_path / "export", 6)
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert saved["update"] == 6

    pipeline = DiTPipeline.from_pretrained(tmp_path / "export")
    state = pipeline.transformer.state_dict()
    average = saved["average"]
    for block in range(2):  # the shared embedding stands in each block
        for name, value in average.items():
            if name.startswith("embedding."):
                copy = state[f"transformer_blocks.{block}.norm1.emb.{name[len('embedding.') :]}"]
                assert torch.equal(copy, value.half().float())
    assert torch.equal(state["proj_out_2.weight"], average["transformer.proj_out_2.weight"].half().float())
    assert state["proj_out_2.weight"].abs().sum() > 0  # it starts at zero
    assert pipeline.labels["bag"] == 8
    assert pipeline.scheduler.config.prediction_type == "epsilon"


def test_idx_files(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import fashion_mnist

    images, labels = fashion_mnist.load("train", data)
    assert images.shape == (40, 1, 28, 28)
    assert labels[:11].tolist() == [*range(10), 0]
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist, or give the folder"):
        fashion_mnist.load("train", tmp_path)
    broken = data / "train-labels-idx1-ubyte"
    broken.write_bytes(broken.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"holds 35 bytes of data, its header announces \(40,\)"):
        fashion_mnist.load("train", data)
    broken.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="not an IDX file"):
        fashion_mnist.load("train", data)


def test_classifier_training(data: Path, tmp_path: Path) -> None:
    """The one that is run as a command: it needs nothing but torch, and starts in a moment."""
    command = [
        sys.executable, str(SCRIPTS / "train_classifier.py"), "--data", str(data), "--export", str(tmp_path / "out"),
        "--epochs", "2", "--batch", "8",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    from relcache_models.classifier import Classifier

    classifier = Classifier.from_pretrained(tmp_path / "out")
    assert not classifier.training
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert 0 <= metrics["test_accuracy"] <= 1


@pytest.mark.parametrize("task", ["text", "video"])
def test_training_of_a_text_model(task: str, tmp_path: Path) -> None:
    """Encoders, autoencoder, transformer, pipeline: plain diffusers loads the folder and samples it."""
    encoders, autoencoder, run = (tmp_path / part for part in ("encoders", "autoencoder", "run"))
    names = ["clip", "t5" if task == "text" else "llama"]
    script("train_text_encoders.py", "--out", encoders, "--only", *names, "--updates", 2, "--batch", 4, "--checks", 8)
    brief = ["--updates", 2, "--batch", 4, "--measured", 4]
    if task == "video":
        script("train_autoencoder.py", "text", "--run", tmp_path / "pictures", *brief)
        brief += ["--pictures", tmp_path / "pictures" / "autoencoder"]
    script("train_autoencoder.py", task, "--run", autoencoder, *brief)
    assert (autoencoder / "reconstruction.png").stat().st_size > 1000
    where = ["--autoencoder", autoencoder / "autoencoder", "--text-encoders", encoders]
    small = ["--heads", 2, "--batch", 4, "--first", 8, "--fresh", 2, "--no-compile"]
    train = ("train_transformer.py", task, "--run", run, *where, *small, "--distil", 0.5, "--updates")
    assert "stopped at update 2 of 2" in script(*train, 2)
    with (run / "loss.jsonl").open("a") as log:  # as a run leaves it that was killed after its checkpoint
        log.write('{"update": 3, "loss": 9.0}\n')
    assert "resumed at update 2" in script(*train, 4)
    assert [json.loads(row)["update"] for row in (run / "loss.jsonl").read_text().splitlines()] == [2, 4]
    script("export_pipeline.py", task, "--out", tmp_path / "model", "--run", run, *where, "--heads", 2)

    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    average = torch.load(run / "checkpoint.pt", weights_only=True)["average"]
    state = pipeline.transformer.state_dict()
    assert all(torch.equal(state[name], value.half().float()) for name, value in average.items())
    assert state["proj_out.weight"].abs().sum() > 0  # it starts at zero
    size = {"height": 64, "width": 64} if task == "text" else {"height": 48, "width": 48, "num_frames": 9}
    made = pipeline("a red circle", num_inference_steps=2, output_type="np", max_sequence_length=16, **size)
    pixels = made.images if task == "text" else made.frames
    assert pixels.shape == ((1, 64, 64, 3) if task == "text" else (1, 9, 48, 48, 3))


def test_inflated_models_agree_with_those_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a clip of one frame: the same velocity for the same features of text, and nearly the same decoded picture."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import train_autoencoder
    import train_transformer as scripts

    class Embedder(torch.nn.Module):
        def forward(self, features: Tensor, timestep: Tensor, mask: Tensor) -> Tensor:
            return flux.context_embedder(features)

    torch.manual_seed(0)
    flux, hunyuan = scripts.build("text", 2).eval(), scripts.build("video", 2).eval()
    scripts.inflate(hunyuan, flux)
    hunyuan.context_embedder = Embedder()
    latents, sigma, guidance = torch.randn(2, 8, 16, 16), torch.tensor([0.3, 0.9]), torch.tensor([3.0, 5.0])
    texts = torch.randn(2, scripts.TOKENS, 64), torch.ones(2, scripts.TOKENS), torch.randn(2, 64), torch.zeros(2)
    with torch.no_grad():
        pictures, hidden = scripts.Velocity("text", flux)(latents, sigma, guidance, *texts)
        further = torch.randn(2, 8, 1, 16, 16)  # channels
        clips, same = scripts.Velocity("video", hunyuan)(
            torch.cat([latents[:, :, None], further], 1), sigma, guidance, *texts
        )
    assert pictures.std() > 0.1
    assert torch.allclose(clips[:, :8, 0], pictures, rtol=0, atol=1e-5)
    assert torch.allclose(same, hidden, rtol=0, atol=1e-5)

    two, three = train_autoencoder.build("text").eval(), train_autoencoder.build("video").eval()
    train_autoencoder.inflate(three, two)
    latents = torch.randn(2, 8, 32, 32)
    with torch.no_grad():
        wanted = two.decode(latents).sample
        found = three.decode(torch.cat([latents, torch.zeros_like(latents)], 1)[:, :, None]).sample[:, :, 0]
    # The borders are padded differently, and the group norms notice it a little.
    middle = torch.stack([pixels[..., 48:-48, 48:-48].flatten() for pixels in (wanted, found)])
    assert torch.corrcoef(middle)[0, 1] > 0.99


def test_padding_is_inert_in_t5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of the words do not change with the padding behind them, and all padding has the same features."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import train_text_encoders as scripts

    tokenizer = scripts.t5_tokenizer()
    encoder = scripts.t5_encoder(tokenizer).eval()
    scripts.settle(encoder)
    with torch.no_grad():
        found = [
            encoder(tokenizer("a red star", padding="max_length", max_length=length, return_tensors="pt").input_ids)[0][
                0
            ]
            for length in (4, 16, 512)
        ]
    for features in found[1:]:
        assert torch.allclose(features[:4], found[0], rtol=0, atol=1e-5)  # products of other sizes round otherwise
        assert (features[4:] - features[4]).abs().max() < 1e-3 * features[4].abs().max()


def test_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import train_text_encoders as scripts

    template = scripts.DEFAULT_PROMPT_TEMPLATE
    llama = scripts.llama_tokenizer()
    prompt = "A small red circle moves left."
    ids = llama(template["template"].format(prompt)).input_ids
    words = llama.convert_ids_to_tokens(ids)
    assert words[: template["crop_start"]] == ["<system>"] * 95
    assert words[95:] == ["a", "small", "red", "circle", "moves", "left", "<eot>"]
    t5 = scripts.t5_tokenizer()
    assert t5.convert_ids_to_tokens(t5("An orange cat, below").input_ids) == ["an", "orange", "<unk>", "below", "</s>"]
    clip = scripts.clip_tokenizer()
    assert len(clip("a small red circle above a blue square").input_ids) == 8 + 2

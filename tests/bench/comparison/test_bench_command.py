"""`relcache bench` as a researcher types it: protocols, seeds, files of samples, mistakes and broken disks."""

from __future__ import annotations

import csv
import errno
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_pipelines
import torch
from PIL import Image
from tiny import tiny_pipeline
from torch import Tensor, nn
from typer.testing import CliRunner

from relcache.bench import files
from relcache.bench.comparison.benchmarks import PAPER
from relcache.bench.comparison.prepare import Arguments, conditions_and_seeds, seeds_as_text, seeds_from_text
from relcache.bench.quality.metrics.distribution import fit, frechet_distance, inception_score, precision_recall
from relcache.bench.sampling import gallery
from relcache.cli.app import app

RUNNER = CliRunner()
SMALL = ("--preset", "small", "--samples", "4", "--steps", "10", "--nfc", "5", "--calibration-samples", "1")


def bench(*arguments: object) -> str:
    """Output of a benchmark that ends well."""
    result = RUNNER.invoke(app, ["bench", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def refused(*arguments: object) -> str:
    """Output of one that ends with a line that says why."""
    result = RUNNER.invoke(app, ["bench", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    return " ".join(result.output.split())


def small(out: Path, *more: object) -> str:
    return bench("class-conditional", *SMALL, "--methods", "fora", "--out", out, *more)


def table(out: Path, benchmark: str = "class-conditional") -> list[dict[str, Any]]:
    return json.loads((out / benchmark / "table.json").read_text())


@pytest.fixture(scope="module")
def class_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dit")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux")
    small_pipelines.flux()[0].save_pretrained(folder)
    return folder


def test_what_is_written(tmp_path: Path) -> None:
    """A PNG file for each sample, a row for each in samples.csv, tables in three forms, figures."""
    small(tmp_path, "--seeds", "2-4,9")
    out = tmp_path / "class-conditional"
    for cell in ("full", "fora-nfc5"):
        pictures = sorted(out.glob(f"runs/*/{cell}-*/*.png"))
        assert [path.name for path in pictures] == [f"{number:06d}.png" for number in range(4)]
        with Image.open(pictures[0]) as picture:
            assert picture.size == (28, 28)
    with (out / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["number"], row["seed"]) for row in rows] == [
        (method, str(number), seed) for method in ("full", "fora") for number, seed in enumerate(("2", "3", "4", "9"))
    ]
    assert all(float(row["psnr"]) > 5 for row in rows)
    with (out / "table.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["full", "fora"]
    assert "seeds 2-4,9" in (out / "table.md").read_text()
    for figure in ("psnr-flops", "frechet-flops"):
        with Image.open(out / f"figures/{figure}.png") as drawn:
            assert np.asarray(drawn.convert("L")).std() > 5
        assert "<svg" in (out / f"figures/{figure}.svg").read_text()


def test_a_sample_belongs_to_its_seed(tmp_path: Path) -> None:
    """Seed 9 asked for as the fourth of four and as the second of two: the same picture, up to rounding to uint8."""
    one, two = tmp_path / "one", tmp_path / "two"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a small red circle\na large blue star\na green ring\na red circle\n")
    asked = ("--preset", "small", "--steps", "10", "--nfc", "5", "--calibration-samples", "1", "--methods", "fora")
    bench("text-to-image", *asked, "--prompts", prompts, "--seeds", "2-4,9", "--out", one)
    prompts.write_text("a green ring\na red circle\n")
    bench("text-to-image", *asked, "--prompts", prompts, "--seeds", "4,9", "--out", two)
    left, right = (next(path.glob("text-to-image/runs/*/full-*")) for path in (one, two))
    apart = gallery.read_samples(left, 2, 2).astype(int) - gallery.read_samples(right, 0, 2)
    assert abs(apart).max() <= 1


@pytest.mark.parametrize("shape", [(3, 1, 5, 7), (3, 3, 5, 7), (2, 4, 3, 6, 5), (2, 1, 3, 6, 5)])
def test_samples_are_read_as_they_were_written(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images[-1, 1:] = images[-1, :1]  # a clip that stands still keeps all its frames
    gallery.write_samples(tmp_path, 40, images)
    assert np.array_equal(gallery.read_samples(tmp_path, 40, len(images)), images)
    assert np.array_equal(gallery.read_samples(tmp_path, 41, 1), images[1:2])


def test_seeds_as_they_are_given() -> None:
    assert seeds_from_text("7") == [7]
    assert seeds_from_text("0-3, 9,20-21") == [0, 1, 2, 3, 9, 20, 21]
    assert seeds_as_text(seeds_from_text("0-3,9,20-21,5")) == "0-3,9,20-21,5"
    for wrong in ("", "a", "3-1", "1,,2", "-4", "1.5"):
        with pytest.raises(ValueError, match="--seeds takes numbers and ranges"):
            seeds_from_text(wrong)
    with pytest.raises(ValueError, match="has a seed twice"):
        seeds_from_text("0-3,2")


def test_classes_are_those_of_the_model() -> None:
    """The shipped DiT has room for 1,000 classes and has learnt ten."""
    labels, seeds = conditions_and_seeds(PAPER["class"], Arguments(model="dit-fashion-mnist", samples=30))
    assert labels == tuple(range(10)) * 3
    assert conditions_and_seeds(PAPER["class"], Arguments(samples=1200))[0][999:1001] == (999, 0)
    assert seeds == tuple(range(30))


# The paper's protocols, on small models


class Network(nn.Module):
    """Stands in for torch-fidelity's InceptionV3: same interface, smaller."""

    def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str | None = None) -> None:
        super().__init__()
        assert (name, features) == ("inception-v3-compat", ["2048", "logits_unbiased"])
        if feature_extractor_weights_path is None:
            raise OSError("no network")
        torch.manual_seed(0)
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = nn.Conv2d(3, 9, 3)
        self.out = nn.Linear(9, 12)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        resized = nn.functional.interpolate(pictures.float() / 255, size=(4, 4), mode="area")
        pooled = self.Mixed_6d.branch1x1(resized).flatten(2).mean(2)
        return pooled, self.out(pooled)


@pytest.fixture
def inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(FeatureExtractorInceptionV3=Network))
    weights = tmp_path / "inception.pth"
    weights.touch()
    return weights


def paper(class_model: Path, out: Path, *more: object) -> str:
    return bench(
        "class-conditional", "--model", class_model, "--samples", 6, "--nfc", 14, "--methods", "fora,taylorseer-2",
        "--batch", 4, "--out", out, *more,
    )  # fmt: skip


def test_class_conditional(class_model: Path, inception: Path, tmp_path: Path) -> None:
    """FID and the like from what was saved, against the same numbers computed here."""
    reference = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "reference.npz", reference)
    paper(class_model, tmp_path, "--reference", tmp_path / "reference.npz", "--inception", inception)
    full, fora, taylorseer = table(tmp_path)
    assert (full["fid2fc"], full["sfid2fc"]) == (None, None)
    assert not any("(paper)" in key for row in (full, fora, taylorseer) for key in row)  # another model, few samples
    assert (full["nfc"], fora["nfc"]) == (50, 14)

    network = Network("inception-v3-compat", ["2048", "logits_unbiased"], "here")

    @torch.no_grad()
    def seen(images: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        resized = nn.functional.interpolate(torch.from_numpy(images).float() / 255, size=(4, 4), mode="area")
        spatial = network.Mixed_6d.branch1x1(resized)
        pooled = spatial.flatten(2).mean(2)
        return pooled, spatial[:, :7].movedim(1, -1).flatten(1), network.out(pooled).softmax(1)

    made = {row["method"]: next((tmp_path / "class-conditional/runs").glob(f"*/{name}-*")) for row, name in
            zip((full, fora), ("full", "fora-nfc14"), strict=True)}  # fmt: skip
    known = {name: seen(gallery.read_samples(folder, 0, 6)) for name, folder in made.items()}
    given = seen(reference.transpose(0, 3, 1, 2).copy())
    expected = {
        "fid": frechet_distance(fit([known["fora"][0]]), fit([given[0]])),
        "sfid": frechet_distance(fit([known["fora"][1]]), fit([given[1]])),
        "fid2fc": frechet_distance(fit([known["fora"][0]]), fit([known["full"][0]])),
        "sfid2fc": frechet_distance(fit([known["fora"][1]]), fit([known["full"][1]])),
        "is": inception_score([known["fora"][2]]),
    }
    expected["precision"], expected["recall"] = precision_recall(given[0], known["fora"][0])
    for name, value in expected.items():
        assert fora[name] == pytest.approx(value, rel=1e-4, abs=1e-9), name


def test_the_paper_s_numbers_stand_beside_its_own_protocol(
    class_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the protocol is of a small model and four samples; other options are another protocol."""
    monkeypatch.setitem(PAPER, "class", replace(PAPER["class"], model=str(class_model), samples=4))
    methods = tmp_path / "methods.toml"
    methods.write_text(
        '[[methods]]\nmethod = "taylorseer"\norder = 2\nname = "taylorseer-2"\n'
        '[[methods]]\nmethod = "taylorseer"\norder = 1\nname = "rfc-2"\n'
    )
    options = ("class-conditional", "--nfc", 14, "--methods", methods, "--out", tmp_path)
    bench(*options)
    full, taylorseer, other = table(tmp_path)
    assert (full["is (paper)"], taylorseer["nfc (paper)"], taylorseer["sfid2fc (paper)"]) == (241.25, 14, 2.17)
    assert not any("(paper)" in key for key in other)  # only its name is that of RFC
    bench(*options, "--samples", 3)
    assert not any("(paper)" in key for row in table(tmp_path) for key in row)


def test_without_its_weights_a_metric_has_dashes_and_is_filled_in_later(
    class_model: Path, inception: Path, tmp_path: Path
) -> None:
    said = paper(class_model, tmp_path)
    assert "the table has dashes for inception" in said
    assert "--inception" in said
    assert table(tmp_path)[1]["fid2fc"] is None
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png") if path.parent.name != "figures"}
    paper(class_model, tmp_path, "--inception", inception)
    assert table(tmp_path)[1]["fid2fc"] > 0
    assert all(path.stat().st_mtime_ns == written for path, written in made.items() if "sheet" not in path.name)


def test_text_to_image(text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CSV file of prompts as DrawBench has them; what cannot be measured here is named with its command."""
    monkeypatch.setenv("RELCACHE_ENVIRONMENTS", str(tmp_path / "none"))
    prompts = tmp_path / "drawbench.csv"
    prompts.write_text('Prompts,Category\n"a red cat, sleeping",Colors\na blue dog,Colors\n')
    said = bench(
        "text-to-image", "--model", text_model, "--prompts", prompts, "--nfc", 14, "--methods", "taylorseer-1",
        "--size", 32, "--option", "max_sequence_length=16", "--clip", tmp_path / "none", "--out", tmp_path,
    )  # fmt: skip
    assert "dashes for image-reward: image-reward needs an environment of its own: relcache environment" in said
    assert "dashes for lpips" in said
    assert "dashes for clip" in said
    full, taylorseer = table(tmp_path, "text-to-image")
    assert (full["nfc"], taylorseer["nfc"]) == (50, 14)
    with next(tmp_path.glob("text-to-image/runs/*/taylorseer-1-*-at-14.json")).open() as file:
        assert json.load(file)["14"] == {"method": "taylorseer", "order": 1, "warmup": 3, "interval": 4}
    assert 5 < taylorseer["psnr"] < 100
    assert taylorseer["lpips"] is None
    assert taylorseer["tflops_linear"] < taylorseer["tflops"]
    with (tmp_path / "text-to-image/samples.csv").open() as file:
        assert next(csv.DictReader(file))["condition"] == "a red cat, sleeping"


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("class-conditional", "--preset", "tiny"), "unknown preset 'tiny': there are paper, small"),
        (("class-conditional", *SMALL, "--methods", "taylorsear"), "did you mean 'taylorseer'?"),
        (("class-conditional", *SMALL, "--methods", "rfc:ordr=2"), "ordr"),
        (("class-conditional", *SMALL, "--seeds", "0-2"), "4 samples need as many seeds, or the first one alone"),
        (("class-conditional", *SMALL, "--seeds", "999999"), "seeds are from 0 to 999999"),
        (("class-conditional", *SMALL, "--workers", "many"), "--workers takes a number"),
        (("class-conditional", *SMALL, "--nfc", "2"), "--nfc is above the warm-up"),
        (("text-to-image",), "the 200 prompts of DrawBench are not shipped"),
        (("text-to-image", "--prompts", "none.txt"), "none.txt cannot be read (No such file or directory)"),
        (("text-to-video",), "relcache environment vbench; or give --prompts"),
        (("class-conditional", "--inception", "none.pth"), "there is no file none.pth"),
        (("class-conditional", *SMALL, "--preset", "smal"), "did you mean 'small'?"),
        (("class-conditional", *SMALL, "--seeds", "1-99999999999999"), "has more than 10000000 seeds"),
        (("class-conditional", *SMALL, "--seeds", "²"), "--seeds takes numbers"),
        (("class-conditional", *SMALL, "--workers", "²"), "--workers takes a number"),
        (("class-conditional", *SMALL, "--prompts", __file__), "class-conditional takes classes"),
        (("text-to-image", *SMALL, "--reference", "r.npz"), "--reference and --inception are for class-conditional"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELCACHE_ENVIRONMENTS", str(tmp_path / "none"))
    assert message in refused(*arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_benchmark_with_a_typo() -> None:
    result = RUNNER.invoke(app, ["bench", "class-conditonal"])
    assert result.exit_code == 2
    assert "Did you mean 'class-conditional'?" in " ".join(result.output.split())


def test_a_prompt_file_with_an_empty_line(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n\na blue star\n")
    assert f"line 2 of {prompts} is empty" in refused(
        "text-to-image", "--preset", "small", "--prompts", prompts, "--out", tmp_path
    ).replace("\n", "")


def test_a_truncated_reference(class_model: Path, inception: Path, tmp_path: Path) -> None:
    """Said before anything is sampled."""
    np.savez(tmp_path / "whole.npz", np.zeros((8, 16, 16, 3), np.uint8))
    cut = tmp_path / "cut.npz"
    cut.write_bytes((tmp_path / "whole.npz").read_bytes()[:2000])
    said = refused(
        "class-conditional", "--model", class_model, "--samples", 4, "--reference", cut, "--inception", inception,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert "cut.npz is damaged or cut short" in said
    assert not (tmp_path / "out").exists()


def test_an_unreadable_picture(tmp_path: Path) -> None:
    """It is named with its batch; with that deleted, the same command makes it again, and all else stays."""
    small(tmp_path)
    first = table(tmp_path)
    picture = next(tmp_path.rglob("fora-nfc5-*/000002.png"))
    whole = picture.read_bytes()
    picture.write_bytes(picture.read_bytes()[:60])
    for measured in picture.parent.glob("*-pair.npz"):
        measured.unlink()
    said = refused("class-conditional", *SMALL, "--methods", "fora", "--out", tmp_path)
    assert "000002.png cannot be read" in said
    batch = picture.with_name("000000.npz")
    assert f"delete {batch}, and the same command makes it again" in said.replace(" ", "").replace(
        "delete", "delete "
    ).replace(",andthesamecommandmakesitagain", ", and the same command makes it again")
    batch.unlink()
    small(tmp_path)
    assert picture.read_bytes() == whole
    for row, other in zip(first, table(tmp_path), strict=True):
        assert row | {"seconds": 0} == other | {"seconds": 0}


def test_a_method_that_was_edited_is_made_again(tmp_path: Path) -> None:
    """What is kept under a name belongs to the options that it had."""
    methods = tmp_path / "methods.toml"
    rows = []
    for interval in (4, 2, 4):
        methods.write_text(f'[[methods]]\nname = "mine"\nmethod = "fora"\ninterval = {interval}\n')
        bench("class-conditional", *SMALL, "--methods", methods, "--out", tmp_path)
        rows.append(table(tmp_path)[1])
    assert [row["nfc"] for row in rows] == [4, 6, 4]
    assert rows[0] == rows[2]  # to the very time that it took: it was not made again
    assert rows[0]["psnr"] < rows[1]["psnr"]
    methods.write_text('[[methods]]\nname = "Full"\nmethod = "fora"\ninterval = 4\n')
    assert "is named 'full', like full compute" in refused("class-conditional", "--methods", methods, "--out", tmp_path)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole files stay, no others are left, and the command goes on when there is room again."""
    whole, left = files.write_whole, 6

    def write(path: Path, content: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        whole(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_whole", write)
        said = refused("class-conditional", *SMALL, "--methods", "fora", "--batch", 2, "--out", tmp_path)
    assert "No space left on device" in said
    assert not (tmp_path / "class-conditional/table.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert len(kept) >= 1
    small(tmp_path, "--batch", 2)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert len(table(tmp_path)) == 2

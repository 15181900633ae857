"""`relcache.inspect` and `relcache models`."""

from __future__ import annotations

import json

import pytest
import small_pipelines
import torch
from small_pipelines import flux_transformer
from tiny import tiny_dit
from torch import Tensor, nn
from typer.testing import CliRunner

import relcache
from relcache import FORA, ModelSpec, Size, parallel
from relcache.cli.app import app
from relcache.models import SPECS, UNSUPPORTED, describe

RUNNER = CliRunner()


class GatedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.mix = nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = hidden_states + self.mix(hidden_states)
        normed = self.norm(hidden_states)
        return hidden_states + self.down(torch.relu(self.gate(normed)) * self.up(normed))


class NewFamily(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GatedBlock() for _ in range(3))
        self.head = nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        hidden_states = hidden_states + timestep.reshape(-1, 1, 1) / 1000
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.head(hidden_states)


def test_a_known_model() -> None:
    inspection = relcache.inspect(flux_transformer(), size=Size(1, 8, 8, text=5))
    rows = {row.pattern: row for row in inspection.cached}
    joint = rows["transformer_blocks.*.attn"]
    assert (joint.kind, joint.count) == ("joint", 1)
    assert joint.inputs[:2] == ((1, 16, 32), (1, 5, 32))
    assert joint.outputs == ((1, 16, 32), (1, 5, 32))
    single = rows["single_transformer_blocks.*.proj_mlp+attn+proj_out"]
    assert (single.kind, single.count) == ("parallel", 2)
    assert single.inputs[0] == single.outputs[0] == (1, 21, 32)
    shares = sum(row.share for row in [*inspection.cached, *inspection.computed])
    assert shares == pytest.approx(1.0)
    assert {"time_text_embed", "proj_out"} <= {row.pattern for row in inspection.computed}
    assert "4 units cached" not in str(inspection)
    assert "5 units cached" in str(inspection)


def test_it_leaves_the_model_as_it_is() -> None:
    """Even an enabled model keeps its request in progress and its patched forwards."""
    model = tiny_dit()
    handle = relcache.enable(model, FORA(3))
    forwards = [module.__dict__.get("forward") for module in model.modules()]
    assert "4 units cached" in str(relcache.inspect(model))
    assert [module.__dict__.get("forward") for module in model.modules()] == forwards
    assert handle.report().steps == 0
    assert not any(module._forward_hooks for module in model.modules() if module is not model)


def test_a_new_family_in_a_few_minutes() -> None:
    """Inspect the model, correct the suggested spec with knowledge of the block, cache."""
    model = NewFamily().eval()
    inputs = {"hidden_states": torch.randn(2, 6, 8), "timestep": torch.full((2,), 500.0)}
    first = relcache.inspect(model, inputs=inputs)
    assert first.cached == []
    assert '"blocks.*.mix",' in first.suggestion
    assert "NewFamily" in first.suggestion
    assert "blocks.*.down" not in first.suggestion, "its output is not of its input's shape"
    spec = ModelSpec("NewFamily", ("blocks.*.mix", parallel("blocks.*", ("gate", "up"), "down")))
    second = relcache.inspect(model, spec, inputs=inputs)
    assert [row.count for row in second.cached] == [3, 3]
    assert [row.pattern for row in second.computed] == ["head", "blocks.*.norm", "blocks.*.attn"]
    handle = relcache.enable(model, FORA(3), spec=spec)
    with torch.no_grad():
        for timestep in range(900, 0, -100):
            model(inputs["hidden_states"], torch.full((2,), float(timestep)))
    assert handle.report().full_steps == [0, 1, 4, 7]
    assert handle.report().flops < handle.report().full_flops / 2


def test_without_inputs_there_are_names_and_no_shapes() -> None:
    inspection = relcache.inspect(NewFamily())
    assert {row.pattern for row in inspection.computed} >= {"blocks.*.mix", "head"}
    assert all(row.share is None and row.outputs == () for row in inspection.computed)
    assert '"blocks.*.mix",' in inspection.suggestion


def test_a_size_cannot_be_estimated_without_inputs() -> None:
    spec = ModelSpec("NewFamily", ("blocks.*.mix",))
    model = NewFamily().eval()
    handle = relcache.enable(model, FORA(3), spec=spec)
    with pytest.raises(ValueError, match=r"does not say how to call the model: give it inputs="):
        handle.estimate(8, width=8)


def test_the_list_of_models() -> None:
    result = RUNNER.invoke(app, ["models"])
    assert result.exit_code == 0
    assert f"{len(SPECS)} classes" in result.stdout
    for name in UNSUPPORTED:
        assert name in result.stdout
    rows = json.loads(RUNNER.invoke(app, ["models", "flux", "--json"]).stdout)
    flux = next(row for row in rows if row["class"] == "FluxTransformer2DModel")
    assert flux["streams"] == 2
    assert flux["units"]["single_transformer_blocks"] == ["proj_mlp+attn+proj_out (in parallel)"]
    assert "FluxPipeline" in flux["pipelines"]
    assert len(rows) < len(SPECS)


def test_what_it_says_of_the_tests_is_true() -> None:
    """Each pipeline that a spec names is run end to end by one of the tests."""
    named = {pipeline for spec in SPECS for pipeline in spec.pipelines}
    built = {name.split(",")[0] for name in small_pipelines.BUILDERS}
    others = {"FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxControlNetPipeline", "FluxKontextPipeline",
              "FluxFillPipeline", "FluxControlPipeline"}  # fmt: skip
    assert named == built | others
    assert all(describe(spec) for spec in SPECS)


def test_a_class_that_cannot_be_cached_says_why() -> None:
    model = type("TransformerTemporalModel", (nn.Module,), {})()
    with pytest.raises(ValueError, match=r"does not cache TransformerTemporalModel: a building block of video U-Nets"):
        relcache.enable(model, FORA(3))


def test_an_unknown_class_has_neighbours() -> None:
    result = RUNNER.invoke(app, ["models", "fluks"])
    assert result.exit_code == 1
    assert "no class name contains 'fluks'; the nearest are FluxTransformer2DModel" in " ".join(result.output.split())
    assert RUNNER.invoke(app, ["models", "FluxTransformer2D"]).stdout.splitlines()[-1] == "1 class"


def test_a_pipeline_with_two_transformers_says_so() -> None:
    inspection = relcache.inspect(small_pipelines.wan(experts=2)[0])
    assert inspection.others == ("pipe.transformer_2",)
    assert "the pipeline has other transformers: inspect pipe.transformer_2 for them" in str(inspection)
    assert relcache.inspect(flux_transformer()).others == ()

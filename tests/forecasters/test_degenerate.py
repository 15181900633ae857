"""Where the formulas have no answer: the fall-backs, in their order, and how the report counts them."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiTTransformer2DModel
from scripted import ScriptedTransformer, play, rows
from tiny import call_along, run_loop, timesteps_for, tiny_dit, trajectory
from torch import Tensor

import relcache
from relcache import FORA, RFC, RFE, ErrorBudget, Interval, Method, ModelSpec, Plan, Relational, Reuse, Taylor

PLAIN = "input unchanged: plain expansion"
REUSE = "output unchanged: reuse"


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("direction", ["taylor", "newton"])
def test_unchanged_input_falls_back_to_the_plain_expansion(order: int, direction: str) -> None:
    """‖ΔI‖ = 0 says nothing about the magnitude; the expansion's own is used."""
    inputs = [rows(1.0)] * 4
    outputs = [rows(2.0), rows(3.0), rows(99.0), rows(99.0)]
    got, report = play(Method(Relational(order, direction), Plan([0, 1])), inputs, outputs)
    assert torch.equal(got[2], rows(4.0))
    assert torch.equal(got[3], rows(5.0))
    assert report.fallbacks == {PLAIN: 2}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("direction", ["taylor", "newton"])
def test_unchanged_output_falls_back_to_reuse(order: int, direction: str) -> None:
    """A zero direction has no unit vector."""
    inputs = [rows(1.0), rows(2.0), rows(3.0)]
    outputs = [rows(7.0), rows(7.0), rows(99.0)]
    got, report = play(Method(Relational(order, direction), Plan([0, 1])), inputs, outputs)
    assert torch.equal(got[2], rows(7.0))
    assert report.fallbacks == {REUSE: 1}


@pytest.mark.parametrize("order", [1, 2])
def test_nothing_changed_at_all_is_reuse(order: int) -> None:
    """First the plain expansion takes over; its term is zero, so what is left is reuse."""
    got, report = play(Method(Relational(order), Plan([0, 1])), [rows(1.0)] * 3, [rows(7.0)] * 3)
    assert torch.equal(got[2], rows(7.0))
    assert report.fallbacks == {REUSE: 1}


@pytest.mark.parametrize("order", [1, 2])
def test_fallbacks_are_taken_for_each_sample(order: int) -> None:
    """One sample's input stands still, another's output, a third moves as it should."""
    inputs = [rows(1.0, 1.0, 1.0), rows(1.0, 2.0, 2.0), rows(1.0, 3.0, 4.0)]
    outputs = [rows(2.0, 7.0, 10.0), rows(3.0, 7.0, 11.0), rows(0.0, 0.0, 0.0)]
    got, report = play(Method(Relational(order), Plan([0, 1])), inputs, outputs)
    torch.testing.assert_close(got[2], rows(4.0, 7.0, 13.0))
    assert report.fallbacks == {PLAIN: 1, REUSE: 1}


def test_directions_that_cancel_are_reuse() -> None:
    """Order 2: Δ = -1 and Δ² = 2 cancel at k/N = 1, where -1 + 2/2 = 0."""
    inputs = [rows(float(i)) for i in range(4)]
    outputs = [rows(0.0), rows(-3.0), rows(-4.0), rows(99.0)]
    got, report = play(Method(Relational(2), Plan([0, 1, 2])), inputs, outputs)
    assert torch.equal(got[3], rows(-4.0))
    assert report.fallbacks == {REUSE: 1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("order", [1, 2])
def test_fallbacks_keep_the_dtype(order: int, dtype: torch.dtype) -> None:
    inputs = [rows(1.0, 1.0).to(dtype), rows(1.0, 2.0).to(dtype), rows(1.0, 3.0).to(dtype)]
    outputs = [rows(2.0, 7.0).to(dtype), rows(3.0, 7.0).to(dtype), rows(0.0, 0.0).to(dtype)]
    got, _ = play(Method(Relational(order), Plan([0, 1])), inputs, outputs)
    assert torch.equal(got[2], rows(4.0, 7.0).to(dtype))


@pytest.mark.parametrize(
    "method", [RFE(1, interval=4, warmup=1), RFC(2, threshold=5.0, warmup=1), Method(Taylor(1), Plan([0, 5]))]
)
def test_a_difference_needs_two_full_steps(method: Method, model: DiTTransformer2DModel) -> None:
    """With a warm-up of 1, step 1 is full although nobody asked for it, and is counted."""
    handle = relcache.enable(model, method)
    run_loop(model, steps=8)
    assert handle.report().full_steps[:2] == [0, 1]
    assert handle.report().fallbacks == {"too few full steps yet: full step": 1}


def test_reuse_needs_one_full_step(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, FORA(4, warmup=1))
    run_loop(model, steps=8)
    assert handle.report().full_steps == [0, 4]
    assert handle.report().fallbacks == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_signal_that_is_no_number_makes_the_step_full(bad: float) -> None:
    """The step is computed in full, said once and counted; nothing of the cache is returned."""
    inputs = [rows(1.0), rows(1.1), rows(1.2), rows(bad), rows(bad), rows(1.5)]
    outputs = [rows(float(i)) for i in range(6)]
    with pytest.warns(UserWarning, match="error signal was NaN or infinite") as caught:
        got, report = play(RFC(1, threshold=100.0), inputs, outputs)
    assert len([w for w in caught if "error signal" in str(w.message)]) == 1
    assert {0, 1, 3, 4} <= set(report.full_steps)
    assert torch.equal(got[3], outputs[3])
    assert torch.equal(got[4], outputs[4])
    assert report.signal[3] is None
    assert report.fallbacks["signal not finite: full step"] >= 2


def test_an_input_of_zeros_makes_the_step_full() -> None:
    """‖I‖₁ = 0 leaves no ratio."""
    with pytest.warns(UserWarning, match="error signal"):
        _, report = play(RFC(1, threshold=100.0), [rows(0.0)] * 4, [rows(float(i)) for i in range(4)])
    assert report.full_steps == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "method", [FORA(6), RFE(2, interval=6), RFC(2, threshold=100.0)], ids=lambda method: method.name
)
def test_a_shape_that_changes_is_computed_in_full(method: Method, model: DiTTransformer2DModel) -> None:
    """From step 4 on the picture is larger: never a stale or wrong-shaped feature."""
    handle = relcache.enable(model, method)
    labels, timesteps, plain = torch.tensor([3, 5]), timesteps_for(8), tiny_dit()
    with torch.no_grad():
        for step in range(8):
            sample = trajectory(8)[step] if step < 4 else torch.randn(2, 4, 16, 16)
            given = {"timestep": timesteps[step].expand(2), "class_labels": labels}
            output = model(sample, **given).sample
            assert output.shape == sample.shape
            if step == 4:
                assert torch.equal(output, plain(sample, **given).sample)
    assert 4 in handle.report().full_steps
    assert "too few full steps yet: full step" in handle.report().fallbacks


def test_a_second_branch_whose_shape_changes_is_computed_in_full(model: DiTTransformer2DModel) -> None:
    """The first branch has decided on a cached step; the second one's larger picture cannot be forecast."""
    handle, plain = relcache.enable(model, FORA(6)), tiny_dit()
    timesteps = timesteps_for(6)
    with torch.no_grad():
        for step, sample in enumerate(trajectory(6)):
            time = timesteps[step].expand(2)
            model(sample, timestep=time, class_labels=torch.tensor([3, 5]))
            second = torch.randn(2, 4, 16, 16) if step >= 4 else sample
            given = {"timestep": time, "class_labels": torch.tensor([1000, 1000])}
            output = model(second, **given).sample
            assert output.shape == second.shape
            if step == 4:
                assert torch.equal(output, plain(second, **given).sample)
    assert handle.report().full_steps == [0, 1]
    assert handle.report().fallbacks == {"module without history or of another shape: computed in full": 4}


def test_a_dtype_that_changes_is_computed_in_full(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, FORA(6))
    timesteps = timesteps_for(6)
    with torch.no_grad():
        for step, sample in enumerate(trajectory(6)):
            model.to(torch.float64 if step >= 3 else torch.float32)
            given = {"timestep": timesteps[step].expand(2), "class_labels": torch.tensor([3, 5])}
            output = model(sample.to(model.dtype), **given).sample
            assert output.dtype == model.dtype
    assert 3 in handle.report().full_steps


def test_time_that_runs_the_wrong_way_is_computed_in_full(model: DiTTransformer2DModel) -> None:
    """An inversion, say: each step seems to begin a request; it is computed in full, and said once."""
    relcache.enable(model, FORA(3))
    plain, labels = tiny_dit(), torch.tensor([3, 5])

    def run(transformer: DiTTransformer2DModel) -> list[Tensor]:
        with torch.no_grad():
            return [
                transformer(sample, timestep=torch.tensor([50 * step] * 2), class_labels=labels).sample
                for step, sample in enumerate(trajectory(12))
            ]

    with pytest.warns(UserWarning, match="the wrong way") as caught:
        outputs = run(model)
    assert len(caught) == 1
    assert all(torch.equal(a, b) for a, b in zip(outputs, run(plain), strict=True))


def test_a_family_whose_time_rises() -> None:
    """The same timesteps, with a spec that says that time rises."""
    model = ScriptedTransformer().eval()
    spec = ModelSpec("ScriptedTransformer", ("blocks.*",), time_runs=1)
    handle = relcache.enable(model, FORA(3), spec=spec)
    for _ in range(2):
        with torch.no_grad():
            for step in range(8):
                model.blocks[0].present = rows(float(step))
                model(rows(1.0), torch.tensor([step / 8]))
        assert handle.report().full_steps == [0, 1, 4, 7]


def test_training_with_gradients_is_an_error(model: DiTTransformer2DModel) -> None:
    relcache.enable(model, FORA(3))
    sample, given = trajectory(1)[0], {"timestep": torch.tensor([5, 5]), "class_labels": torch.tensor([1, 1])}
    model.train()
    with pytest.raises(RuntimeError, match=r"training mode.*model\.eval\(\)"):
        model(sample, **given)
    with torch.no_grad():
        assert model(sample, **given).sample.shape == sample.shape
    model.eval()
    assert model(sample, **given).sample.shape == sample.shape, "gradients alone are no obstacle"


def test_the_cache_holds_no_graph(model: DiTTransformer2DModel) -> None:
    """With gradients on, features are kept detached; else every past step would stay alive."""
    handle = relcache.enable(model, RFC(2, threshold=0.5))
    for step, sample in enumerate(trajectory(4)):
        model(sample, timestep=torch.tensor([900 - step] * 2), class_labels=torch.tensor([1, 1]))
    session = handle._session
    branch = next(iter(session.cache.request.branches.values()))
    tensors = list(branch.tensors())
    assert len(tensors) > len(branch.cells)
    assert not any(tensor.requires_grad for tensor in tensors)


def test_a_branch_without_history_forces_a_full_step(model: DiTTransformer2DModel) -> None:
    """Where the schedule would skip, but the only branch of the step has nothing to forecast from."""
    handle = relcache.enable(model, Method(Reuse(), ErrorBudget(100.0)))
    call_along(model, trajectory(6), {"cond": [0, 1, 2], "uncond": [3, 4, 5]})
    assert handle.report().full_steps == [0, 1, 3]
    assert handle.report().fallbacks == {"too few full steps yet: full step": 1}


def test_full_last(model: DiTTransformer2DModel) -> None:
    """The last steps are full where the number of steps is known."""
    handle = relcache.enable(model, RFC(2, threshold=100.0, full_last=3), num_inference_steps=10)
    run_loop(model, steps=10)
    assert handle.report().full_steps == [0, 1, 7, 8, 9]
    assert Interval(4).needs_total_steps is None

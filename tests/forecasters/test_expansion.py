"""The formulas by themselves: exact where theory says so, and equal to numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from relcache import ErrorBudget, Forecaster, Linear, Newton, Relational, Reuse, Taylor
from relcache.forecasters.expansion import Expansion, gram, gram_norm, norm_l2, subsample, sum_absolute, weighted_sum

settings.register_profile("short", max_examples=60, deadline=None)
settings.load_profile("short")


def stack_of(expansion: Expansion, points: list[tuple[int, Tensor]]) -> tuple[tuple[int, ...], Tensor]:
    """The full steps, newest first, and the stack after full steps at `points`, oldest first."""
    steps: tuple[int, ...] = ()
    stack = None
    for step, value in points:
        steps = (step, *steps)[: expansion.order + 1]
        stack = expansion.extend(stack, steps, value)
    assert stack is not None
    return steps, stack


def expand(expansion: Expansion, points: list[tuple[int, Tensor]], step: int) -> Tensor:
    steps, stack = stack_of(expansion, points)
    return weighted_sum(stack, expansion.coefficients(steps, step))


def forecast(
    forecaster: Forecaster, points: list[tuple[int, Tensor, Tensor]], step: int, present_input: Tensor
) -> Tensor:
    """The forecast at `step` after full steps at `points` (step, input, output), oldest first."""
    state, steps = None, ()
    for past, given_input, output in points:
        steps = (past, *steps)
        state = forecaster.update(state, steps, given_input, output)
    return forecaster.forecast(state, forecaster.coefficients(steps, step), present_input).output


def scalar(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


@given(
    coefficients=st.lists(st.floats(-2, 2), min_size=1, max_size=5),
    gaps=st.lists(st.integers(1, 7), min_size=8, max_size=8),
    start=st.integers(0, 40),
    k=st.integers(1, 8),
)
def test_newton_is_exact_on_polynomials(coefficients: list[float], gaps: list[int], start: int, k: int) -> None:
    """Order m reproduces every polynomial of degree m, whatever the gaps between the full steps."""

    def polynomial(step: int) -> float:
        return sum(c * (step / 10) ** i for i, c in enumerate(coefficients))

    order = len(coefficients) - 1
    steps = [start + sum(gaps[:i]) for i in range(order + 3)]
    got = expand(Expansion(order, "newton"), [(s, scalar(polynomial(s))) for s in steps], steps[-1] + k)
    largest = max(1.0, *(abs(polynomial(s)) for s in [*steps, steps[-1] + k]))
    assert float(got) == pytest.approx(polynomial(steps[-1] + k), abs=1e-8 * largest)


def test_taylor_is_not_exact_on_a_parabola() -> None:
    """At gaps of 1, f = n^2: the backward difference at 2 is 3, the slope 1.5 steps ago, not 4."""
    points = [(n, scalar(n**2)) for n in (0, 1, 2)]
    assert float(expand(Expansion(2), points, 3)) == 4 + 3 + 2 / 2  # 8, where f(3) = 9
    assert float(expand(Expansion(2, "newton"), points, 3)) == 9


@pytest.mark.parametrize(
    ("order", "step", "expected"),
    [
        # Values 1, 2, 7 at steps 0, 4, 8: differences 5 and 5 - 1 = 4, gap 4.
        (0, 10, 7),
        (1, 9, 7 + 1 / 4 * 5),
        (1, 10, 7 + 2 / 4 * 5),
        (2, 10, 7 + 2 / 4 * 5 + (2 / 4) ** 2 / 2 * 4),
        (2, 11, 7 + 3 / 4 * 5 + (3 / 4) ** 2 / 2 * 4),
    ],
)
def test_taylor_by_hand_at_equal_gaps(order: int, step: int, expected: float) -> None:
    points = [(0, scalar(1)), (4, scalar(2)), (8, scalar(7))]
    assert float(expand(Expansion(order), points, step)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("order", "step", "expected"),
    [
        # Values 1, 2, 7 at steps 0, 1, 5: D_1 is 1 at step 1, 5/4 at step 5, and there D_2 is (5/4 - 1) / 4 = 1/16.
        (1, 6, 8.25),
        (2, 6, 8.28125),  # 7 + 5/4 + 1/2 * 1/16
        (1, 8, 10.75),
        (2, 8, 11.03125),  # 7 + 15/4 + 9/2 * 1/16
    ],
)
def test_taylor_by_hand_at_unequal_gaps(order: int, step: int, expected: float) -> None:
    points = [(0, scalar(1)), (1, scalar(2)), (5, scalar(7))]
    assert float(expand(Expansion(order), points, step)) == pytest.approx(expected, abs=1e-12)


def test_newton_by_hand_at_unequal_gaps() -> None:
    """Values 1, 2, 7 at 0, 1, 5: f[5,1] = 5/4, f[1,0] = 1, f[5,1,0] = (5/4 - 1)/5 = 0.05; at 8: 7 + 15/4 + 21·0.05."""
    points = [(0, scalar(1)), (1, scalar(2)), (5, scalar(7))]
    assert float(expand(Expansion(2, "newton"), points, 8)) == pytest.approx(11.8, abs=1e-12)


def test_third_order_taylor_by_hand() -> None:
    """Values 0, 1, 3, 9 at 0, 2, 4, 6: differences 6, 4, 3; at 7, k/N = 1/2: 9 + 3 + 4/8 + 3/48."""
    points = [(0, scalar(0)), (2, scalar(1)), (4, scalar(3)), (6, scalar(9))]
    assert float(expand(Expansion(3), points, 7)) == pytest.approx(12.5625, abs=1e-12)


def test_third_order_taylor_by_hand_at_unequal_gaps() -> None:
    """Values 0, 1, 7, 9 at 0, 1, 3, 7. D_1 is 1, 3, 1/2 at 1, 3, 7; D_2 is 1 at 3 and -5/8 at 7; D_3 is -13/32 at 7."""
    points = [(0, scalar(0)), (1, scalar(1)), (3, scalar(7)), (7, scalar(9))]
    expected = 9 + 2 / 2 - 4 / 2 * 5 / 8 - 8 / 6 * 13 / 32
    assert float(expand(Expansion(3), points, 9)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("form", ["taylor", "newton"])
def test_orders_grow_with_the_history(form: str) -> None:
    """With fewer full steps than the order needs, the highest order that they allow is used."""
    expansion = Expansion(3, form)
    assert float(expand(expansion, [(0, scalar(5))], 2)) == 5
    assert float(expand(expansion, [(0, scalar(5)), (1, scalar(6))], 3)) == 8


def test_a_stack_is_as_high_as_the_order() -> None:
    """Whatever lies further back has no say, and terms that the history does not reach are zero."""
    expansion = Expansion(2, "newton")
    points = [(s, scalar(s**3)) for s in range(6)]
    _, stack = stack_of(expansion, points)
    assert stack.shape == (1, 3, 1)
    assert torch.equal(stack, stack_of(expansion, points[-3:])[1])
    assert stack_of(expansion, points[:2])[1].flatten().tolist() == [1, 1, 0]


@pytest.mark.parametrize("form", ["taylor", "newton"])
def test_a_stack_is_extended_in_its_own_memory(form: str) -> None:
    """No second one is held beside it, and the value is copied."""
    expansion = Expansion(2, form)
    steps, stack = stack_of(expansion, [(0, scalar(1)), (2, scalar(2))])
    value = scalar(9)
    extended = expansion.extend(stack, (5, *steps), value)
    assert extended.data_ptr() == stack.data_ptr()
    value.zero_()
    second = (7 / 3 - 1 / 2) / (3 if form == "taylor" else 5)
    assert extended.flatten().tolist() == pytest.approx([9, 7, 3**2 * second], abs=1e-12)


def test_a_stack_of_inference_mode_is_extended_outside_of_it() -> None:
    expansion = Expansion(1)
    with torch.inference_mode():
        steps, stack = stack_of(expansion, [(0, scalar(1)), (2, scalar(2))])
    assert expansion.extend(stack, (5, *steps), scalar(9)).flatten().tolist() == [9, 7]


def test_samples_are_extended_one_by_one_or_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same terms to the bit."""
    points = [(step, torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(step))) for step in (0, 2, 7, 8)]
    _, together = stack_of(Expansion(2, "newton"), points)
    monkeypatch.setattr("relcache.forecasters.expansion.SMALL", 0)
    assert torch.equal(stack_of(Expansion(2, "newton"), points)[1], together)


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 10.0), (0.5, 8.5), (1.2, 10.6)])
def test_linear_by_hand(weight: float, expected: float) -> None:
    """Outputs 3, 7 at 1, 5; at 8: 7 + w (3/4) 4."""
    points = [(1, scalar(0), scalar(3)), (5, scalar(0), scalar(7))]
    assert float(forecast(Linear(weight), points, 8, scalar(0))) == pytest.approx(expected, abs=1e-12)


def relational_case(speeds: list[float], k_position: float) -> tuple[list[tuple[int, Tensor, Tensor]], Tensor, Tensor]:
    """O = A I + b with I on a straight line, at the positions `speeds` along it; then the present input and output."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    shift = torch.randn(5, generator=generator, dtype=torch.float64)
    origin = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    direction = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)

    def features(position: float) -> tuple[Tensor, Tensor]:
        given = origin + position * direction
        return given, given @ matrix.T + shift

    points = [(3 * i, *features(position)) for i, position in enumerate(speeds)]
    return points, *features(k_position)


@pytest.mark.parametrize("norm", ["sample", "tensor"])
@pytest.mark.parametrize("direction", ["taylor", "newton"])
@pytest.mark.parametrize("order", [1, 2])
@given(
    moves=st.lists(st.floats(0.1, 1), min_size=3, max_size=3),
    fraction=st.floats(0.05, 3),
)
@settings(max_examples=20)
def test_relational_is_exact_on_a_line_at_uneven_speed(
    order: int, direction: str, norm: str, moves: list[float], fraction: float
) -> None:
    """The magnitude comes from the input, so it does not matter how fast the line is walked.

    Exact as long as the direction points forward along the line; at order 2 the expansion may turn around where the
    speed falls steeply, so speeds rise here.
    """
    moves = sorted(moves)
    positions = [sum(moves[:i]) for i in range(4)]
    points, present_input, expected = relational_case(positions, positions[-1] + fraction)
    got = forecast(Relational(order, direction, norm), points, 11, present_input)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("forecaster", [Reuse(), Linear(), Taylor(1), Taylor(2), Newton(1), Newton(2)], ids=repr)
def test_extrapolations_are_wrong_at_uneven_speed(forecaster: Forecaster) -> None:
    """The same line, walked faster and then slower: what ignores the input cannot know."""
    points, present_input, expected = relational_case([0.0, 0.2, 0.6, 1.5], 1.6)
    exact = forecast(Relational(1), points, 11, present_input)
    torch.testing.assert_close(exact, expected, rtol=1e-9, atol=1e-9)
    got = forecast(forecaster, points, 11, present_input)
    assert float((got - expected).norm() / (expected - points[-1][2]).norm()) > 0.1


def test_relational_by_hand() -> None:
    """Order 1: O = 4, ΔO = 3, ‖ΔI‖ = 2, the input moved by 5: 4 + 5/2 · 3, wherever the step lies."""
    points = [(0, scalar(1), scalar(1)), (4, scalar(3), scalar(4))]
    for direction in ("taylor", "newton"):
        for step in (5, 7, 30):
            got = forecast(Relational(1, direction), points, step, scalar(8))
            assert float(got) == pytest.approx(11.5, abs=1e-12)


def test_relational_of_order_two_by_hand() -> None:
    """Two channels, gaps 2: the direction is that of Taylor's sum, its length s ‖I(t-k) - I(t)‖.

    Outputs (0,0), (1,0), (1,1) at 0, 2, 4: Δ = (0,1), Δ² = (-1,1). At 6, k/N = 1: Δ + Δ²/2 = (-0.5, 1.5).
    Inputs 0, 1, 3: ‖ΔI‖ = 2, ‖ΔO‖ = 1, s = 1/2. The present input, 7, moved by 4: length 2.
    """
    outputs = [torch.tensor([[a, b]], dtype=torch.float64) for a, b in ((0, 0), (1, 0), (1, 1))]
    points = [(2 * i, scalar(x), o) for i, (x, o) in enumerate(zip((0, 1, 3), outputs, strict=True))]
    got = forecast(Relational(2), points, 6, scalar(7))
    length = math.hypot(-0.5, 1.5)
    expected = torch.tensor([[1 - 0.5 / length * 2, 1 + 1.5 / length * 2]], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["sample", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@given(seed=st.integers(0, 2**20), size=st.integers(1, 4), tenths=st.lists(st.integers(-30, 30), min_size=4))
@settings(max_examples=15)
def test_gram_norm_is_the_direct_norm(norm: str, dtype: torch.dtype, seed: int, size: int, tenths: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    terms = [torch.randn(2, 5, 8, generator=generator).to(dtype) for _ in range(size)]
    coefficients = [number / 10 for number in tenths[:size]]
    got, zero = gram_norm(gram(torch.stack([terms[0], *terms], 1), norm), coefficients)

    total = sum(c * term.double() for c, term in zip(coefficients, terms, strict=True))
    flat = total.reshape(1, -1) if norm == "tensor" else total.flatten(1)
    expected = flat.norm(dim=1)
    scale = sum(abs(c) * float(term.double().norm()) for c, term in zip(coefficients, terms, strict=True))
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6 * scale)
    assert torch.equal(zero, expected == 0), "zero only where all coefficients are"


def test_gram_norm_sees_exact_cancellation() -> None:
    """2 D - D·2 is the zero vector: no direction, although rounding may leave a little."""
    term = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    _, zero = gram_norm(gram(torch.stack([term, term, 2 * term], 1), "sample"), [2.0, -1.0])
    assert zero.tolist() == [True, True, True]


def test_norms_of_each_sample_and_of_the_whole_tensor() -> None:
    value = torch.tensor([[[3.0, 4.0]], [[0.0, 12.0]]])
    assert norm_l2(value, "sample").tolist() == [5, 12]
    assert norm_l2(value, "tensor").tolist() == [13]
    assert sum_absolute(-value).tolist() == [7, 12]
    both = torch.stack([value, value, -2 * value], 1)
    assert gram(both, "sample").tolist() == [[[25, -50], [-50, 100]], [[144, -288], [-288, 576]]]
    assert gram(both[:, :2], "tensor").tolist() == [[[169]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_do_not_overflow(dtype: torch.dtype) -> None:
    """300² is beyond float16, and 409,600 summands beyond the digits of bfloat16."""
    value = torch.full((2, 100, 4096), 300.0).to(dtype)
    one = float(value[0, 0, 0])
    exact = one * 640
    assert norm_l2(value, "sample").tolist() == pytest.approx([exact, exact], rel=1e-5)
    assert sum_absolute(value).tolist() == pytest.approx([one * 409_600] * 2, rel=1e-5)
    assert gram(torch.stack([value, value], 1), "sample").flatten().tolist() == pytest.approx([exact**2] * 2, rel=1e-5)


@pytest.mark.parametrize("as_tensors", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weighted_sum_is_accurate(dtype: torch.dtype, per_sample: bool, as_tensors: bool) -> None:
    """Within a rounding or two of the exact sum, in the dtype of the features."""
    generator = torch.Generator().manual_seed(0)
    terms = [torch.randn(3, 4, 50, generator=generator).to(dtype) for _ in range(3)]
    numbers, scale = torch.tensor([0.7, -1.3]), torch.tensor([0.7, -1.3, 2.1], dtype=torch.float64)
    given = list(numbers) if as_tensors else numbers.tolist()
    weights = numbers.double().reshape(2, 1, 1, 1) * (scale.reshape(3, 1, 1) if per_sample else 1)

    got = weighted_sum(torch.stack(terms, 1), given, scale if per_sample else None)

    exact = terms[0].double() + weights[0] * terms[1].double() + weights[1] * terms[2].double()
    size = terms[0].double().abs() + (weights[0] * terms[1]).abs() + (weights[1] * terms[2]).abs()
    assert got.dtype == dtype
    assert got.shape == terms[0].shape
    assert bool(((got.double() - exact).abs() <= torch.finfo(dtype).eps * size).all())


def test_weighted_sum_leaves_its_terms_alone() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        stack = torch.ones(2, 3, 4, dtype=dtype)
        for coefficients in ([0.5, 0.5], [torch.tensor(0.5)] * 2):
            for scale in (None, torch.tensor([0.5, 1.0])):
                weighted_sum(stack, coefficients, scale)
            assert torch.equal(stack, torch.ones(2, 3, 4, dtype=dtype))


@pytest.mark.parametrize("direction", ["taylor", "newton"])
@pytest.mark.parametrize("order", [1, 2])
def test_a_sample_does_not_depend_on_its_batch_mates(order: int, direction: str) -> None:
    """With norms per sample the batch splits; with norms of the whole tensor it does not."""
    generator = torch.Generator().manual_seed(0)
    points = [
        (step, torch.randn(4, 3, 2, generator=generator), torch.randn(4, 3, 5, generator=generator))
        for step in (0, 1, 4)
    ]
    present = torch.randn(4, 3, 2, generator=generator)

    def forecasts(norm: str, rows: slice) -> Tensor:
        cut = [(step, given[rows], output[rows]) for step, given, output in points]
        return forecast(Relational(order, direction, norm), cut, 6, present[rows])

    torch.testing.assert_close(forecasts("sample", slice(1, 2)), forecasts("sample", slice(None))[1:2])
    assert not torch.allclose(forecasts("tensor", slice(1, 2)), forecasts("tensor", slice(None))[1:2])


@pytest.mark.parametrize("order", [1, 2])
def test_norms_of_every_so_manieth_token(order: int) -> None:
    """Both norms of the input run over tokens 0, 3, 6, …: what the others do has no say, and they are not kept."""
    generator = torch.Generator().manual_seed(0)
    points = [
        (step, torch.randn(2, 8, 4, generator=generator), torch.randn(2, 8, 5, generator=generator))
        for step in (0, 1, 4)
    ]
    present = torch.randn(2, 8, 4, generator=generator)
    sampled = [(step, given[:, ::3], output) for step, given, output in points]
    expected = forecast(Relational(order), sampled, 6, present[:, ::3])
    got = forecast(Relational(order, token_stride=3), points, 6, present)
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(got, forecast(Relational(order), points, 6, present))
    state = Relational(order, token_stride=3).update(None, (0,), *points[0][1:])
    assert state.input.untyped_storage().nbytes() == 2 * 3 * 4 * 4


def test_a_stride_sees_every_column() -> None:
    """Of 14 lines of 14 tokens every seventh would be two columns; every ninth is all of them."""
    columns = (torch.arange(196) % 14).float().reshape(1, 196, 1)
    for stride in (2, 4, 7, 14):
        seen = subsample(columns, stride)
        assert seen.unique().numel() == 14
        assert 196 / (stride + 3) <= seen.shape[1] <= 196 / stride
    assert torch.equal(subsample(columns, 3), columns[:, ::3])


def test_a_stride_below_one_is_refused() -> None:
    for build in (lambda: Relational(1, token_stride=0), lambda: ErrorBudget(0.1, token_stride=0)):
        with pytest.raises(ValueError, match=r"the token_stride of \w+ is a whole number of at least 1, got 0"):
            build()

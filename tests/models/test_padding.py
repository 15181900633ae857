"""A sample's norms and errors do not depend on the longest prompt of its batch, in families that pad to it.

Those are the families that hold text and picture in one sequence. Where the text is a stream of its own, its forecasts
never reach the picture: at a cached step each module of the picture's stream reads that stream alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import FAMILIES, Family
from tiny import relative_error
from torch import Tensor

import relcache
from relcache import RFC, RFE, Method, TaylorSeer
from relcache.models.padding import before_padding, masked_text

STEPS, IMAGE = 8, 4
LONG, SHORT = 9, 4
Arguments = dict[str, Any]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padded(texts: list[Tensor], left: bool = False) -> tuple[Tensor, Tensor]:
    """Texts of several lengths as one tensor, and which of its tokens are theirs. What pads them is noise."""
    most = max(map(len, texts))
    rows, masks = [], []
    for text in texts:
        missing = random(most - len(text), *text.shape[1:], seed=99)
        rows.append(torch.cat([missing, text] if left else [text, missing]))
        counts = torch.ones(len(text), dtype=torch.bool)
        masks.append(torch.cat([~torch.ones(len(missing), dtype=torch.bool), counts][:: 1 if left else -1]))
    return torch.stack(rows), torch.stack(masks)


def texts_of(width: int, lengths: list[int]) -> list[Tensor]:
    return [random(length, width, seed=length) for length in lengths]


def z_image(lengths: list[int]) -> Arguments:  # texts are filled up to 32 tokens
    return {"cap_feats": texts_of(10, [4 * length for length in lengths])}


def lumina(lengths: list[int]) -> Arguments:
    text, mask = padded(texts_of(10, lengths))
    return {"encoder_hidden_states": text, "encoder_attention_mask": mask.long()}


def ernie(lengths: list[int]) -> Arguments:
    return {"text_bth": padded(texts_of(10, lengths))[0], "text_lens": torch.tensor(lengths)}


def krea(lengths: list[int]) -> Arguments:
    texts = [random(length, 3, 8, seed=length) for length in lengths]
    text, mask = padded(texts)
    ids = torch.cat([torch.zeros(max(lengths), 3), torch.cartesian_prod(torch.zeros(1), *[torch.arange(2.0)] * 2)])
    return {"encoder_hidden_states": text, "encoder_attention_mask": mask, "position_ids": ids}


def omnigen(lengths: list[int]) -> Arguments:
    most = max(lengths)
    ids, masks, places = [], [], []
    for length in lengths:
        missing, own = most - length, length + 1 + IMAGE
        mask = torch.ones(most + 1 + IMAGE, most + 1 + IMAGE)
        mask[missing:, :missing] = 0
        mask[missing : missing + length + 1, missing:] = torch.ones(length + 1, own).tril()
        ids.append(torch.cat([torch.zeros(missing), 1 + torch.arange(length)]).long())
        masks.append(mask)
        places.append(torch.cat([torch.zeros(missing), torch.arange(own)]).long())
    return {"input_ids": torch.stack(ids), "attention_mask": torch.stack(masks), "position_ids": torch.stack(places)}


def ideogram(lengths: list[int]) -> Arguments:
    most = max(lengths)
    text, mask = padded(texts_of(12, lengths), left=True)
    own = torch.cat([mask, torch.ones(len(lengths), IMAGE, dtype=torch.bool)], 1)
    roles = torch.cat([torch.where(mask, 3, -1), torch.full((len(lengths), IMAGE), 2)], 1)
    image = torch.cartesian_prod(torch.zeros(1), *[torch.arange(2.0)] * 2).long() + 65536
    places = [torch.cat([torch.zeros(most - n), torch.arange(n)]).long()[:, None].expand(-1, 3) for n in lengths]
    return {
        "encoder_hidden_states": torch.cat([text, torch.zeros(len(lengths), IMAGE, 12)], 1),
        "position_ids": torch.stack([torch.cat([place, image]) for place in places]),
        "segment_ids": own.long(),
        "indicator": roles,
        "text": most,
    }


FAMILY = {family.class_name: family for family in FAMILIES if not family.variant}
Z_IMAGE = FAMILY["ZImageTransformer2DModel"]
FAMILY[Z_IMAGE.class_name] = replace(Z_IMAGE, config=Z_IMAGE.config | {"axes_lens": [256, 16, 16]})
CASES: dict[str, Callable[[list[int]], Arguments]] = {
    "ZImageTransformer2DModel": z_image,
    "Lumina2Transformer2DModel": lumina,
    "ErnieImageTransformer2DModel": ernie,
    "Krea2Transformer2DModel": krea,
    "OmniGenTransformer2DModel": omnigen,
    "Ideogram4Transformer2DModel": ideogram,
}
each_family = pytest.mark.parametrize("name", CASES)


def calls_of(name: str, lengths: list[int], rows: list[int]) -> list[Arguments]:
    """Arguments of each step: samples that move by themselves, numbered `rows`, with texts of `lengths`."""
    family: Family = FAMILY[name]
    model = family.model()
    size = relcache.Size(1, 4, 4, 1, SHORT)
    calls = []
    for step in range(STEPS):
        given: list[Arguments] = []
        for row in rows:
            with torch.random.fork_rng():
                torch.manual_seed(row)
                start = family.spec.inputs(model.config, size)
                torch.manual_seed(row + 50)
                end = family.spec.inputs(model.config, size)
            key = family.spec.sample or next(iter(start))
            a, b = start[key], end[key]
            a, b = (a[0], b[0]) if isinstance(a, list) else (a, b)
            given.append(start | {key: math.cos(0.3 * step) * a + math.sin(0.3 * step) * b})
        texts = CASES[name](lengths)
        call = given[0] | {key: value for key, value in texts.items() if key != "text"}
        call[key] = [one[key] for one in given] if isinstance(start[key], list) else torch.cat([o[key] for o in given])
        if "text" in texts:  # the sequence holds a place for each token of text
            images = call[key][:, -IMAGE:]
            call[key] = torch.cat([images.new_zeros(len(rows), texts["text"], images.shape[-1]), images], 1)
        time = family.spec.timestep
        moved = given[0][time] * (1 - 0.05 * step) if family.spec.time_runs < 0 else given[0][time] + 0.05 * step
        call[time] = moved.expand(len(rows))
        for other, value in call.items():
            if isinstance(value, list) and len(value) == 1 and len(rows) > 1:
                call[other] = value * len(rows)
        calls.append(call)
    return calls


def outputs_of(model: Any, calls: list[Arguments], rows: int) -> Tensor:
    """(steps, rows, …): what counts of each sample's output."""
    outputs = []
    for call in calls:
        output = model(**call, return_dict=False)[0]
        output = torch.stack(list(output)) if isinstance(output, (list, tuple)) else output
        outputs.append(output[:, -IMAGE:] if "indicator" in call else output)  # of text and padding nothing
        assert len(outputs[-1]) == rows
    return torch.stack(outputs)


@torch.no_grad()
def compare(name: str, method: Method | None, options: dict[str, Any], compiled: bool = False) -> tuple[float, Any]:
    """How far the short prompt's outputs alone are from those beside the long one; the reports of both."""
    found, reports = [], []
    for lengths, rows in (([LONG, SHORT], [1, 2]), ([SHORT], [2])):
        model = FAMILY[name].model()
        if compiled:
            model.compile(backend="eager")
        calls = calls_of(name, lengths, rows)
        if method is None:
            found.append(outputs_of(model, calls, len(rows))[:, -1])
            continue
        with relcache.enable(model, method, **options) as handle:
            found.append(outputs_of(model, calls, len(rows))[:, -1])
            reports.append(handle.report())
    return relative_error(*found), reports


OPTIONS = [{}, {"granularity": "block"}, {"granularity": "stack"}, {"cache_dtype": "int8"}]


@each_family
def test_the_models_themselves_do_not_depend_on_it(name: str) -> None:
    """Without a cache: else the comparison would be of no use."""
    assert compare(name, None, {})[0] < 1e-5


@each_family
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "method", [RFE(1, interval=3), RFE(2, interval=3), TaylorSeer(2, interval=3)], ids=lambda m: f"{m.name}-{m.order}"
)
def test_alone_and_beside_a_longer_prompt(name: str, options: dict[str, Any], method: Method) -> None:
    error, reports = compare(name, method, options)
    assert error < (1e-3 if "cache_dtype" in options else 2e-5)  # packing rounds what differs in the last digit
    assert all(report.nfc < STEPS for report in reports)


@each_family
def test_compiled(name: str) -> None:
    torch._dynamo.reset()
    assert compare(name, RFE(2, interval=3), {"granularity": "block"}, compiled=True)[0] < 2e-5
    torch._dynamo.reset()


@each_family
@pytest.mark.parametrize("granularity", ["module", "stack"])
@torch.no_grad()
def test_the_error_that_decides(name: str, granularity: Any) -> None:
    """The error of a batch is the mean of those of its samples alone."""
    signals = []
    for lengths, rows in (([LONG, SHORT], [1, 2]), ([LONG], [1]), ([SHORT], [2])):
        model = FAMILY[name].model()
        with relcache.enable(model, RFC(1, threshold=1e6), granularity=granularity) as handle:
            outputs_of(model, calls_of(name, lengths, rows), len(rows))
            signals.append(torch.tensor([error for error in handle.report().signal if error is not None]))
    both, first, second = signals
    assert len(both) == STEPS - 2
    torch.testing.assert_close(both, (first + second) / 2, rtol=1e-3, atol=1e-5)


def test_masks() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    assert masked_text("m")({"m": mask.long()}, 3).tolist() == [[True, True, True], [True, False, True]]
    assert masked_text("m")({}, 3) is None
    assert before_padding(torch.tensor([1, 2]), 2, 4).tolist() == [[True, True, True, False], [True] * 4]

"""A limit of memory chooses how features are held: what, when, how often it is thought about, and what it says."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, HunyuanVideoTransformer3DModel
from tiny import BrokenOff, DiTWithContext, run_guided, run_loop, run_pipeline, timesteps_for, tiny_dit, tiny_pipeline

import relcache
from relcache import RCS, RFC, TaylorSeer
from relcache.checks import as_text, bytes_from
from relcache.memory import choice as memory
from relcache.memory.choice import Way, ways

METHOD = TaylorSeer(1, interval=4)


@pytest.mark.parametrize(
    ("text", "amount"),
    [("6GB", 6 * 10**9), ("800 MB", 8 * 10**8), ("6 GiB", 6 * 2**30), ("1.5gb", 15 * 10**8), (" 2 kB ", 2000),
     ("7B", 7), (4096, 4096)],
)  # fmt: skip
def test_amounts(text: Any, amount: int) -> None:
    assert bytes_from(text) == amount


@pytest.mark.parametrize("text", ["6", "six GB", "6 G", "6 iB", "-1 GB", "", 1.5, True, None, b"6GB"])
def test_what_is_no_amount(text: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"such as '6GB', '800 MB' or '6 GiB' (kB, MB, GB, TB, KiB, MiB, "
                                                   f"GiB, TiB); got {text!r}")):  # fmt: skip
        bytes_from(text)


@pytest.mark.parametrize("text", [0, -5, "0 GB", "0.1 B"])
def test_no_bytes_at_all(text: Any) -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        relcache.enable(tiny_dit(), METHOD, memory_limit=text)


def test_amounts_as_text() -> None:
    assert [as_text(n) for n in (999, 1500, 88_257_331_800, 6 * 10**9)] == ["999 B", "1.5 kB", "88.3 GB", "6 GB"]


def test_order_of_preference() -> None:
    """What was asked for, fewer bytes for each number, coarser units, and the host's memory after all of these."""
    tried = [(*way,) for way in ways(Way(), (), wide=True, movable=False)]
    assert tried == [
        (granularity, dtype, "none")
        for granularity in ("module", "block", "stack")
        for dtype in ("features", "bfloat16", "int8")
    ]
    assert [way[:2] for way in ways(Way(), (), wide=False, movable=False)] == [
        (granularity, dtype) for granularity in ("module", "block", "stack") for dtype in ("features", "int8")
    ]
    both = ways(Way(), (), wide=True, movable=True)
    assert [way[:2] for way in both[9:]] == [way[:2] for way in both[:9]]
    assert {way.offload for way in both[9:]} == {"cpu"}


def test_what_was_asked_for_is_the_beginning() -> None:
    assert ways(Way("stack", "float8"), (), wide=True, movable=False) == [Way("stack", "float8")]
    assert ways(Way("block", "bfloat16"), (), True, False) == [
        Way("block", "bfloat16"), Way("block", "int8"), Way("stack", "bfloat16"), Way("stack", "int8"),
    ]  # fmt: skip
    assert ways(Way("module", "features", "cpu"), {"granularity", "cache_dtype"}, True, True) == [
        Way("module", "features", "cpu")
    ]


def held_by(blocks: int, **options: Any) -> int:
    model = tiny_dit(blocks=blocks)
    return relcache.enable(model, METHOD, **options).estimate(8, width=8, batch=2)


@cache
def ways_and_bytes(blocks: int) -> dict[Way, int]:
    return {
        way: held_by(blocks, granularity=way.granularity, cache_dtype=way.cache_dtype)
        for way in ways(Way(), (), wide=True, movable=False)
    }


def first_within(limit: int, known: dict[Way, int]) -> Way:
    return next(way for way, held in known.items() if held <= limit)


def test_each_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that fits is taken, what it says it holds is what is held, and the pictures are those of that way."""
    known = ways_and_bytes(3)
    for limit in (known[Way()], known[Way("module", "int8")], known[Way("block", "int8")], known[Way("stack")]):
        way = first_within(limit, known)
        model, plain = tiny_dit(blocks=3), tiny_dit(blocks=3)
        handle = relcache.enable(model, METHOD, memory_limit=limit)
        relcache.enable(plain, METHOD, granularity=way.granularity, cache_dtype=way.cache_dtype)
        assert torch.equal(run_loop(model), run_loop(plain))
        report = handle.report()
        assert report.cache_bytes == known[way] <= limit
        choice = handle.choose(8, width=8, batch=2)
        assert (choice.way, choice.chosen.cache_bytes) == (way, report.cache_bytes)
        asked = "" if way == Way() else f"; as asked ({Way()}) it would take {as_text(known[Way()])}"
        assert report.notes == [
            f"memory_limit {as_text(limit)}: {way}: {as_text(known[way])} of cache{asked or ', as asked'}"
        ]
        assert report.full_steps == [0, 1, 5, 9]
    handle.disable()
    assert torch.equal(run_loop(model), run_loop(tiny_dit(blocks=3)))


def test_nothing_fits() -> None:
    """Every choice has its number, and nothing was computed."""
    known, model = ways_and_bytes(3), tiny_dit(blocks=3)
    handle = relcache.enable(model, METHOD, memory_limit=100)
    computed: list[Any] = []
    model.pos_embed.register_forward_hook(lambda *_: computed.append(None))
    with pytest.raises(ValueError, match="nothing keeps the cache within memory_limit 100 B: ") as error:
        run_loop(model)
    for way, held in known.items():
        assert f"{way}: {as_text(held)} of cache" in str(error.value)
    assert not computed
    assert handle.report().steps == 0
    with pytest.raises(ValueError, match="nothing keeps the cache within memory_limit 100 B"):
        handle.choose(8, width=8)


def test_what_is_given_is_kept() -> None:
    known = ways_and_bytes(3)
    limit = known[Way("stack", "bfloat16")]
    model = tiny_dit(blocks=3)
    relcache.enable(model, METHOD, memory_limit=limit, granularity="module")
    with pytest.raises(ValueError, match=r"\(granularity kept as given\)"):
        run_loop(model)
    relcache.enable(
        model, relcache.method_from_text("taylorseer:order=1,interval=4,cache_dtype=bfloat16,memory_limit=1TB")
    )
    handle = relcache.enable(
        model, relcache.method_from_text(f"taylorseer:order=1,interval=4,cache_dtype=bfloat16,memory_limit={limit}")
    )
    run_loop(model)
    assert handle.report().units == 1
    assert handle._session.way == Way("stack", "bfloat16")


class Counted:
    """Counts the forwards without values."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = memory.features_of

        def counting(*args: Any) -> Any:
            self.count += 1
            return original(*args)

        monkeypatch.setattr(memory, "features_of", counting)


def test_what_was_found_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shape costs a forward without values for each granularity that is looked at, once."""
    counted, known = Counted(monkeypatch), ways_and_bytes(3)
    counted.count = 0
    model = tiny_dit(blocks=3)
    handle = relcache.enable(model, METHOD, memory_limit=known[Way("block", "int8")])
    run_loop(model)
    assert counted.count == 2
    for seeds in ([4, 5], [6, 7]):
        run_loop(model, seeds=seeds)
    assert counted.count == 2
    run_loop(model, torch.tensor([1]))
    assert (counted.count, handle._session.way) == (3, Way("module", "int8"))
    run_loop(model)
    assert (counted.count, handle._session.way) == (3, Way("block", "int8"))


@pytest.mark.parametrize("context", [False, True], ids=["conditioning", "cache_context"])
def test_a_second_branch(context: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known when its first call comes: chosen again, and known beforehand from then on."""
    counted, known = Counted(monkeypatch), ways_and_bytes(2)
    limit = 2 * known[Way("stack")]
    assert first_within(limit, known) == Way("module", "bfloat16")
    model, plain = tiny_dit(kind=DiTWithContext), tiny_dit(kind=DiTWithContext)
    handle = relcache.enable(model, METHOD, memory_limit=limit)
    run_guided(model, context=context)
    report = handle.report()
    branch, chosen = "uncond" if context else "1", Way("block", "bfloat16")
    assert report.notes == [
        f"memory_limit {as_text(limit)}: {chosen}: {as_text(2 * known[chosen])} of cache; as asked ({Way()}) it would "
        f"take {as_text(2 * known[Way()])}; chosen at step 0, when branch {branch!r} came: its cache was dropped"
    ]  # fmt: skip
    assert report.full_steps[:3] == [0, 1, 2]  # the first branch has a full step less
    assert report.cache_bytes <= limit
    assert report.flops < report.full_flops
    relcache.enable(plain, METHOD, granularity="block", cache_dtype="bfloat16")
    count = counted.count
    assert torch.equal(run_guided(model, context=context), run_guided(plain, context=context))
    assert handle.report().full_steps == [0, 1, 5, 9]
    assert "dropped" not in handle.report().notes[0]
    assert handle.choose(8, width=8).way == chosen
    assert counted.count == count + 2  # a size is another question than the shapes of a call


def test_a_branch_that_comes_late() -> None:
    """In the middle of a request, at a cached step: the record goes on, and FLOPs are those of the units that were."""
    known = ways_and_bytes(2)
    model = tiny_dit()
    handle = relcache.enable(model, METHOD, memory_limit=known[Way("block")])
    run_guided(model, uncond_steps=range(7, 12))
    report = handle.report()
    assert (report.steps, report.units) == (12, 2)
    assert "chosen at step 7, when branch '1' came" in report.notes[0]
    assert report.full_steps == [0, 1, 5, 8, 9]
    assert 0 < report.flops < report.full_flops


def test_no_way_for_a_second_branch() -> None:
    """The error comes when the branch does, and a request without it works again."""
    known = ways_and_bytes(2)
    model = tiny_dit()
    handle = relcache.enable(model, METHOD, memory_limit=known[Way("stack", "int8")] + 1)
    with pytest.raises(ValueError, match="nothing keeps the cache within"):
        run_guided(model)
    run_loop(model)
    assert handle.report().full_steps == [0, 1, 5, 9]


def test_after_an_accident() -> None:
    known, model, fresh = ways_and_bytes(2), tiny_dit(), tiny_dit()
    limit = known[Way("stack")]
    relcache.enable(model, METHOD, memory_limit=limit)
    with pytest.raises(BrokenOff):
        run_loop(model, break_at=3, size=16, labels=torch.tensor([1]))
    relcache.enable(fresh, METHOD, memory_limit=limit)
    assert torch.equal(run_loop(model), run_loop(fresh))


@pytest.mark.parametrize(
    "surroundings", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["inference", "autocast"]
)
def test_in_other_modes(surroundings: Any) -> None:
    limit = ways_and_bytes(2)[Way("stack")]
    model = tiny_dit()
    handle = relcache.enable(model, METHOD, memory_limit=limit)
    with surroundings():
        run_loop(model, steps=6)
        run_loop(model, steps=6)
    report = handle.report()
    assert 0 < report.cache_bytes <= limit
    assert report.full_steps == [0, 1, 5]


@pytest.mark.parametrize("method", [RFC(2, threshold=0.6), RCS(1, threshold=0.6)], ids=lambda method: method.name)
def test_a_pipeline(method: Any) -> None:
    """Sizes in pixels, rows doubled by guidance."""
    pipeline = tiny_pipeline(blocks=3)
    handle = relcache.enable(pipeline, method)
    asked = handle.estimate(8, width=8, batch=4)
    handle = relcache.enable(pipeline, method, memory_limit=asked // 3)
    before = handle.choose(8, width=8, batch=4)
    run_pipeline(pipeline, [3, 5])
    report = handle.report()
    assert report.cache_bytes == before.chosen.cache_bytes <= asked // 3
    assert str(before) == report.notes[0]


def test_a_model_of_ones_own() -> None:
    """Without `inputs` in its spec a model's modules can be packed, and its blocks cannot be found."""
    model = tiny_dit()
    spec = relcache.ModelSpec(
        "DiTTransformer2DModel", modules=("transformer_blocks.*.attn1", "transformer_blocks.*.ff"),
        conditioning=("class_labels",),
    )  # fmt: skip
    held = held_by(2)
    handle = relcache.enable(model, METHOD, spec=spec, memory_limit=held * 6 // 10)
    run_loop(model)
    assert handle._session.way == Way("module", "bfloat16")
    relcache.enable(model, METHOD, spec=spec, memory_limit=held // 10)
    with pytest.raises(ValueError, match=r"granularity 'stack': not possible \(the spec of .* does not say"):
        run_loop(model)


def test_a_choice_without_a_limit(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, METHOD)
    with pytest.raises(ValueError, match=r"choose\(\) needs memory_limit="):
        handle.choose(8, width=8)
    assert handle.choose(8, width=8, memory_limit="1 GB").way == Way()


# Full size, without weights


@pytest.fixture(scope="module")
def hunyuan() -> HunyuanVideoTransformer3DModel:
    with torch.device("meta"):
        return HunyuanVideoTransformer3DModel().to(torch.bfloat16)


def test_hunyuan_video(hunyuan: HunyuanVideoTransformer3DModel) -> None:
    """720p, 129 frames: latents of 90 x 160 x 33, bfloat16. Of 80 GB the weights leave 50, of 24 GB (packed) 6."""
    size = {"height": 90, "width": 160, "frames": 33}
    handle = relcache.enable(hunyuan, TaylorSeer(1, interval=5))
    by_limit = {limit: handle.choose(**size, memory_limit=limit) for limit in ("50 GB", "6 GB", "1 GB")}
    assert {limit: choice.way[:2] for limit, choice in by_limit.items()} == {
        "50 GB": ("block", "int8"), "6 GB": ("stack", "features"), "1 GB": ("stack", "int8"),
    }  # fmt: skip
    assert by_limit["6 GB"].chosen.device_bytes <= 1.5e9
    assert by_limit["6 GB"].options[0].cache_bytes > 100e9
    # RFC also keeps the input and, of the first module's, the error signal: at the stack three more features
    relational = relcache.enable(hunyuan, RFC(1, threshold=0.1), granularity="stack")
    with pytest.raises(
        ValueError, match=r"granularity 'stack': 3\.65 GB of cache; granularity 'stack', int8: 1\.83 GB"
    ):
        relational.choose(**size, memory_limit="1.5 GB")
    sampled = relcache.enable(hunyuan, RFC(1, threshold=0.1, token_stride=8), granularity="stack")
    assert sampled.choose(**size, memory_limit="1.5 GB").way == Way("stack", "int8")
    sampled = relcache.enable(hunyuan, RFC(1, threshold=0.1, token_stride=64), granularity="stack")
    assert sampled.choose(**size, memory_limit="1.5 GB").way == Way("stack", "features")
    # in the host's memory a cache takes, on the device, what is on its way: two units in and two states out
    moved = handle._session.chooser.weigh(Way("module", "int8", "cpu"), handle._calls(90, 160, 33, None, None, None))
    assert str(moved) == "granularity 'module', int8, offload: 2.93 GB of cache and 58.6 GB in the host's memory"


@pytest.mark.parametrize("what", ["model", "blocks"])
def test_a_limit_knows_of_compiled_code(what: str) -> None:
    """Units inside it keep their inputs and outputs until the call ends, and cannot lie in the host's memory."""
    torch._dynamo.reset()  # after many models in one process torch.compile gives up
    plain, model = tiny_dit(blocks=4), tiny_dit(blocks=4)
    for module in [model] if what == "model" else model.transformer_blocks:
        module.compile(backend="eager")
    there, handle = (relcache.enable(each, TaylorSeer(1, interval=5)) for each in (plain, model))

    def weighed(handle: relcache.Handle, way: Way) -> Any:
        return handle._session.chooser.weigh(way, handle._calls(8, 8, 1, 2, None, None))

    feature = 2 * 16 * 16 * 4
    inside, outside = weighed(handle, Way()), weighed(there, Way())
    assert inside.device_bytes - outside.device_bytes == 8 * 2 * feature
    assert inside.cache_bytes == outside.cache_bytes
    assert "no use inside compiled code" in weighed(handle, Way(offload="cpu")).problem
    blocks = Way("block", offload="cpu")
    assert (weighed(handle, blocks) == weighed(there, blocks)) == (what == "blocks")
    run_loop(model)
    assert handle.report().device_bytes == inside.device_bytes


def test_requests_that_take_turns_within_a_limit() -> None:
    """What is held never exceeds it, whichever takes its turn; each reads that the other has cost it its cache."""
    model = tiny_dit(blocks=4)
    free = relcache.enable(model, TaylorSeer(1, interval=4))
    run_loop(model)
    limit = free.report().cache_bytes
    handle = relcache.enable(model, TaylorSeer(1, interval=4), memory_limit=limit)
    names = [handle.request(), handle.request()]
    seen: list[int] = []

    def take_turns() -> None:
        for timestep in timesteps_for(10).float():
            for turn, name in enumerate(names):
                with name, torch.no_grad():
                    sample = torch.ones(2, 4, 8, 8 + 4 * turn)
                    model(sample, timestep=timestep.expand(2), class_labels=torch.tensor([3, 5]))
                runs = handle._session.requests.all
                seen.append(sum(run.request.cached_bytes()[0] for run in runs if run.request is not None))

    with pytest.warns(UserWarning, match="another request took its turn"):
        take_turns()
    assert 0 < max(seen) <= limit
    assert any("took its turn" in note for note in handle.report().notes)

"""Features in the host's memory between the steps: when they travel, what stays on the device, what comes back.

There is no accelerator here. A stand-in copies between tensors of the CPU and keeps a journal; the streams of the real
mover are stand-ins as well, and what waits for what is read off their journals.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from tiny import BrokenOff, DiTWithContext, noise_for, run_guided, run_loop, timesteps_for, tiny_dit
from torch import Tensor

import relcache
from relcache import FORA, RFC, RFE, TaylorSeer
from relcache.engine.state import Signal
from relcache.storage import store
from relcache.storage.offload import Copy, Mover, StreamMover
from relcache.storage.store import MOST_LEAVING, Offloaded, Store, tensors, tensors_on_device

CPU = torch.device("cpu")
METHODS = [FORA(4), TaylorSeer(1, interval=4), RFC(2, threshold=0.6)]


class Journal(Mover):
    """A mover that remembers what it did, and which of its copies on the "device" are alive."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, int]] = []
        self.brought: list[weakref.ref[Tensor]] = []
        self.sources: list[weakref.ref[Tensor]] = []

    def leave(self, source: Tensor) -> Copy:
        copy = super().leave(source)
        self.sources.append(weakref.ref(source))
        self.entries.append(("leave", id(copy.target)))
        return copy

    def release(self, copy: Copy) -> None:
        self.entries.append(("release", id(copy.target)))

    def bring(self, host: Tensor, device: torch.device, after: Copy) -> Copy:
        assert after.target is host
        copy = super().bring(host, device, after)
        self.entries.append(("bring", id(host)))
        self.brought.append(weakref.ref(copy.target))
        return Copy(copy.target, id(host))

    def arrive(self, copy: Copy) -> Tensor:
        self.entries.append(("arrive", copy.done))
        return copy.target

    @property
    def alive(self) -> int:
        """Copies on the device that somebody still holds: on their way out, or brought back."""
        return sum(reference() is not None for reference in self.sources + self.brought)

    def places(self, kind: str, order: dict[int, int]) -> list[int]:
        """The units that the entries of one kind belong to, each run of one unit once."""
        found = [order[host] for entry, host in self.entries if entry == kind and host in order]
        return [place for number, place in enumerate(found) if not number or found[number - 1] != place]


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Journal:
    """The mover of every store that is made with offload="cpu"."""
    mover = Journal()
    monkeypatch.setattr(store, "StreamMover", lambda: mover)
    return mover


@pytest.mark.parametrize(
    ("granularity", "cache_dtype"), [("module", "features"), ("module", "int8"), ("stack", "features")]
)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{method.order}")
def test_pictures_are_the_same(method: Any, cache_dtype: Any, granularity: Any, journal: Journal) -> None:
    """To the last bit, and after each request nothing of the cache's features is on the device."""
    options = {"granularity": granularity, "cache_dtype": cache_dtype}
    plain, model = tiny_dit(), tiny_dit()
    there = relcache.enable(plain, method, **options)
    handle = relcache.enable(model, method, offload="cpu", **options)
    for seeds in ([0, 1], [5, 6]):
        assert torch.equal(run_loop(model, steps=8, seeds=seeds), run_loop(plain, steps=8, seeds=seeds))
    request, other = handle._session.cache.request, there._session.cache.request
    assert request.full_steps == other.full_steps
    # on the device the first module's input is part of the error signal's memory, in the host's it is by itself
    input_alone = isinstance(request.branches["0"].signal, Signal) and granularity == "module"
    input_alone = input_alone and cache_dtype == "features"
    assert request.cache_bytes == other.cache_bytes + input_alone * 2 * 16 * 16 * 4
    assert other.cache_bytes == other.device_bytes
    assert journal.alive == 0
    assert_same(handle.states(), there.states())
    assert journal.alive == 0


def assert_same(left: Any, right: Any) -> None:
    pairs = zip(torch.utils._pytree.tree_leaves(left), torch.utils._pytree.tree_leaves(right), strict=True)
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def order_of(handle: relcache.Handle) -> dict[int, int]:
    """Unit of each tensor in the host's memory."""
    (branch,) = handle._session.cache.request.branches.values()
    cells = enumerate(branch.cells)
    states = [(place, stream.state) for place, cell in cells for stream in cell.streams] + [
        (0, branch.signal.stack if branch.signal else None)
    ]
    leaves = [(place, leaf) for place, state in states for leaf in torch.utils._pytree.tree_leaves(state)]
    return {id(leaf.host): place for place, leaf in leaves if isinstance(leaf, Offloaded)}


@pytest.mark.parametrize("full", [False, True], ids=["cached step", "full step"])
def test_the_next_unit_is_on_its_way(full: bool, journal: Journal) -> None:
    """While a unit is computed or forecast, its features and the next one's are there or coming, and no others."""
    model = tiny_dit(blocks=4)
    handle = relcache.enable(model, RFE(1, interval=3) if not full else RFE(1, interval=100, warmup=3), offload="cpu")
    stop_after(model, 2)
    order, held = order_of(handle), []
    journal.entries.clear()
    request = handle._session.cache.request
    unit_bytes = request.cache_bytes // 8
    for module in (module for block in model.transformer_blocks for module in (block.attn1, block.ff)):
        forward = module.forward

        def watched(*args: Any, forward: Any = forward, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            leaving = {id(source()) for source in journal.sources}  # what was extended leaves from where it came to
            held.append(
                sum(value().nbytes for value in journal.brought if value() is not None and id(value()) not in leaving)
            )
            return output

        module.__dict__["forward"] = watched
    step(model, 2)
    brought, arrived = journal.places("bring", order), journal.places("arrive", order)
    assert brought == arrived == list(range(8))
    entries = [(kind, order[host]) for kind, host in journal.entries if host in order]
    for place in range(7):  # begun before the unit ahead of it is given its features
        assert entries.index(("bring", place + 1)) < entries.index(("arrive", place))
        assert ("bring", place + 2) not in entries[: entries.index(("arrive", place))]
    assert max(held) <= 2 * unit_bytes
    assert request.device_bytes <= 4.1 * unit_bytes  # two units on their way in, two states on their way out
    assert journal.alive == 0


def test_the_error_signal_travels_once(journal: Journal) -> None:
    """To decide at a cached step; once more where the step turns out full, to be extended."""
    model = tiny_dit()
    handle = relcache.enable(model, relcache.Method(relcache.Taylor(1), relcache.ErrorBudget(1e9)), offload="cpu")
    stop_after(model, 2)
    (branch,) = handle._session.cache.request.branches.values()
    ladder = [leaf.host for leaf in torch.utils._pytree.tree_leaves(branch.signal) if isinstance(leaf, Offloaded)]
    journal.entries.clear()
    step(model, 2)
    assert handle._session.cache.request.full_steps == [0, 1]
    assert [[entry for entry in journal.entries if entry == ("bring", id(term))] for term in ladder] == [
        [("bring", id(term))] for term in ladder
    ]


def stop_after(model: DiTTransformer2DModel, steps: int) -> None:
    with pytest.raises(BrokenOff):
        run_loop(model, steps=12, break_at=steps)


def step(model: DiTTransformer2DModel, number: int) -> Tensor:
    """One more step of the loop that `stop_after` broke off."""
    with torch.no_grad():
        return model(noise_for([0, 1]), timestep=timesteps_for(12)[number].expand(2), class_labels=torch.tensor([3, 5]))


def test_few_features_are_on_their_way_to_the_host(journal: Journal) -> None:
    """The sources of copies are let go of in their order, after the work was told to wait for them."""
    kept = Store("int8", "cpu")
    features = [torch.randn(2, 3, 4) for _ in range(5)]
    for value in features:
        kept.put((value, 3), [value])
        assert len(kept._leaving) <= MOST_LEAVING
    left = [host for kind, host in journal.entries if kind == "leave"]
    assert [host for kind, host in journal.entries if kind == "release"] == left[: -2 * MOST_LEAVING]
    kept.close()
    assert [host for kind, host in journal.entries if kind == "release"] == left
    assert journal.alive == 0


def test_what_others_may_write_into_is_copied_first(journal: Journal) -> None:
    """A module's output goes on in the model: what leaves for the host is a copy made there and then."""
    kept = Store("features", "cpu")
    output = torch.ones(2, 3)
    difference = output - 0.5
    kept.put((output, difference), [output])
    sources = [reference() for reference in journal.sources]
    assert sources[0] is not output
    assert sources[0].data_ptr() != output.data_ptr()
    assert sources[1] is difference


def test_what_two_states_share_is_kept_once(journal: Journal) -> None:
    for offload in ("none", "cpu"):
        kept, shared = Store("int8", offload), {}
        features = torch.randn(2, 3, 64)
        first = kept.put({"input": features}, [features], shared)
        second = kept.put([features, features + 1], [features], shared)
        assert tensors(first)[0] is tensors(second)[0]
        assert torch.equal(kept.get(first)["input"], kept.get(second)[0])
        assert not tensors_on_device(first) or offload == "none"


def test_what_nobody_came_for_is_dropped(journal: Journal) -> None:
    kept = Store("features", "cpu")
    states = [kept.put(value, [value]) for value in (torch.randn(2, 3) for _ in range(3))]
    kept.prefetch(states[:2])
    kept.prefetch(states[2:])
    kept.close()
    assert journal.alive == 0
    assert torch.equal(kept.get(states[0]), states[0].host)


@pytest.mark.parametrize("error", [BrokenOff, KeyboardInterrupt])
def test_a_request_broken_off(error: type[BaseException], journal: Journal) -> None:
    """Nothing stays on the device, and the next request is as if nothing had been."""
    model, plain = tiny_dit(blocks=3), tiny_dit(blocks=3)
    relcache.enable(plain, RFC(2, threshold=0.6))
    expected = run_loop(plain)
    relcache.enable(model, RFC(2, threshold=0.6), offload="cpu")
    layer, calls = model.transformer_blocks[1].ff.net[0], []

    def stumble(*_: Any) -> None:
        calls.append(None)
        if len(calls) == 3:
            raise error

    hook = layer.register_forward_pre_hook(stumble)
    with pytest.raises(error):
        run_loop(model)
    hook.remove()
    assert torch.equal(run_loop(model), expected)
    assert journal.alive == 0


def test_two_branches(journal: Journal) -> None:
    model, plain = tiny_dit(kind=DiTWithContext), tiny_dit(kind=DiTWithContext)
    relcache.enable(plain, RFC(2, threshold=0.6))
    relcache.enable(model, RFC(2, threshold=0.6), offload="cpu", cache_dtype="features")
    assert torch.equal(run_guided(model, context=True), run_guided(plain, context=True))
    assert journal.alive == 0


def test_nothing_changes_where_features_lie_on_the_cpu(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, RFC(2, threshold=0.6), offload="cpu")
    plain = tiny_dit()
    there = relcache.enable(plain, RFC(2, threshold=0.6))
    assert torch.equal(run_loop(model), run_loop(plain))
    report, other = handle.report(), there.report()
    assert report.cache_bytes == report.device_bytes == other.cache_bytes
    assert report.notes == ["offload='cpu' has no effect: features are already in the host's memory"]
    assert not other.notes


def test_options() -> None:
    method = relcache.method_from_text("rfc:order=1,offload=cpu,cache_dtype=int8")
    assert (method.offload, method.cache_dtype) == ("cpu", "int8")
    with pytest.raises(ValueError, match=r"offload is one of 'none', 'cpu', got 'disk'"):
        relcache.enable(tiny_dit(), method, offload="disk")  # type: ignore[arg-type]


# The real mover, with streams that write down what they are told


class Stream:
    """What a stream of an accelerator was told, in order."""

    def __init__(self, name: str) -> None:
        self.name, self.told = name, []

    def wait_stream(self, other: Stream) -> None:
        self.told.append(("wait for all of", other.name, len(other.told)))

    def wait_event(self, event: tuple[str, int]) -> None:
        self.told.append(("wait for", *event))

    def record_event(self) -> tuple[str, int]:
        return (self.name, len(self.told))


class Device:
    """Stands in for torch.cuda."""

    def __init__(self) -> None:
        self.work, self.made = Stream("work"), []
        self.present = self.work

    def current_stream(self, device: torch.device) -> Stream:
        return self.present

    def Stream(self, device: torch.device) -> Stream:
        self.made.append(Stream("out" if not self.made else "back"))
        return self.made[-1]

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        outer, self.present = self.present, stream
        yield
        self.present = outer


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(torch, "get_device_module", lambda device: made)
    original, copy = torch.empty_like, Tensor.copy_

    def empty_like(value: Tensor, device: Any = None, pin_memory: bool = False) -> Tensor:
        assert pin_memory == (device == "cpu")
        made.present.told.append(("allocate", device == "cpu"))
        return original(value)

    def copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        assert non_blocking
        made.present.told.append(("copy",))
        return copy(target, source)

    monkeypatch.setattr(torch, "empty_like", empty_like)
    monkeypatch.setattr(Tensor, "copy_", copied)
    return made


def test_streams_wait_for_each_other(device: Device) -> None:
    mover = StreamMover()
    gone = mover.leave(torch.ones(3))
    out, back = device.made
    assert device.work.told == [("allocate", True)]
    assert out.told == [("wait for all of", "work", 1), ("copy",)]
    coming = mover.bring(gone.target, CPU, gone)
    assert back.told == [("wait for all of", "work", 2), ("wait for", "out", 2), ("copy",)]
    assert torch.equal(mover.arrive(coming), torch.ones(3))
    mover.release(gone)
    assert device.work.told == [
        ("allocate", True),
        ("allocate", False),
        ("wait for", "back", 3),
        ("wait for", "out", 2),
    ]
    assert device.present is device.work


def test_which_devices_have_another_memory() -> None:
    moves = StreamMover().moves
    assert moves(torch.device("cuda", 1))
    assert moves(torch.device("xpu"))
    assert not any(moves(torch.device(name)) for name in ("cpu", "meta", "mps"))


def test_a_work_on_another_stream(device: Device) -> None:
    """What was brought for one stream of work and is used on another is kept from both."""
    mover, recorded = StreamMover(), []
    gone = mover.leave(torch.ones(3))
    target = SimpleNamespace(device=CPU, record_stream=recorded.append)
    device.present = other = Stream("other")
    mover.arrive(Copy(target, gone.done, device.work))  # type: ignore[arg-type]
    assert other.told == [("wait for", "out", 2)]
    assert device.work.told[-1] == ("wait for", "out", 2)
    assert recorded == [other]


@pytest.mark.parametrize("what", ["model", "blocks"])
def test_no_use_inside_compiled_code(what: str, journal: Journal) -> None:
    """Refused before anything is computed; where the compiled blocks are the units, they are offloaded like others."""
    model = tiny_dit(blocks=6)
    for module in [model] if what == "model" else model.transformer_blocks:
        module.compile(backend="eager")
    calls: list[Any] = []
    model.pos_embed.register_forward_hook(lambda *given: calls.append(given))
    relcache.enable(model, TaylorSeer(1, interval=4), offload="cpu")
    with pytest.raises(ValueError, match="offload='cpu' has no use inside compiled code"):
        run_loop(model)
    assert not calls
    if what == "blocks":
        handle = relcache.enable(model, TaylorSeer(1, interval=4), offload="cpu", granularity="block")
        run_loop(model)
        assert handle.report().device_bytes < handle.report().cache_bytes

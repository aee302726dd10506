"""What was learned in service survives a restart to the last bit; a file that is not right changes nothing."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from saga_rl.errors import UserError
from saga_rl.policies.state import tables as tb
from saga_rl.runtime.sessions import statistics
from saga_rl.runtime.sessions.hints import Hints
from saga_rl.runtime.sessions.statistics import Keeper, load, path_of, save
from saga_rl.runtime.sessions.tracker import MAX_TOOLS, MAX_TYPES, Tracker


def taught(steps: int, tools: int, types: int, seed: int = 0) -> Tracker:
    """A tracker that served sessions of random lengths, tools and gaps."""
    rng, tracker, now = np.random.default_rng(seed), Tracker(), 100.0
    for k in range(steps):
        session = int(rng.integers(max(steps // 6, 1)))
        tool = f"tool-{rng.integers(tools)}" if rng.random() < 0.8 else None
        now += float(rng.lognormal(0.0, 2.0))
        hints = Hints(f"s{session}", tool=tool, next_tool=f"tool-{rng.integers(tools)}" if k % 3 else None,
                      agent_type=f"type-{session % types}", final=bool(rng.random() < 0.1))
        served = tracker.arrive(hints, now, int(rng.integers(1, 5000)))
        tracker.schedule(served, now + 0.1)
        tracker.finish(served, now + 0.5, int(rng.integers(1, 400)))
    return tracker


def same(a: Tracker, b: Tracker) -> bool:
    return a.tools.codes == b.tools.codes and a.types.codes == b.types.codes and all(
        x.shape == y.shape and x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(a.tables, b.tables, strict=True))


def restored(path) -> Tracker:
    tracker = Tracker()
    load(tracker, path)
    return tracker


@pytest.mark.parametrize(("steps", "tools", "types"), [(0, 1, 1), (1, 1, 1), (400, 5, 3), (3000, 40, 12),
                                                       (1500, 300, 60)])
def test_a_round_trip_is_exact(tmp_path, steps, tools, types):
    tracker, path = taught(steps, tools, types), tmp_path / "x.safetensors"
    save(tracker, path)
    again = restored(path)
    assert same(tracker, again)
    assert path.stat().st_size < statistics.MAX_BYTES
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_window_that_has_turned_over_is_exact_and_goes_on_alike(tmp_path):
    """More returns than the window holds: the oldest leave in their order after the restart, too."""
    tracker = Tracker()
    rng = np.random.default_rng(3)
    for seconds in rng.lognormal(0, 3, 700):
        tb.observe_return(tracker.tables, 0, 0, -1, seconds, 10.0)
    save(tracker, tmp_path / "x")
    again = restored(tmp_path / "x")
    assert same(tracker, again)
    assert again.tables.above[0, -1, 0] == tb.WINDOW
    for seconds in rng.lognormal(0, 3, 300):
        for t in (tracker, again):
            tb.observe_return(t.tables, 0, 0, -1, seconds, 10.0)
    assert same(tracker, again)


def test_a_restart_in_the_middle_is_as_if_there_was_none(tmp_path):
    """The same requests afterwards give the same tables; only who was there before the restart is forgotten."""
    tracker = taught(300, 6, 2)
    save(tracker, tmp_path / "x")
    again, now = restored(tmp_path / "x"), 1e6
    for t in (tracker, again):
        for k in range(50):
            served = t.arrive(Hints(f"new{k % 5}", tool=f"late-{k % 20}", agent_type="fresh"), now + k, 100 + k)
            t.schedule(served, now + k)
            t.finish(served, now + k + 0.25, 3)
    assert same(tracker, again)


def test_names_past_their_limit_stay_bounded(tmp_path):
    tracker = Tracker()
    for k in range(2 * MAX_TOOLS):
        served = tracker.arrive(Hints(f"s{k}", next_tool=f"tool {k}", agent_type=f"type {k}"), float(k), 10)
        tracker.finish(served, k + 0.5, 1)
    save(tracker, tmp_path / "x")
    again = restored(tmp_path / "x")
    assert same(tracker, again)
    assert (len(again.tools.codes), len(again.types.codes)) == (MAX_TOOLS, MAX_TYPES)
    assert again.tools.code("never seen") == again.tools.codes["other"]


# ---------------------------------------------------------------------- what is refused
def rewritten(path, change) -> None:
    """The file at `path` with `change(head, arrays)` made."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as f:
        head = json.loads(f.metadata()["saga"])
    arrays = load_file(path)
    change(head, arrays)
    save_file(arrays, path, {"saga": json.dumps(head)})


def put(name, value):
    def change(head, arrays):
        arrays[name].reshape(-1)[0] = value
    return change


def replace(name, value):
    return lambda head, arrays: arrays.update({name: value(arrays[name])})


BAD = {
    "another format": lambda h, a: h.update(format="other"), "a later version": lambda h, a: h.update(version=2),
    "other tables": lambda h, a: h.update(tables_hash="0" * 64), "names no list": lambda h, a: h.update(tools=3),
    "a name twice": lambda h, a: h.update(tools=["a", "a"]),
    "a name too long": lambda h, a: h.update(types=["x" * 999]),
    "too many names": lambda h, a: h.update(types=[str(k) for k in range(MAX_TYPES + 1)]),
    "full without other": lambda h, a: h.update(types=[str(k) for k in range(MAX_TYPES)]),
    "more names than rows": lambda h, a: h.update(tools=[str(k) for k in range(100)]),
    "a name no string": lambda h, a: h.update(tools=[None]), "NaN": put("calls", math.nan),
    "infinite": put("types", math.inf), "a negative count": put("ends", -1), "a negative step": put("types", -1.0),
    "a bin that is not": put("ring", 200), "too large": put("obs", 1e300),
    "a tensor less": lambda h, a: a.pop("ends"), "a tensor more": lambda h, a: a.update(x=np.zeros(1)),
    "another type": replace("obs", lambda x: x.astype(np.float32)), "another shape": replace("calls", lambda x: x[:-1]),
    "a number for an array": replace("ring", lambda x: np.array(3, np.uint8)),
    "too many rows": replace("ring", lambda x: np.zeros((9999, tb.WINDOW), np.uint8)),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_right_is_refused_and_changes_nothing(tmp_path, what):
    path = tmp_path / "x.safetensors"
    save(taught(100, 4, 2), path)
    rewritten(path, BAD[what])
    data, tracker = path.read_bytes(), Tracker()
    with pytest.raises(UserError, match="starts cold") as e:
        load(tracker, path)
    assert len(str(e.value).splitlines()) == 1
    assert same(tracker, Tracker())
    assert path.read_bytes() == data


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_bytes_load_or_are_refused(tmp_path_factory, data):
    """Whatever a disk or a person does to the file: an error a person can read, or tables in which all is finite."""
    path = tmp_path_factory.mktemp("s") / "x"
    raw = bytearray(statistics.pack(taught(40, 3, 2)))
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=4)):
        raw[at] = byte
    path.write_bytes(raw[:data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))])
    try:
        tables = restored(path).tables
    except UserError:
        return
    assert all(np.isfinite(x).all() for x in tables)


def test_too_large_a_file_is_not_read(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as f:
        f.truncate(statistics.MAX_BYTES + 1)
    with pytest.raises(UserError, match="more than statistics may"):
        load(Tracker(), path)


# ---------------------------------------------------------------------- in service
def finished(keeper):
    if keeper._writer is not None:
        keeper._writer.join()


def test_a_keeper_saves_by_time_and_only_what_is_new(tmp_path):
    tracker = taught(50, 3, 2)
    keeper = Keeper(tracker, tmp_path / "kept", 2, now=0.0, every_s=60.0)
    assert not keeper.restored
    tracker.version += 1
    assert [keeper.maybe(t) for t in (59.0, 60.0, 61.0)] == [False, True, False]
    finished(keeper)
    assert same(tracker, restored(path_of(tmp_path / "kept", 2)))
    assert not keeper.maybe(200.0)  # nothing happened since
    served = tracker.arrive(Hints("x", tool="new"), 1e6, 5)
    tracker.finish(served, 1e6 + 1, 1)
    keeper.close()
    assert keeper.saves == 2
    again = Tracker()
    assert Keeper(again, tmp_path / "kept", 2, now=0.0).restored
    assert same(tracker, again)


def test_a_refused_file_is_told_in_one_line_and_kept(tmp_path, caplog):
    path = path_of(tmp_path, 0)
    path.write_bytes(b"not statistics")
    tracker = Tracker()
    with caplog.at_level(logging.WARNING, "vllm.saga_rl"):
        keeper = Keeper(tracker, tmp_path, 0, now=0.0)
    (record,) = caplog.records
    assert len(record.getMessage().splitlines()) == 1
    assert path.read_bytes() == b"not statistics"
    tracker.finish(tracker.arrive(Hints("x"), 1.0, 5), 2.0, 1)
    assert keeper.save_now()
    assert path.with_name(path.name + ".refused").read_bytes() == b"not statistics"
    assert same(tracker, restored(path))


def test_a_folder_that_cannot_be_written_is_told_once_and_tried_again(tmp_path, caplog):
    (tmp_path / "kept").write_text("a file where the folder should be")
    tracker = taught(30, 2, 1)
    keeper = Keeper(tracker, tmp_path / "kept", 0, now=0.0, every_s=1.0)
    with caplog.at_level(logging.ERROR, "vllm.saga_rl"):
        for k in range(1, 4):
            tracker.version += 1
            keeper.maybe(2.0 * k)
            finished(keeper)
    assert (keeper.saves, keeper.failures, len(caplog.records)) == (0, 3, 1)
    (tmp_path / "kept").unlink()
    tracker.version += 1
    keeper.close()
    assert same(tracker, restored(path_of(tmp_path / "kept", 0)))

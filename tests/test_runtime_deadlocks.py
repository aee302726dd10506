"""Loads of KV that are parked behind a request which cannot be scheduled: the scenes of vLLM issues 45388, 45406 and
57841, and two that only a policy or a floor could bring about. All end, without the help of `starve_s`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runtime_kit import BLOCK, Clock, make_request, make_scheduler, step, vllm

from saga_rl.policies.presets import preset_names
from saga_rl.runtime.engine.invariants import broken
from saga_rl.runtime.engine.scheduler import SagaScheduler, SagaSyncScheduler

assert vllm is not None
from vllm.config import KVTransferConfig  # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402
from vllm.v1.outputs import KVConnectorOutput  # noqa: E402

pytestmark = pytest.mark.skipif(not hasattr(Scheduler, "_holds_kv_blocks"),
                                reason="this vLLM stops at such a request itself")
POOL = 20
"""Blocks that requests can have."""
STEPS = 400
"""A scene that has not ended by then never does: all its work is done in less than 60 steps."""
every_preset = pytest.mark.parametrize("policy", preset_names())
both_classes = pytest.mark.parametrize("cls", [SagaSyncScheduler, SagaScheduler])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


class Scene:
    """A scheduler with a connector; `play` steps until a condition holds, and loads come when `land` says so."""

    def __init__(self, folder: Path, policy: str, cls: type = SagaSyncScheduler, **saga: Any) -> None:
        transfer = KVTransferConfig(kv_connector="PlayedConnector", kv_connector_module_path="played_connector",
                                    kv_role="kv_both", kv_load_failure_policy="recompute")
        self.clock = Clock()
        self.s = make_scheduler(cls, folder, clock=self.clock, blocks=POOL + 1, kv_transfer_config=transfer,
                                saga={"policy": policy, "starve_s": 1e9, **saga})
        self.connector = self.s.connector
        self.done: list[str] = []

    def ask(self, name: str, blocks: float, session: str | None = None, loads: int = 0, seed: int | None = None,
            output: int = 8, **hints: Any) -> None:
        """A request of so many blocks, of which `loads` can be loaded; seed: equal ones begin alike."""
        start = 1000 * (len(self.s.requests) + len(self.done) if seed is None else seed + 50)
        self.connector.has[name] = loads * BLOCK
        self.s.add_request(make_request(name, list(range(start, start + int(blocks * BLOCK))), output=output,
                                        session=session or name, **hints))

    def step(self, land: bool = True, fails: tuple[str, ...] = (), last_first: bool = False) -> None:
        """One iteration. Loads that were on their way before it come at its end: all, or only the youngest."""
        names = list(self.connector.loading) if land else []
        names = names[-1:] if last_first else names
        blocks = {name: self.connector.loading.pop(name) for name in names}
        self.done += step(self.s, kv_connector_output=KVConnectorOutput(
            finished_recving=set(names) or None, invalid_block_ids={b for name in fails for b in blocks[name]}))
        self.clock.now += 0.05

    def learn(self) -> None:
        """Sessions that came and went: admission expects short answers from now on."""
        for k in range(60):
            self.ask(f"short {k}", 1, final=1)
            self.ends()
        self.done.clear()

    def until(self, what: Any, **how: Any) -> None:
        for _ in range(STEPS):
            if what():
                return
            self.step(**how)
        raise AssertionError({r: (q.status.name, q.num_computed_tokens) for r, q in self.s.requests.items()})

    def ends(self, **how: Any) -> None:
        """All that was asked is answered."""
        self.until(lambda: not self.s.has_unfinished_requests(), **how)
        counts = self.s.metrics.counts
        assert broken(self.s) == [] and not self.s.requests and not self.s.loading
        assert not [k for k in counts if k.startswith("failed/")] and not counts["let in starving"]


@both_classes
@every_preset
@pytest.mark.parametrize("last_first", [False, True])
def test_loads_that_would_fill_the_pool_together(folder: Path, policy: str, cls: type, last_first: bool) -> None:
    """Issue 45388: each load fits, and once all are parked none has room for the rest of its prompt."""
    scene = Scene(folder, policy, cls)
    for k in range(4):
        scene.ask(f"r{k}", 10, loads=6)
    scene.ends(last_first=last_first)
    assert sorted(scene.done) == ["r0", "r1", "r2", "r3"]


@both_classes
@every_preset
def test_a_large_request_that_goes_first_when_the_loads_have_come(folder: Path, policy: str, cls: type) -> None:
    """Issue 45406: whoever orders the queue may put a later request ahead of parked loads, which hold what it needs."""
    scene = Scene(folder, policy, cls)
    scene.ask("first", 2, session="old", seed=0)
    scene.ends()
    for name in ("a", "b"):
        scene.ask(name, 8.5, loads=8)
    for _ in range(3):
        scene.step(land=False)
    assert "a" in scene.connector.loading  # a policy may hold b back as long as a's KV comes
    assert scene.s.snapshot()["requests/waiting"] == 2
    scene.ask("large", 16, session="old", seed=0)
    scene.step()
    scene.ends()
    assert scene.done[0] == "first" and sorted(scene.done[1:]) == ["a", "b", "large"]


@both_classes
@every_preset
def test_a_request_that_was_undecided_before_a_load_behind_it(folder: Path, policy: str, cls: type) -> None:
    """Issue 57841: the connector cannot say yet what it has of `undecided`, whose KV is still being written. It is
    passed over and holds nothing; the load behind it holds most of the pool; then it may start and does not fit."""
    scene = Scene(folder, policy, cls)
    scene.connector.undecided.add("undecided")
    scene.ask("undecided", 10)
    scene.ask("load", 15.5, loads=15)
    scene.until(lambda: "load" in scene.connector.loading, land=False)
    scene.ask("small", 2)
    scene.connector.undecided.clear()
    scene.step()
    scene.ends()
    assert sorted(scene.done) == ["load", "small", "undecided"]


@both_classes
@every_preset
def test_a_load_that_failed_ahead_of_one_that_has_come(folder: Path, policy: str, cls: type) -> None:
    """What failed is computed anew, so it is a request that begins, at the head of those that hold blocks. A policy
    that held it back until the load behind it is through would wait for ever: vLLM looks no further."""
    scene = Scene(folder, policy, cls)
    scene.learn()
    for name, blocks in (("eldest", 1), ("old", 7)):
        scene.ask(f"{name} began", blocks, session=name)
        scene.ends()
    scene.ask("fails", 11.5, loads=4)
    scene.until(lambda: "fails" in scene.connector.loading, land=False)
    scene.ask("comes", 3.5, loads=3, session="eldest")
    scene.until(lambda: {*scene.connector.loading} == {"fails", "comes"}, land=False)
    scene.step(fails=("fails",))
    scene.ends()
    assert sorted(scene.done[2:]) == ["comes", "fails"]


@both_classes
@every_preset
def test_a_load_that_has_come_and_floors_that_keep_the_rest(folder: Path, policy: str, cls: type) -> None:
    """The tenant's KV has grown into what was kept free for the load at the head, and lies under its floor. Floors
    stand back where nothing runs that could make room; the load behind is not looked at."""
    scene = Scene(folder, policy, cls, kv_floors={"team": 0.5})
    scene.learn()
    for name in ("head", "behind"):  # older sessions: no policy holds their loads back for the team's
        scene.ask(f"{name} began", 1, session=name, tenant="other")
        scene.ends()
    scene.ask("team", 5.5, tenant="team", output=4 * BLOCK)
    scene.until(lambda: scene.s.running, land=False)
    scene.ask("head", 9.5, loads=6, tenant="other")
    scene.ask("behind", 2.5, loads=2, tenant="other")
    scene.until(lambda: "team" in scene.done, land=False)
    assert {*scene.connector.loading} == {"head", "behind"}
    scene.ends()
    assert sorted(scene.done[-2:]) == ["behind", "head"] and scene.done[2] == "team"

"""`--ray`: a cluster's CPUs in place of processes here. The same results byte for byte, also when a node dies midway;
what cannot work is refused in one message before anything starts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
from live_kit import LIMIT_S, free_port, until
from ray_cluster_kit import RayCluster, node_here

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import write_trace
from saga_rl.cli.main import load
from saga_rl.errors import UserError
from saga_rl.experiments import pool, ray_pool
from saga_rl.experiments.place import place
from saga_rl.learn.data.collect_many import play_all
from saga_rl.learn.data.task import Task
from saga_rl.learn.search import cma_es
from saga_rl.learn.search.scenarios import Scenario
from saga_rl.policies.presets import PRESETS
from saga_rl.sim.config import SimConfig

pytestmark = [pytest.mark.emulated, pytest.mark.timeout(2400)]


# ---------------------------------------------------------------- what is refused
def test_an_address_that_is_none(tmp_path):
    for address in ("localhost", "ray://host:1", "host:", "host:x", ":6379"):
        with pytest.raises(UserError, match="is no address"), place(1, address, tmp_path / "out"):
            pass


def test_an_address_where_nothing_answers(tmp_path):
    with (pytest.raises(UserError, match="nothing answers there"),
          place(1, f"127.0.0.1:{free_port()}", tmp_path / "out")):
        pass
    assert not list(tmp_path.iterdir())


def test_no_ray_and_one_that_was_not_tried(tmp_path, monkeypatch):
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.delenv("SAGA_RL_ALLOW_UNTESTED", raising=False)
    monkeypatch.setattr(ray_pool, "version", missing)
    with pytest.raises(UserError, match=r"Ray is not installed.*saga-rl\[ray\]"), place(1, "auto", tmp_path / "o"):
        pass
    monkeypatch.setattr(ray_pool, "version", lambda name: "2.41.0")
    with pytest.raises(UserError, match=r"Ray 2\.41\.0: was not tried"), place(1, "auto", tmp_path / "o"):
        pass
    assert not list(tmp_path.iterdir())


def test_the_command_says_it_in_one_line_and_leaves_nothing(tmp_path, capfd):
    from saga_rl.errors import run_user_command

    with pytest.raises(SystemExit) as ended:
        run_user_command(lambda: load("compare")(
            ["compare", "--out", str(tmp_path / "out"), "--ray", f"127.0.0.1:{free_port()}"], prog_name="saga-rl",
            standalone_mode=False))
    said = capfd.readouterr().err.strip()
    assert ended.value.code == 2 and said.startswith("error: --ray 127.0.0.1:") and "\n" not in said
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- a cluster
@pytest.fixture(scope="module")
def head() -> Iterator[RayCluster]:
    """A cluster that has no node with a CPU yet."""
    c = RayCluster()
    try:
        yield c
    finally:
        c.stop()


def test_a_cluster_without_a_cpu_is_refused(head, tmp_path):
    with pytest.raises(UserError, match="has no CPU free"), place(1, head.address, tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def nodes(head) -> list[str]:
    """Two nodes of one CPU each; a test that kills one adds another."""
    return [head.add(), head.add()]


@pytest.fixture
def cluster(head, nodes, tmp_path) -> Iterator[ray_pool.Cluster]:
    with place(1, head.address, tmp_path / "out") as found:
        assert isinstance(found, ray_pool.Cluster)
        yield found


def test_a_node_with_other_code_or_other_files_is_refused(cluster):
    assert cluster.fit() == (2, 2.0)
    for other, said in ((replace(cluster.here, stamp=cluster.here.stamp.replace("numpy ", "numpy 0.")), "numpy 0"),
                        (replace(cluster.here, cwd="/nowhere/at/all"), "has no folder /nowhere/at/all"),
                        (replace(cluster.here, marker="/nowhere/marker"), "does not see what is written to /nowhere")):
        wrong = ray_pool.Cluster(cluster.address, other)
        with pytest.raises(UserError, match=said):
            wrong.fit()
        with pool.workers(wrong) as executor, pytest.raises(UserError, match=said):  # as of a node that comes later
            pool.result(pool.submit(executor, abs, -1))


def _refuse(n: int) -> int:
    raise UserError("a cell", f"is number {n}", "take another")


def _fail(n: int) -> int:
    raise ZeroDivisionError(f"number {n}")


def test_errors_come_back_as_from_a_process_here(cluster):
    with pool.workers(cluster) as executor:
        refused, failed = pool.submit(executor, _refuse, 7), pool.submit(executor, _fail, 8)
        with pytest.raises(UserError, match="a cell: is number 7; take another"):
            pool.result(refused)
        with pytest.raises(ZeroDivisionError, match="number 8"):
            pool.result(failed)


def _when_told(folder: Path, n: int) -> tuple[int, str]:
    """Note node and process, wait for the word, give (n squared, node)."""
    node = node_here()
    (folder / f"{n} on {node} as {os.getpid()}").touch()
    end = time.monotonic() + LIMIT_S
    while not (folder / "go").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    return n * n, node


def test_what_a_dead_node_was_at_is_done_elsewhere(head, nodes, cluster, tmp_path):
    with pool.workers(cluster) as executor:
        waiting = [pool.submit(executor, _when_told, tmp_path, n) for n in range(5)]
        def at_work() -> bool:
            assert not any(each.done() for each in waiting), [each.result() for each in waiting if each.done()]
            return {p.name.split()[2] for p in tmp_path.glob("* on *")} == set(nodes)

        until(at_work, "both nodes are at work")
        ((lost, *_, process),) = (p.name.split() for p in tmp_path.glob(f"* on {nodes[0]} as *"))
        head.kill(nodes.pop(0))
        until(lambda: not psutil.pid_exists(int(process)), "the node's worker ends with it")
        (tmp_path / "go").touch()
        results = [pool.result(each) for each in waiting]
    nodes.append(head.add())
    assert [value for value, _ in results] == [n * n for n in range(5)]
    assert {node for _, node in results} == {nodes[0]} and len(list(tmp_path.glob(f"{lost} on *"))) == 2


def test_what_was_under_way_is_ended_with_the_pool(cluster, nodes, tmp_path):
    with pytest.raises(KeyboardInterrupt), pool.workers(cluster) as executor:
        for n in range(4):
            pool.submit(executor, _when_told, tmp_path, n)
        until(lambda: len(list(tmp_path.glob("* on *"))) == len(nodes), "all nodes are at work")
        raise KeyboardInterrupt
    with pool.workers(cluster) as executor:  # nobody gave the word, and yet there is room
        assert [pool.result(pool.submit(executor, abs, -n)) for n in range(3)] == [0, 1, 2]
    assert len(list(tmp_path.glob("* on *"))) == len(nodes)


# ---------------------------------------------------------------- the same results
def _search(jobs: pool.Jobs, journal: Path, on_generation=lambda *_: None) -> cma_es.Found:
    web = generate("webarena", 1, sessions=12, max_context=32_768)
    places = [Scenario("web", web, SimConfig(kv_tokens=60_000, population=5), 8)]
    config = cma_es.SearchConfig(decisions=("ordering",), generations=4, population=4, episodes=1, check_every=2,
                                 checks=1, others=dict(PRESETS["saga+"]), reference=dict(PRESETS["saga+"]), seed=3)
    return cma_es.search(places, places, config, journal, jobs, on_generation)


def test_a_search_finds_the_same_although_a_node_dies(head, nodes, cluster, tmp_path):
    def kill(g: int, _: dict[str, float]) -> None:
        if g == 1:
            head.kill(nodes.pop(0))

    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    alone, found = _search(1, here), _search(cluster, there, kill)
    nodes.append(head.add())
    assert here.read_bytes() == there.read_bytes() and len(here.read_text().splitlines()) == 6
    assert found.theta.tobytes() == alone.theta.tobytes() and found.curve == alone.curve
    assert (found.validation_cost, found.start_cost, found.runs) == (
        alone.validation_cost, alone.start_cost, alone.runs)


def test_episodes_are_the_same_and_in_order(cluster, tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(generate("webarena", 2, sessions=10, max_context=32_768), path)
    tasks = [Task(str(path), 60_000, behaviour, 0.1, seed, 8, population=4)
             for behaviour in ("lru", "wa-lru") for seed in (1, 2)]
    for here, there in zip(play_all(tasks, 1), play_all(tasks, cluster), strict=True):
        assert (here.behaviour, here.seed, here.facts) == (there.behaviour, there.seed, there.facts)
        for name in ("observations", "masks", "next_use", "actions", "rewards", "propensity"):
            assert np.asarray(getattr(here, name)).tobytes() == np.asarray(getattr(there, name)).tobytes(), name


def test_compare_writes_the_same_files(head, nodes, tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(generate("webarena", 3, sessions=30, max_context=32_768), path)

    def cells(files: dict[str, bytes]) -> list[dict[str, Any]]:
        """What was computed, in any order; not how long it took."""
        lines = [json.loads(line) for line in files["cells.jsonl"].splitlines()]
        return sorted(({k: v for k, v in line.items() if k != "seconds"} for line in lines), key=lambda x: x["key"])

    def run(out: Path, *more: str) -> dict[str, bytes]:
        load("compare")(["compare", str(path), "--out", str(out), "--part", "eviction", "--eviction", "lru",
                         "--eviction", "wa-lru", "--capacities", "1.5", "--seeds", "1", "--tune", "2", "--population",
                         "4", *more], prog_name="saga-rl", standalone_mode=False)
        return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}

    here = run(tmp_path / "here", "--jobs", "1")
    there = run(tmp_path / "there", "--ray", head.address)
    assert here.keys() == there.keys() and {"index.html", "cells.jsonl"} <= here.keys()
    assert {name for name in here if here[name] != there[name]} <= {"cells.jsonl", "cells.parquet"}  # seconds are in it
    assert cells(here) == cells(there) and len(cells(here)) == 9

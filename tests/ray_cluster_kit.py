"""A Ray cluster of several nodes on this machine, in a process of its own: `RayCluster`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from live_kit import ENV, LIMIT_S

DRIVER = """
import json, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = {}
print(json.dumps(cluster.address), flush=True)
for line in sys.stdin:
    what, node = json.loads(line)
    if what == "add":
        added = cluster.add_node(num_cpus=1)
        nodes[added.node_id] = added
        node = added.node_id
    else:
        cluster.remove_node(nodes.pop(node), allow_graceful=False)
    print(json.dumps(node), flush=True)
cluster.shutdown()
"""
"""Its head has no CPU, so that whoever connects (to the head, as Ray does) outlives all other nodes."""
TRIES = 5


class RayCluster:
    """`address`; nodes of one CPU each come by `add` and die by `kill`, a SIGKILL of all their processes."""

    def __init__(self) -> None:
        # Ray's sockets lie below it, and the path of a socket may have 107 characters
        self.scratch = Path(tempfile.mkdtemp(prefix="saga-ray-", dir="/tmp"))
        # a node that takes longer than 30 s to start, as on a busy machine, is given up by Ray itself
        for _ in range(TRIES):
            self.process = self._start()
            line = self._line()
            if line:
                break
            self.process.wait()
        assert line, (self.scratch / "stderr").read_text()[-5000:]
        self.address = str(json.loads(line))

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=(self.scratch / "stderr").open("w"), env={
                **ENV, "RAY_TMPDIR": str(self.scratch), "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0",
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])})

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def _answer(self) -> Any:
        line = self._line()
        assert line, (self.scratch / "stderr").read_text()[-5000:]
        return json.loads(line)

    def _ask(self, what: str, node: str = "") -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([what, node]) + "\n")
        self.process.stdin.flush()
        return str(self._answer())

    def add(self) -> str:
        """A node more; returns its id, which `node_here` gives there."""
        return self._ask("add")

    def kill(self, node: str) -> None:
        """The node is dead when this returns."""
        self._ask("kill", node)

    def stop(self) -> None:
        """End it; whatever does not end in time is killed."""
        below = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        try:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(LIMIT_S)
        finally:
            for p in [*below, self.process]:
                if isinstance(p, subprocess.Popen) or p.is_running():
                    p.kill()
            self.process.wait()
            shutil.rmtree(self.scratch, ignore_errors=True)


def node_here() -> str:
    """In a task: the id of the node that it runs on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())

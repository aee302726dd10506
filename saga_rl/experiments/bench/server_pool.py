"""The servers that are up: started when an arm needs them, kept while memory allows, the longest unused goes first."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saga_rl.experiments.bench.arms import OURS, ROUTED, Arm
from saga_rl.experiments.bench.router import Router
from saga_rl.experiments.bench.servers import EMULATED, Need, Server, flags
from saga_rl.experiments.bench.settings import Settings
from saga_rl.processes import free_port

GIB_A_PROCESS = 0.8
"""Memory of an API server or an engine on an emulated device."""
SHARE = 0.65
"""Of the memory that is free when the bench starts."""


@dataclass
class Host:
    """The servers of one kind of arm, and routers in front of them."""

    need: Need
    servers: list[Server]
    stack: ExitStack
    routers: dict[str, Router] = field(default_factory=dict)
    runs: int = 0
    """Played on them so far."""

    def alive(self) -> bool:
        return all(child.process.poll() is None for child in (*self.servers, *self.routers.values()))


class ServerPool:
    """`host` gives the servers of an arm, warm. most: hosts at once. program: of vLLM Router; config: of its Program
    scheduling. warm: called with the address of each fresh server."""

    def __init__(self, s: Settings, model: str, window: int | None, folder: Path, most: int, program: str | None,
                 config: dict[str, Any] | None, warm: Callable[[str], None], say: Callable[[str], None]) -> None:
        self.s, self.model, self.window, self.folder, self.most = s, model, window, folder, most
        self.program, self.config, self.warm, self.say = program, config, warm, say
        self.up: dict[str, Host] = {}
        """In the order in which they were used."""

    def __enter__(self) -> ServerPool:
        return self

    def __exit__(self, *exc: object) -> None:
        for name in list(self.up):
            self.stop(name)

    def host(self, need: Need, tick: Callable[[], None] = lambda: None) -> Host:
        """The servers, started if they are not up. Raises `UserError`."""
        found = self.up.pop(need.name, None)
        if found is not None and not found.alive():
            self.say(f"{need.name}: a process of it ended; it is started again")
            found.stack.close()
            found = None
        if found is None:
            while len(self.up) >= self.most:
                self.stop(self._victim())
            found = self._start(need, tick)
        self.up[need.name] = found
        return found

    def _victim(self) -> str:
        """What learns while it serves is stopped last."""
        return next((n for n in self.up if n not in (OURS, ROUTED)), next(iter(self.up)))

    def _start(self, need: Need, tick: Callable[[], None]) -> Host:
        with ExitStack() as stack:
            servers = []
            for k in range(need.servers):
                name = need.name + (f"-{k}" if need.servers > 1 else "")
                port = free_port()
                servers.append(stack.enter_context(Server(
                    name, self.model, flags(self.s, need, self.window, port), port,
                    self.folder / "logs" / f"{name}.log", need.policy, environment(self.s, need, k))))
            for server in servers:
                server.ready(tick)
            for server in servers:
                self.warm(server.url)
                server.used()
            return Host(need, servers, stack.pop_all())

    def url(self, host: Host, arm: Arm) -> str:
        """Where the arm's requests go: to the server, or to the router in front of several. Raises `UserError`."""
        if not arm.router:
            return host.servers[0].url
        if arm.router not in host.routers:
            assert self.program is not None
            router = Router(arm.router, self.program, [server.url for server in host.servers],
                            self.config if arm.router == "program" else None, self.folder / "logs" / f"{arm.name}.log")
            host.stack.enter_context(router)
            host.routers[arm.router] = router
            router.ready()
        return host.routers[arm.router].url

    def stop(self, name: str) -> None:
        """End its processes."""
        self.up.pop(name).stack.close()


def environment(s: Settings, need: Need, k: int, visible: str | None = os.environ.get("CUDA_VISIBLE_DEVICES")
                ) -> dict[str, str]:
    """Of server k of a host: real servers beside one another get GPUs of their own."""
    if s.emulate is not None:
        return EMULATED
    if need.servers == 1:
        return {}
    tp = int(s.flag("--tensor-parallel-size") or s.flag("-tp") or 1)
    gpus = visible.split(",") if visible else [str(i) for i in range(need.servers * tp)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[k * tp:(k + 1) * tp])}


def hosts_at_once(s: Settings, needs: list[Need]) -> int:
    """How many hosts fit in memory. Real devices hold one model at a time."""
    if s.emulate is None:
        return 1
    largest = max((n.servers * (n.engines + 1 + (n.engines > 1)) for n in needs), default=1)
    return max(1, min(len({n.name for n in needs}), int(SHARE * _free_gib() / (GIB_A_PROCESS * largest))))


def _free_gib() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 8.0
    return next((float(line.split()[1]) / 2 ** 20 for line in lines if line.startswith("MemAvailable")), 8.0)

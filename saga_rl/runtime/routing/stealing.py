"""Work stealing (SAGA section 6): an idle data-parallel engine takes a queued request of an overloaded one.

Guards, those of the simulator (`sim.engine.stealing`) over what the router knows: the thief had nothing for `IDLE_S`;
the victim's load (`features.load`) is above `RATIO` times the smallest, the smallest counting as at least `LEAST_LOAD`;
the request was not stolen `MOST` times, nor ever from the thief; and it has waited for as long as its context costs at
the thief, the wait so far being the best guess at the wait to come. The victim engine has the last word: it gives up
only what it has not begun (`give_up`), so a plan that is out of date does nothing. The client's stream goes on as if
nothing had happened. Off unless the placement policy `steals`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any

from saga_rl.policies.features import draw, load
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.config import clock
from saga_rl.runtime.routing.router import FLIGHT_TOKENS, IN_FLIGHT, LOST, QUEUED_TOKENS, Flight, Router

log = logging.getLogger("vllm.saga_rl")
LOOK_S, IDLE_S, RATIO, LEAST_LOAD, MOST = 0.1, 0.1, 2.0, 0.5, 5
"""As in `sim.engine.stealing`."""
OFFERED = 8
"""Requests that the victim is asked for, oldest session first; it gives up the first that it has not begun."""
LINK = "saga_link_tokens_per_s"


def link_tokens_per_s(vllm_config: Any) -> float:
    """Tokens of KV a second that an engine can load of what another has computed, 0 = none.

    Only the operator knows: a connector that all engines share finds the KV by itself, so what is asked for here is its
    rate, as `--kv-transfer-config '{..., "kv_connector_extra_config": {"saga_link_tokens_per_s": 20000}}'`. Without it
    a moved session is expected to be computed again. The offloading connector keeps each engine's KV to that engine.
    """
    transfer = getattr(vllm_config, "kv_transfer_config", None)
    given = (getattr(transfer, "kv_connector_extra_config", None) or {}).get(LINK, 0.0)
    ok = isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given) and given >= 0
    if not ok:
        log.error("saga-rl: %s is %r, not a number of 0 or more; moved sessions count as computed again", LINK, given)
    return float(given) if ok else 0.0


def cost_s(router: Router, flight: Flight, link_rate: float) -> float:
    """Seconds that an engine without its KV spends on the request's context: computed again, or loaded where there is a
    link, whichever is less."""
    prompt, rate = float(flight.served.prompt_tokens), router.tokens_per_s
    if link_rate <= 0:
        return prompt / rate
    context = min(float(router.tracker.chains[flight.served.chain, ch.CONTEXT]), prompt)
    return min(prompt / rate, (prompt - context) / rate + context / link_rate)


def plan(router: Router, now: float, link_rate: float = 0.0,
         may: Callable[[str], bool] = lambda _: True) -> tuple[int, int, list[str]] | None:
    """(thief, victim, requests to ask for), None if there is nothing to steal. may: whether a request can be moved."""
    state = router.loads()
    loads = {w: float(load(e[IN_FLIGHT] / router.max_seqs, min(e[FLIGHT_TOKENS] / router.kv_tokens, 1.0),
                           e[QUEUED_TOKENS] / router.tokens_per_s)) for w, e in enumerate(state) if e[LOST] == 0}
    since = {w: router.idle_since(w) for w in loads if state[w, IN_FLIGHT] == 0}
    idle = [w for w in since if now - since[w] >= IDLE_S]
    floor = RATIO * max(min(loads.values(), default=0.0), LEAST_LOAD)
    over = [w for w in loads if loads[w] > floor]
    if not idle or not over:
        return None
    thief = min(idle, key=since.__getitem__)
    victim = over[int(draw(router.placed, router.steals, thief) * len(over))]
    x = router.tracker.chains
    offers = [(float(x[f.served.chain, ch.SESSION_S]), f.served.number, name) for name, f in router.flights.items()
              if f.engine == victim and not f.answered and len(f.been) < MOST and thief not in f.been
              and cost_s(router, f, link_rate) <= now - f.served.queued_s and may(name)]
    return (thief, victim, [name for *_, name in sorted(offers)[:OFFERED]]) if offers else None


# ---------------------------------------------------------------------- in the API server
def begin(client: Any, engines: Any) -> None:
    """Look for something to steal every `LOOK_S` from now on, as long as the client lives."""
    if not engines.stealing:
        engines.stealing = True
        engines.keep(asyncio.get_running_loop().create_task(_watch(engines)))


async def _watch(engines: Any) -> None:
    rate = link_tokens_per_s(engines.client().vllm_config)
    while True:
        await asyncio.sleep(LOOK_S / clock.scale())
        client = engines.client()
        if client is None or client.resources.engine_dead:
            return
        try:
            router = engines.placement.router_for(client)
            if router.guard.policy.steals:
                found = plan(router, clock.seconds(), rate, lambda name: free(engines, name))
                if found is not None:
                    await steal(client, engines, *found)
        except Exception as e:
            cause = f"fallback/stealing/{type(e).__name__}"
            engines.counts[cause] += 1
            if engines.counts[cause] in (1, 10, 100) or engines.counts[cause] % 1000 == 0:
                log.error("saga-rl stealing: %s (%d times so far)", cause, engines.counts[cause], exc_info=e)
        del client


def free(engines: Any, name: str) -> bool:
    """Whether a request may be sent elsewhere: it can be sent again, and its client asked for no engine."""
    request = engines.unanswered(name)
    return request is not None and request.data_parallel_rank is None


async def steal(client: Any, engines: Any, thief: int, victim: int, names: list[str]) -> str | None:
    """Ask the victim to give one of `names` up and send it to the thief; returns which it was, None = none."""
    engines.asks(names, True)
    try:  # no time limit: a request given up in an answer that nobody reads would be lost
        answer = await client._call_utility_async("saga_control", "steal", {"requests": names},
                                                  engine=engines.names[victim])
        if "error" in answer:
            raise RuntimeError(answer["error"])
        name = answer.get("given")
        if name is None:
            engines.counts["steals refused"] += 1
            return None
        if client.reqs_in_flight.get(name) != engines.names[victim]:
            return None  # the engine died after that, and it was sent again
        if engines.unanswered(name) is None or thief in engines.lost:
            engines.forget(client, name)
            engines.placement.router_for(client).gone(name, clock.seconds())
            if engines.unanswered(name) is None:
                engines.requests.pop(name, None)  # its client has gone, and the victim is done with it
            await engines.send_again(client, name)
            return None
        await _move(client, engines, name, thief, victim)
        return name
    finally:
        engines.asks(names, False)


async def _move(client: Any, engines: Any, name: str, thief: int, victim: int) -> None:
    from vllm.v1.engine import EngineCoreRequestType

    client.engine_inflight[engines.names[victim]] -= 1
    client.engine_inflight[engines.names[thief]] += 1
    client.reqs_in_flight[name] = engines.names[thief]
    engines.counts["steals"] += 1
    sent = client._send_input(EngineCoreRequestType.ADD, engines.unanswered(name), engines.names[thief])
    engines.placement.router_for(client).moved(name, thief, clock.seconds())
    await sent

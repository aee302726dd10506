"""Requests of production traces (a time, lengths, perhaps block ids) to sessions.

A request belongs to a session by a name, by the request that it continues (`parent`), or by its block ids: it
continues a session if its ids begin with all whole blocks of that session's last request (at least one; the longest
such prompt wins, the latest among equals); otherwise it begins a session. A second request that continues an earlier
point of a session is therefore a session of its own, which shares by its ids. The think gap is the delay that is
recorded, else the time between the two requests less an estimate of the first one's service.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from saga_rl.aeg.build import NAN, SessionSpec, StepSpec
from saga_rl.aeg.importers.building.graph import estimated_service_s
from saga_rl.aeg.importers.format import Reading

EPOCH_S = 1e8
"""Times beyond are a calendar's: they are counted from the first."""


@dataclass(slots=True)
class Request:
    """One request. `at_s`: None where only `delay_s` after the one before is known."""

    at_s: float | None
    prompt: int
    output: int
    ids: Sequence[int] = ()
    session: str = ""
    delay_s: float | None = None
    name: str = ""
    parent: str = ""
    """Names of this request and of the one that it continues, where the format has them."""
    kind: str = "chat"
    number: int = 0
    """Its row in the file, which names the session that it begins."""


@dataclass(slots=True)
class _Open:
    """A session that may go on, and its last request."""

    spec: SessionSpec
    last: Request


def sessions_from(reading: Reading, requests: Iterable[Request], added_text: bool = False) -> Iterator[SessionSpec]:
    """Sessions of `requests`, sorted by time (counted if they were not). All are held.

    added_text: a named session's later prompts may hold only the text that is new: taken so in a session whose prompts
    do not grow by what came before (counted).
    """
    rows = list(requests)
    known = [r.at_s for r in rows if r.at_s is not None]
    zero = min(known) if known and min(known) > EPOCH_S else 0.0
    named: dict[str, list[Request]] = {}
    loose: list[Request] = []
    for r in rows:
        (named.setdefault(r.session, []) if r.session else loose).append(r)
    late = sum(a > b for a, b in pairwise(known))
    if late:
        reading.assume("rows_out_of_order_sorted", late)
        loose.sort(key=lambda r: r.at_s or 0.0)
    yield from (o.spec for o in _linked(reading, loose, zero))
    for name, turns in named.items():
        yield _session(reading, name, turns, zero, added_text)


def _linked(reading: Reading, rows: list[Request], zero: float) -> list[_Open]:
    made: list[_Open] = []
    tips: dict[tuple[int, int], list[_Open]] = {}  # (whole blocks, id of the last of them) -> sessions that end there
    heads: dict[str, _Open] = {}
    for r in rows:
        if r.prompt == 0 or r.output == 0:
            reading.drop("requests_without_tokens")
            continue
        opened, shared = None, 0
        whole = r.prompt // reading.block if reading.block and len(r.ids) else 0
        if r.name:
            opened = heads.pop(r.parent, None)
            if opened is None and r.parent:
                reading.assume("requests_whose_parent_is_missing_or_went_on_otherwise")
            if opened is not None:
                shared = _common(opened.last.ids, r.ids, min(whole, opened.last.prompt // max(reading.block, 1)))
        elif whole:
            found = _continued(tips, r.ids, whole)
            if found:
                opened, shared = found
        at = (r.at_s or 0.0) - zero
        if opened is None:
            step = StepSpec(r.prompt, r.output, hashes=r.ids, start_s=at)
            opened = _Open(SessionSpec(f"request-{r.number:06d}", at, [step], agent_type=r.kind), r)
            made.append(opened)
            reading.assume("requests_without_block_ids", not len(r.ids))
        else:
            _append(reading, opened, r, at, zero, shared)
        reading.quality.call(time=r.at_s is not None, end=False)
        if r.name:
            heads[r.name] = opened
        elif whole:
            tips.setdefault((whole, r.ids[whole - 1]), []).append(opened)
    return made


def _append(reading: Reading, opened: _Open, r: Request, at: float, zero: float, shared: int) -> None:
    steps, before = opened.spec.steps, opened.last
    last = len(steps) - 1
    if r.delay_s is not None:
        steps[-1].think_s = r.delay_s
    elif r.at_s is not None and before.at_s is not None:
        steps[-1].think_s = max(0.0, at - (before.at_s - zero) - estimated_service_s(before.output))
    reading.quality.add("tools", "recorded" if r.delay_s is not None else "estimated" if r.at_s is not None and
                        before.at_s is not None else "missing")
    if len(r.ids):
        step = StepSpec(r.prompt, r.output, (last,), prefix_step=last if shared else -1,
                        prefix_tokens=shared * reading.block, hashes=r.ids[shared:])
    else:
        grown = before.prompt + before.output if r.prompt >= before.prompt else 0
        step = StepSpec(r.prompt, r.output, (last,), prefix_step=last if grown else -1,
                        prefix_tokens=min(grown, r.prompt))
    step.start_s = at if r.at_s is not None else NAN
    steps.append(step)
    opened.last = r


def _session(reading: Reading, name: str, turns: list[Request], zero: float, added_text: bool) -> SessionSpec:
    if all(t.at_s is not None for t in turns):
        turns.sort(key=lambda t: t.at_s or 0.0)
    grows = all(b.prompt >= a.prompt + a.output for a, b in pairwise(turns))
    if added_text and not grows:
        reading.assume("sessions_whose_prompts_are_only_the_added_text")
    reading.timed &= turns[0].at_s is not None
    at = (turns[0].at_s or zero) - zero
    opened = None
    for t in turns:
        if t.prompt == 0 or t.output == 0:
            reading.drop("requests_without_tokens")
            continue
        reading.quality.call(time=t.at_s is not None, end=False)
        if opened is None:
            first = StepSpec(t.prompt, t.output, hashes=t.ids, start_s=at if t.at_s is not None else NAN)
            opened = _Open(SessionSpec(name, at, [first], agent_type=t.kind), t)
            continue
        shared = 0
        if added_text and not grows:
            t.prompt += opened.last.prompt + opened.last.output
            reading.assume("requests_whose_ids_are_of_added_text_only", len(t.ids) > 0)
            t.ids = ()
        elif reading.block:
            shared = _common(opened.last.ids, t.ids, min(opened.last.prompt, t.prompt) // reading.block)
        _append(reading, opened, t, (t.at_s or 0.0) - zero, zero, shared)
    return opened.spec if opened else SessionSpec(name, at, [])


def _common(a: Sequence[int], b: Sequence[int], most: int) -> int:
    n = min(len(a), len(b), most)
    return next((k for k in range(n) if a[k] != b[k]), n)


def _continued(tips: dict[tuple[int, int], list[_Open]], ids: Sequence[int], whole: int) -> tuple[_Open, int] | None:
    for n in range(whole, 0, -1):
        opened = tips.get((n, ids[n - 1]), [])
        for k in range(len(opened) - 1, -1, -1):
            if opened[k].last.ids[:n] == ids[:n]:
                return opened.pop(k), n
    return None


def block_that_fits(lengths: Sequence[tuple[int, int]], usual: Sequence[int]) -> int | None:
    """Tokens a block, of (prompt, ids) pairs: the first of `usual` that fits all, else the one power of two that does.

    A prompt of p tokens has one id for each whole block, and perhaps one for a partial last block.
    """
    def fits(block: int) -> bool:
        return all(p // block <= n <= -(-p // block) for p, n in lengths)

    for block in (*usual, *(1 << k for k in range(13))):
        if fits(block):
            return block
    return None

"""What a scheduler knows of every chain (one agent's context within a session), as rows of one float array.

The simulator and the vLLM adapter call the same functions at the same moments, so the same history gives the same rows:
`arrive` when a request is queued, `schedule` when it first gets blocks, `preempt` when it loses them, `finish` when its
answer is complete. Nothing here knows the future: the tool that a finished step called is in its answer, the end of a
session is known only through the hint (`ended=True`) or through `expire`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saga_rl.njit import njit
from saga_rl.policies.state.tables import (
    PATIENCE,
    announces,
    observe_call,
    observe_end,
    observe_return,
    observe_step,
    retract_end,
)

# columns
(
    SESSION,       # session row or number
    SESSION_S,     # first request of the *session*, s
    TENANT,
    TYPE,          # agent type code
    DEADLINE,      # s on the same clock; NaN = none
    STEPS,         # finished steps
    LAST,          # end of the last finished step, s
    QUEUED,        # since when its request waits, s
    STARTED,       # when its running request was scheduled, s
    CONTEXT,       # tokens: prompt + output of the last finished step
    TOOL,          # code of the tool it called, -1 = none
    WAITING,       # 1 = its request is queued, at WORKER
    RUNNING,       # 1 = its request holds blocks
    QPOS,          # requests ahead of it in its worker's queue, in the queue's order; read while WAITING
    ENDED,         # 1 = hinted end, 2 = presumed ended (expired)
    ATTAINED,      # service seconds so far
    WORKER,        # where its last request was sent
    BEFORE,        # tool that the step before its last finished one called
    PROMPT,        # tokens of its last request; inf once that was preempted: what it had computed will be used again
    BEGAN,         # its first request, s
    FIRST,         # row of its session's first chain, where the ring of its session's living chains is entered
    NEXT,          # the next row in that ring; -1 = not in it
    PAUSE,         # moving average of log1p seconds between its steps
    LONGEST,       # longest of them so far, log1p seconds
    MINE,          # and the three after it: what an eviction policy remembers of it (`Policy.memory`)
) = range(25)
REMEMBERED = 4
PAUSE_EMA = 0.2
MOST_KIN = 64
"""Chains of its session that `younger` looks at: whatever a client calls a session, a row is made in bounded time."""
COLUMNS = MINE + REMEMBERED


def make_chains(n: int) -> NDArray[np.float64]:
    """(n, COLUMNS) rows of chains that have not been seen yet."""
    rows = np.zeros((n, COLUMNS))
    rows[:, DEADLINE] = np.nan
    rows[:, TOOL] = rows[:, BEFORE] = rows[:, NEXT] = -1
    rows[:, FIRST] = np.arange(n)
    return rows


@njit(cache=True)
def describe(chains, c, first, session, session_s, tenant, agent_type, deadline_s):
    """Set what does not change while the chain lives; call before its first `arrive`. first: row of a chain of the same
    session, the same for all of them, that stays as long as any of them does; c itself will do."""
    chains[c, FIRST] = first
    chains[c, SESSION] = session
    chains[c, SESSION_S] = session_s
    chains[c, TENANT] = tenant
    chains[c, TYPE] = agent_type
    chains[c, DEADLINE] = deadline_s


@njit(cache=True)
def arrive(chains, tables, w, c, now, prompt_tokens):
    """A request of chain c is queued at worker w."""
    row = chains[c]
    if row[STEPS] > 0 and row[WAITING] == 0 and row[RUNNING] == 0:
        if row[ENDED] == 2:  # presumed ended, and here it is: take the presumption back
            retract_end(tables, w, int(row[TYPE]), int(row[TOOL]))
        observe_return(tables, w, int(row[TYPE]), int(row[TOOL]), now - row[LAST],
                       max(prompt_tokens - row[CONTEXT], 0.0))
        pause = np.log1p(max(now - row[LAST], 0.0))
        row[PAUSE] += (PAUSE_EMA if row[STEPS] > 1 else 1.0) * (pause - row[PAUSE])
        row[LONGEST] = max(row[LONGEST], pause)
        if row[STEPS] > 1:  # which tool its last step called may be known only now
            observe_call(tables, w, int(row[TYPE]), int(row[BEFORE]), int(row[TOOL]))
    if row[NEXT] < 0:
        if is_new(row):
            row[BEGAN] = now
        _join(chains, c)
    row[ENDED] = 0
    row[WAITING] = 1
    row[PROMPT] = prompt_tokens
    row[WORKER] = w
    row[QUEUED] = now


@njit(cache=True)
def _join(chains, c):
    """Put chain c into its session's ring. The session's first chain is the way in and stays in it for good."""
    first = int(chains[c, FIRST])
    if chains[first, NEXT] < 0:
        chains[first, NEXT] = first
    if c != first:
        chains[c, NEXT] = chains[first, NEXT]
        chains[first, NEXT] = c


@njit(cache=True)
def leave(chains, c):
    """Take chain c, which ended or will be forgotten, out of its session's ring."""
    first = int(chains[c, FIRST])
    if c == first or chains[c, NEXT] < 0:
        return
    at = first
    while chains[at, NEXT] != c:
        at = int(chains[at, NEXT])
    chains[at, NEXT] = chains[c, NEXT]
    chains[c, NEXT] = -1


@njit(cache=True)
def younger(chains, w, c, now):
    """(chains, busy ones, fewest finished steps, seconds since one was heard of) of those living chains of its session
    at worker w that began after chain c's last step: whom it may have started and wait for. Zeros if there are none; at
    most `MOST_KIN` are looked at."""
    row = chains[c]
    n, busy, steps, heard_s = 0, 0, np.inf, np.inf
    at = int(row[NEXT])
    for _ in range(MOST_KIN):
        if at < 0 or at == c:
            break
        other = chains[at]
        active = other[WAITING] > 0 or other[RUNNING] > 0
        if other[ENDED] == 0 and other[WORKER] == w and other[BEGAN] >= row[LAST] and (active or other[STEPS] > 0):
            n += 1
            busy += 1 if active else 0
            steps = min(steps, other[STEPS])
            heard_s = min(heard_s, 0.0 if active else now - other[LAST])
        at = int(other[NEXT])
    return (n, busy, steps, heard_s) if n > 0 else (0, 0, 0.0, 0.0)


@njit(cache=True)
def waits(chains, c, w):
    """Whether its request is queued at worker w; what it left at other workers does not wait there."""
    return chains[c, WAITING] == 1 and chains[c, WORKER] == w


@njit(cache=True)
def is_new(row):
    """Whether nothing of the chain was served yet; one that was preempted in its first step is under way."""
    return row[STEPS] == 0 and row[ATTAINED] == 0


@njit(cache=True)
def useful_tokens(row):
    """Tokens that a chain can use at most of what it left in a cache: its context; where a request waits, no more than
    its prompt, which is shorter if the chain compacted its context; while one runs, nothing beyond what it pins."""
    if row[RUNNING] > 0:
        return 0.0
    if row[WAITING] > 0 and (row[PROMPT] < row[CONTEXT] or row[PROMPT] == np.inf):
        return row[PROMPT]
    return row[CONTEXT]


@njit(cache=True)
def schedule(chains, c, now):
    """Its request got its first blocks."""
    chains[c, WAITING] = 0
    chains[c, RUNNING] = 1
    chains[c, STARTED] = now


@njit(cache=True)
def preempt(chains, c, now):
    """Its request lost its blocks and waits again."""
    row = chains[c]
    row[ATTAINED] += now - row[STARTED]
    row[WAITING] = 1
    row[RUNNING] = 0
    row[PROMPT] = np.inf


@njit(cache=True)
def finish(chains, tables, w, c, now, prompt_tokens, output_tokens, tool, ended):
    """Its answer is complete; it called `tool` (-1 = none). `ended`: the client said that this was the last step."""
    row = chains[c]
    growth = prompt_tokens + output_tokens - row[CONTEXT]
    service = now - row[STARTED]
    row[ATTAINED] += service
    row[WAITING] = 0
    row[RUNNING] = 0
    row[STEPS] += 1
    row[LAST] = now
    row[CONTEXT] = prompt_tokens + output_tokens
    row[BEFORE] = row[TOOL]
    row[TOOL] = tool
    observe_step(tables, w, int(row[TYPE]), output_tokens, service, max(growth, 0.0))
    if ended:
        row[ENDED] = 1
        leave(chains, c)
        observe_end(tables, w, tool, int(row[TYPE]), row[STEPS], True)


@njit(cache=True)
def announced_end(chains, tables, w, c):
    """Its client says, after the answer, that idle chain c has ended."""
    row = chains[c]
    if row[ENDED] == 0:
        leave(chains, c)
        observe_end(tables, w, int(row[TOOL]), int(row[TYPE]), row[STEPS], True)
    row[ENDED] = 1


@njit(cache=True)
def announced_call(chains, tables, w, c):
    """Its client says, after the answer, that chain c runs a tool: whoever does comes back, so a presumed end is taken
    back."""
    row = chains[c]
    if row[ENDED] == 2:
        retract_end(tables, w, int(row[TYPE]), int(row[TOOL]))
        row[ENDED] = 0
        _join(chains, c)


@njit(cache=True)
def abort(chains, c, now):
    """Its request went away (client gone) without finishing."""
    if chains[c, RUNNING] == 1:
        chains[c, ATTAINED] += now - chains[c, STARTED]
    chains[c, WAITING] = 0
    chains[c, RUNNING] = 0


@njit(cache=True)
def patience(chains, tables, w, c, expiry_s):
    """Seconds of silence after which idle chain c is presumed to have ended: where its client would have said so, many
    more than `expiry_s`."""
    return expiry_s * PATIENCE if announces(tables, w, int(chains[c, TYPE])) else expiry_s


@njit(cache=True)
def expire(chains, tables, w, c):
    """Nobody heard of idle chain c for longer than the expiry: presume that it ended."""
    row = chains[c]
    if row[ENDED] == 0 and row[WAITING] == 0 and row[RUNNING] == 0 and row[STEPS] > 0:
        row[ENDED] = 2
        leave(chains, c)
        observe_end(tables, w, int(row[TOOL]), int(row[TYPE]), row[STEPS], False)

"""Conversations made up: n runs of each of some tasks, all at once, in the bodies of one API."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from identity_kit.bodies import Call, Message, Said, body, pieces
from identity_kit.judge import Asked, Told

SYSTEM = "You are an agent that mends programs. Look before you change anything, and run the tests at the end."
EXPLORER = "You look for places in a program and name them."
TOOLS = ("bash", "read_file", "grep", "edit")
WORDS = ["parser", "cache", "window", "token", "engine", "queue", "lock", "thread", "socket", "buffer", "index",
         "column", "table", "query", "page", "batch", "offset", "length", "header", "frame", "codec", "stream",
         "signal", "handler", "worker", "pool", "shard", "bucket", "limit", "retry"]


@dataclass
class Shape:
    """tasks, runs: how many, and how often each; compact: turns after which the history becomes a summary; window:
    last turns that are sent, the rest is dropped. 0: never."""

    tasks: int = 20
    runs: int = 8
    compact: int = 0
    window: int = 0
    seed: int = 0
    named_calls: bool = True
    """Half of the tasks are served by a model whose ids of calls restart (`functions.bash:0`)."""


@dataclass
class Run:
    talk: str
    history: list[Message]
    steps: int
    restart: bool
    alike: bool
    rng: random.Random
    caller: str = ""
    waits_for: Run | None = None
    ask: int = -1
    said: Said | None = None
    summing: bool = False
    turns: int = 0
    subs: int = 0
    calls: int = 0
    keep: int = field(default=2)


def rollouts(api: str, shape: Shape) -> Iterator[Asked | Told]:
    """At each moment some run sends a request or gets its answer: all are under way at once. One of 50 requests is left
    by its client and sent again. First answers of a quarter of the tasks come in three versions, so that runs say the
    same (but where ids of calls restart: nobody can tell those apart)."""
    rng = random.Random(shape.seed)
    live = []
    for task in range(shape.tasks):
        restart = shape.named_calls and task % 2 == 1
        for k in range(shape.runs):
            history = [Message("system", SYSTEM), Message("user", f"Task {task}: {_sentence(random.Random(task), 30)}")]
            live.append(Run(f"{task}.{k}", history, rng.randint(6, 14), restart,
                            task % 4 == 0 and api != "completions", random.Random(f"{shape.seed} {task} {k}")))
    n = 0
    while live:
        run = rng.choice(live)
        if run.waits_for is not None and run.waits_for in live:
            continue
        if run.said is None:
            sent = list(run.history)
            if shape.window and len(sent) > shape.window + 2:
                sent = [sent[0], *_whole(sent[-shape.window:])]
            run.ask, raw = n, body(api, sent)
            n += 1
            yield Asked(run.ask, run.talk, api, raw, run.caller if not run.turns and run.ask >= 0 else "")
            if rng.random() < 0.02:
                yield Told(run.ask, None)
                run.ask = n
                n += 1
                yield Asked(run.ask, run.talk, api, raw)
            run.said = _answer(run)
            continue
        stream = rng.random() < 0.5
        yield Told(run.ask, pieces(api, run.said, f"r{run.ask}", stream), stream)
        new = _next(run, shape)
        if new is not None:
            live.append(new)
        if run.turns >= run.steps:
            live.remove(run)


def _answer(run: Run) -> Said:
    rng = run.rng
    if run.summing:
        lines = "\n".join(f"- {_sentence(rng, 14)}" for _ in range(6))
        return Said(f"<analysis>{_sentence(rng, 20)}</analysis>\n<summary>\n{lines}\n</summary>")
    if run.alike and run.turns == 0:
        rng = random.Random(rng.randint(0, 2))
    if run.turns == run.steps - 1:
        return Said(_sentence(rng, 12))
    run.calls += 1
    first = f"functions.{{}}:{run.calls - 1}" if run.restart else f"call-{run.rng.getrandbits(64):016x}"
    thought = _sentence(rng, 8) if rng.random() < 0.5 else ""
    if run.subs < 1 and run.turns == 2 and not run.caller and run.rng.random() < 0.3:
        given = json.dumps({"prompt": f"Look for this: {_sentence(rng, 16)}"})
        return Said("I ask another.", (Call(first.format("task"), "task", given),), thought)
    calls = []
    for k in range(1 + (rng.random() < 0.2)):
        name = rng.choice(TOOLS)
        calls.append(Call(first.format(name) + ("" if not k else "b"), name, json.dumps({"what": _sentence(rng, 4)})))
    return Said(_sentence(rng, 6) if rng.random() < 0.7 else "", tuple(calls), thought)


def _next(run: Run, shape: Shape) -> Run | None:
    """The answer has come: what the client does. Returns a sub-agent that it begins."""
    said, run.said = run.said, None
    assert said is not None
    run.turns += 1
    if run.summing:
        run.summing = False
        summary = said.text.partition("<summary>")[2].partition("</summary>")[0].strip()
        told = f"This goes on from an earlier conversation:\n{summary}\nGo on."
        run.history = [run.history[0], Message("user", told)]
        return None
    run.history = [*run.history, said.message()]
    sub = None
    for call in said.calls:
        if call.name == "task":
            run.subs += 1
            history = [Message("system", EXPLORER), Message("user", json.loads(call.arguments)["prompt"])]
            sub = Run(f"{run.talk}.sub", history, 3, run.restart, False, random.Random(f"{run.talk} sub"), run.talk)
            run.waits_for = sub
        run.history = [*run.history, Message("tool", f"{call.name}: {_sentence(run.rng, 10)}", of=call.id)]
    if shape.compact and len(run.history) > shape.compact and run.turns < run.steps - 2:
        run.summing = True
        run.history = [*run.history, Message("user", "Write a summary of all this, to go on from.")]
    return sub


def _whole(history: list[Message]) -> list[Message]:
    """Without results at the beginning whose calls were dropped."""
    while history and history[0].role == "tool":
        history = history[1:]
    return history


def _sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)) + f" {rng.randint(0, 99)}."

"""Recorded conversations. What a record leaves out of a request's body is put back where another row of it holds it."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from identity_kit.bodies import Call, Message, Said, body, pieces
from identity_kit.judge import Asked, Told

Event = Asked | Told


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") as f:
        yield from map(json.loads, f)


def _lmcache(folder: Path, kind: str) -> list[tuple[int, str, str, str]]:
    """(time, conversation, input, output), in order of time. A file of tau-bench holds two conversations: the agent's,
    and that of the model which plays its user and is always greeted first."""
    found = []
    for path in sorted(folder.glob(f"{kind}__*.jsonl.gz")):
        for r in rows(path):
            user = kind == "taubench" and r["input"].startswith(GREETING)
            found.append((r["timestamp"], f"{path.name}{' user' if user else ''}", r["input"], r["output"]))
    return sorted(found, key=lambda r: r[0])


GREETING = "Hi! How can I help you today?"


def lmcache_text(folder: Path, kind: str) -> Iterator[Event]:
    """As recorded: a prompt is the text of the user's turns, without the answers between them."""
    for n, (_, talk, text, output) in enumerate(_lmcache(folder, kind)):
        yield Asked(n, talk, "completions", json.dumps({"prompt": text}).encode())
        yield Told(n, [json.dumps({"choices": [{"index": 0, "text": output}]}).encode()])


def lmcache_bodies(folder: Path, kind: str) -> Iterator[Event]:
    """As chat bodies: between two inputs, of which the later begins with the earlier, stands the output. An empty
    output was a call (its name and arguments are not recorded), which gets an id of its own, as vLLM gives it."""
    histories: dict[str, list[Message]] = {}
    before: dict[str, tuple[str, Said]] = {}
    for n, (_, talk, text, output) in enumerate(_lmcache(folder, kind)):
        history = histories.setdefault(talk, [Message("system", kind + talk[-5:])])
        if talk in before:
            earlier, said = before[talk]
            new = text[len(earlier):] if text.startswith(earlier) else text
            history.append(said.message())
            if said.calls:
                history.append(Message("tool", f"what call {said.calls[0].id} found", of=said.calls[0].id))
            if new.strip():
                history.append(Message("user", new.strip()))
        else:
            history.append(Message("user", text))
        said = Said(output) if output.strip() else Said("", (Call(f"call-{n}", "tool", "{}"),))
        before[talk] = text, said
        yield Asked(n, talk, "chat", body("chat", history))
        yield Told(n, pieces("chat", said, f"r{n}", False))


def tau(folder: Path) -> Iterator[Event]:
    """As chat bodies, a made word for each recorded block of 16 tokens; sessions take turns. The blocks that a prompt
    adds to the one before are the answer, as many tokens as that has, and the result or the user's words."""
    by: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for r in rows(folder / "steps.jsonl.gz"):
        by[r["session"]].append(r)
    histories: dict[str, list[Message]] = {}
    n = 0
    for step in range(max(map(len, by.values()))):
        for session, mine in by.items():
            if step >= len(mine):
                continue
            row, after = mine[step], mine[step + 1] if step + 1 < len(mine) else None
            blocks, first, end = row["hash_ids"], row["in"] // 16, (row["in"] + row["out"]) // 16
            end = max(end, first + 1)  # of a short answer, the block in which it stands
            history = histories.setdefault(session, [Message("user", _words(blocks))])
            given = after["hash_ids"][first:end] if after is not None else []
            calls = tuple(Call(f"call-{n}-{k}", t["name"], json.dumps({"a": _words(given)}))
                          for k, t in enumerate(row["tools"]))
            said = Said("" if calls else _words(given), calls)
            yield Asked(n, session, "chat", body("chat", history))
            yield Told(n, pieces("chat", said, f"r{n}", False))
            if after is not None:
                rest = _words(after["hash_ids"][end:])
                history += [said.message(), Message("tool", rest, of=calls[0].id) if calls else Message("user", rest)]
            n += 1


def _words(blocks: list[int]) -> str:
    return " ".join(f"block{b}" for b in blocks)

"""Replay speed beside libCacheSim's C loop: same string, same capacity, same process, one thread, best of N.

    python benchmarks/replay_speed.py [--requests N] [--objects N] [--sessions N] [--kv-tokens T] [--population P]
                                      [--data FOLDER] [--repeats N] [--json FILE]

**Unit blocks.** A Zipf string, the blocks that recorded swe-bench requests ask for and, with --data, Mooncake's
conversation trace (FOLDER/mooncake). Ours: from names (`misses`: an array of int64 names in, a count out) and from next
uses (`play_uses`: what libCacheSim reads from its file, where the next use of each request stands ready). libCacheSim:
`process_trace`, its C loop over a memory-mapped oracleGeneral file in the page cache; making cache and reader is not
timed. Its speed depends on the size of its hash table, 2**24 slots by default; smaller tables are tried as well. Ratios
are to its fastest, and to the default. A run with unequal miss counts ends with status 1.

**Segments.** The prefix-aware replay (`saga_rl.sim.openloop.replay.play`) of the same swe-bench requests, in the block
references that its events stand for, for each eviction policy: beside libCacheSim's LRU on that string and beside a
plain Python LRU over blocks. What these three count differs (pinned blocks, tail first, features): speeds are compared,
not counts. A segment is played at once however long it is, so blocks of 512 tokens are shown too: fewer references for
the same events.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from saga_rl.aeg.generators import generate
from saga_rl.aeg.importers import import_trace
from saga_rl.errors import EXIT_BAD_INPUT, UserError
from saga_rl.files import check_target, write_json
from saga_rl.policies.registry import make
from saga_rl.provenance import provenance
from saga_rl.sim.config import SimConfig
from saga_rl.sim.openloop.record import record_reference
from saga_rl.sim.openloop.replay import play
from saga_rl.sim.openloop.script import prepare
from saga_rl.sim.openloop.unit import block_string, misses, next_uses, play_uses
from saga_rl.sim.reference import END, READY, START, Reference

ORACLE_GENERAL = np.dtype([("clock", "<u4"), ("name", "<u8"), ("size", "<u4"), ("next", "<i8")])
DEFAULT_TABLE = 24
BLOCK_TOKENS = (16, 512)
MOONCAKE_BLOCKS = 65_536
"""About a million tokens; a tenth of its blocks would leave Bélády none but first misses."""
EVICTIONS = ("lru", "lru-protect", "wa-lru", "wa-lru-literal", "belady")


def write_oracle_general(path: Path, blocks: NDArray[np.int64], uses: NDArray[np.int32]) -> None:
    """The string as a trace of unit-size objects in libCacheSim's format; `next` is -1 where there is none."""
    rows = np.zeros(len(blocks), ORACLE_GENERAL)
    rows["name"], rows["size"] = blocks.view(np.uint64), 1
    rows["next"] = np.where(uses < len(blocks), uses, -1)
    rows.tofile(path)


def libcachesim(path: Path, requests: int, capacity: int, policy: str, table_bits: int) -> tuple[int, float]:
    """(misses, seconds of the C loop) of a new cache over a file by `write_oracle_general`."""
    try:
        import libcachesim as lcs
    except ImportError:
        raise UserError("libcachesim", "is not installed", "pip install -e '.[dev]'") from None
    cache = {"lru": lcs.LRU, "belady": lcs.Belady}[policy](capacity, hashpower=table_bits)
    # not closed: its destructor closes it, and closing twice frees twice
    reader = lcs.TraceReader(str(path), lcs.TraceType.ORACLE_GENERAL_TRACE)
    started = time.perf_counter()
    miss_ratio, _ = cache.process_trace(reader)
    seconds = time.perf_counter() - started
    missed = miss_ratio * requests
    if abs(missed - round(missed)) > 0.01:
        raise AssertionError(f"libCacheSim's miss ratio {miss_ratio!r} is no whole number of {requests} requests")
    return round(missed), seconds


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def unit_row(name: str, blocks: NDArray[np.int64], capacity: int, policy: str, file: Path,
             repeats: int) -> dict[str, Any]:
    """One string under one policy; ours and libCacheSim take turns, so that both meet the same load."""
    uses = next_uses(blocks)
    ours = misses(blocks, capacity, policy)  # compiles
    tables = sorted({max(capacity.bit_length() + extra, 10) for extra in (0, 2, 4)} | {DEFAULT_TABLE})
    theirs: dict[int, float] = {}
    best_names = best_uses = np.inf
    for _ in range(repeats):
        best_names = min(best_names, _seconds(lambda: misses(blocks, capacity, policy)))
        best_uses = min(best_uses, _seconds(lambda: play_uses(uses, capacity, policy)))
        for bits in tables:
            counted, seconds = libcachesim(file, len(blocks), capacity, policy, bits)
            if counted != ours:
                raise SystemExit(f"{name}, {policy}: {ours} misses, libCacheSim counts {counted}")
            theirs[bits] = min(theirs.get(bits, np.inf), seconds)
    fastest = min(theirs, key=theirs.__getitem__)
    n = len(blocks)
    return {"string": name, "requests": n, "blocks": int((uses == n).sum()), "capacity_blocks": capacity,
            "policy": policy, "misses": ours, "ours_per_s": n / best_names, "ours_from_next_uses_per_s": n / best_uses,
            "libcachesim_per_s": {str(bits): n / s for bits, s in theirs.items()}, "libcachesim_fastest_bits": fastest,
            "ratio": theirs[fastest] / best_names, "ratio_from_next_uses": theirs[fastest] / best_uses,
            "ratio_to_default": theirs[DEFAULT_TABLE] / best_names}


def zipf(requests: int, objects: int, seed: int = 0) -> NDArray[np.int64]:
    """Zipf (exponent 1) over `objects`, whose names are spread over all 64 bits as content hashes are."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, objects + 1)
    names = rng.integers(-2**63, 2**63 - 1, objects)
    return names[rng.choice(objects, requests, p=share / share.sum())]


def plain_lru(r: Reference, pool: int) -> int:
    """Tokens hit under block LRU. Runs that do not fit hold what they need all the same: nothing is clipped here."""
    f, block = r.forest, r.forest.block_tokens
    blocks = []
    for i in range(len(f.chain)):
        segments = f.path[f.path_offsets[i]:f.path_offsets[i + 1]]
        places = [(int(s) << 32) + k for s in segments for k in range(f.seg_blocks[s])]
        blocks.append(places[:f.context_blocks[i]])
    idle: OrderedDict[int, None] = OrderedDict()
    held: dict[int, int] = {}
    have: dict[int, int] = {}
    hits = 0
    for kind, step, tokens in zip(r.kind.tolist(), r.step.tolist(), r.tokens.tolist(), strict=True):
        if kind == READY:
            continue
        mine, full = blocks[step], tokens // block
        if kind == START:
            have[step] = 0
            for b in mine[:(tokens - 1) // block]:
                if b not in idle and b not in held:
                    break
                hits += block
        for b in mine[have[step]:full]:
            held[b] = held.get(b, 0) + 1
            idle.pop(b, None)
        have[step] = max(have[step], full)
        while idle and len(idle) + len(held) > pool:
            idle.popitem(last=False)
        if kind == END:
            for b in reversed(mine[:have[step]]):
                held[b] -= 1
                if held[b] == 0:
                    del held[b]
                    idle[b] = None
    return hits


def segment_rows(reference: Reference, references: int, unit: dict[str, Any], repeats: int,
                 say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The prefix-aware replay, in block references a second; `unit` is the row of unit LRU on the same string."""
    prepared = prepare(reference, reference.kv_tokens)
    base = {"block_tokens": reference.forest.block_tokens, "references": references, "events": len(reference.kind)}
    theirs = max(unit["libcachesim_per_s"].values())

    def row(name: str, seconds: float, **more: Any) -> dict[str, Any]:
        return {"replay": name, **base, "references_per_s": references / seconds,
                "events_per_s": base["events"] / seconds, "ratio": references / seconds / theirs, **more}

    say("plain Python LRU")
    plain = _seconds(lambda: plain_lru(reference, prepared.pool_blocks))
    rows = [row("plain Python LRU", plain)]
    for name in EVICTIONS:
        say(f"segments under {name}")
        policy = make("eviction", name)
        hit = play(prepared, policy).hit_tokens  # compiles
        best = min(_seconds(partial(play, prepared, policy)) for _ in range(repeats))
        rows.append(row(name, best, hit_tokens=hit, over_plain=plain / best))
    prepare_s = min(_seconds(lambda: prepare(reference, reference.kv_tokens)) for _ in range(repeats))
    return [*rows, row("preparing, once for all policies", prepare_s)]


def show(result: dict[str, Any]) -> None:
    unit = Table(title="unit blocks, millions of requests a second; the miss counts are equal")
    for column in ("string", "requests", "blocks", "capacity", "policy", "misses", "from names", "from next uses",
                   "libCacheSim", "its default", "ratio", "from next uses", "to its default"):
        unit.add_column(column, justify="left" if column in ("string", "policy") else "right")
    for r in result["unit"]:
        speed, bits = r["libcachesim_per_s"], r["libcachesim_fastest_bits"]
        unit.add_row(r["string"], f"{r['requests']:,}", f"{r['blocks']:,}", f"{r['capacity_blocks']:,}", r["policy"],
                     f"{r['misses']:,}", f"{r['ours_per_s'] / 1e6:.1f}", f"{r['ours_from_next_uses_per_s'] / 1e6:.1f}",
                     f"{speed[str(bits)] / 1e6:.1f} (2^{bits})", f"{speed[str(DEFAULT_TABLE)] / 1e6:.1f}",
                     f"{r['ratio']:.1f} x", f"{r['ratio_from_next_uses']:.1f} x", f"{r['ratio_to_default']:.1f} x")
    seg = Table(title="prefix-aware replay of swe-bench")
    for column in ("block tokens", "references", "events", "policy", "M references / s", "k events / s",
                   "over libCacheSim LRU", "over plain Python"):
        seg.add_column(column, justify="left" if column == "policy" else "right")
    for r in result["segments"]:
        seg.add_row(str(r["block_tokens"]), f"{r['references']:,}", f"{r['events']:,}", r["replay"],
                    f"{r['references_per_s'] / 1e6:.1f}", f"{r['events_per_s'] / 1e3:.0f}",
                    f"{r['ratio']:.2f} x", f"{r['over_plain']:.0f} x" if "over_plain" in r else "-")
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(unit, seg)
    console.print(f"best of {result['repeats']}, one thread, {result['cores']} cores, load {result['load_before']:.2f} "
                  f"before and {result['load_after']:.2f} after; every table size of libCacheSim that was tried is in "
                  "the JSON", highlight=False)


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that `show` prints."""
    load = os.getloadavg()[0]
    strings = [("zipf", zipf(args.requests, args.objects), max(args.objects // 10, 1))]
    references = {}
    trace = generate("swe-bench", 0, sessions=args.sessions)
    for tokens in BLOCK_TOKENS:
        say(f"recording swe-bench in blocks of {tokens} tokens")
        config = SimConfig(kv_tokens=args.kv_tokens, population=args.population, block_tokens=tokens)
        name = f"swe-bench/{tokens}"
        references[name] = record_reference(trace, config)
        strings.append((name, block_string(references[name]), config.pool_blocks))
    if args.data:
        say("reading mooncake")
        blocks = block_string(import_trace("mooncake", args.data / "mooncake" / "conversation_trace.jsonl.gz"))
        strings.append(("mooncake", blocks, MOONCAKE_BLOCKS))
    unit = []
    with tempfile.TemporaryDirectory() as folder:
        for name, blocks, capacity in strings:
            file = Path(folder) / "string.oracleGeneral"
            write_oracle_general(file, blocks, next_uses(blocks))
            for policy in ("lru", "belady"):
                say(f"{name} under {policy}")
                unit.append(unit_row(name, blocks, capacity, policy, file, args.repeats))
            file.unlink()
    lru = {r["string"]: r for r in unit if r["policy"] == "lru"}
    segments = [row for name, reference in references.items()
                for row in segment_rows(reference, lru[name]["requests"], lru[name], args.repeats, say)]
    return {"unit": unit, "segments": segments, "repeats": args.repeats, "cores": os.cpu_count(), "load_before": load,
            "load_after": os.getloadavg()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default, text in (("requests", 5_000_000, "of the Zipf string"), ("objects", 100_000, "of that string"),
                                ("sessions", 60, "swe-bench sessions"), ("kv-tokens", 240_000, "pool of swe-bench"),
                                ("population", 4, "swe-bench sessions at once"), ("repeats", 5, "best of so many")):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default:,})")
    parser.add_argument("--data", type=Path, help="folder of real traces: adds mooncake")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    for name in ("requests", "objects", "sessions", "kv_tokens", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    try:
        check_target(args.json)
        with Console(stderr=True).status("compiling") as status:
            result = measure(args, status.update)
        if args.json:
            write_json(args.json, {**result, "provenance": provenance(seed=0, trace=None)})
    except UserError as e:
        print(e, file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    show(result)


if __name__ == "__main__":
    main()

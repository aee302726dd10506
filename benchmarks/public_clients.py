"""The benchmarks that people run first, against our server and against vLLM as it is: out of the box, no session ids.

    python benchmarks/public_clients.py [--multi-turn FOLDER] [--guidellm PROGRAM] [--policy auto] [--pool 438608 ...]
        [--repeats 1] [--out runs/public-clients]

FOLDER is `benchmarks/multi_turn` of vLLM's repository or source archive (it is not in the wheel), PROGRAM a `guidellm`
in an environment of its own. Each runs with the settings below against `saga-rl serve --policy stock` and `--policy
POLICY` on one emulated H100 with an 8B model, in a pool that holds everything and in one that does not. The order of
the two servers changes with each repeat. OUT gets what the tools wrote, and `public-clients.json` and `.md`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from soak_kit.servers import ask
from typer import Option

from saga_rl.errors import UserError
from saga_rl.experiments.bench.servers import EMULATED, KEY, Server
from saga_rl.files import write_json
from saga_rl.learn.script import check_range, run_script
from saga_rl.processes import free_port
from saga_rl.provenance import provenance
from saga_rl.report.tables import markdown
from saga_rl.runtime.emulate.shapes import PROFILE_OF, write_model

SHAPE, MODEL, WINDOW = "llama3.1-8b", "bench", 16_384
POOLS = (438_608, 32_768)
"""The profile's, and one that a quarter or so of the conversations fit into."""
MULTI_TURN = ("--num-clients", "8", "--max-active-conversations", "24", "--seed", "1")
CONVERSATIONS = {
    "filetype": "generate_conversations", "num_conversations": 48, "print_stats": False,
    "prompt_input": {
        "num_turns": {"distribution": "uniform", "min": 12, "max": 18},
        "common_prefix_num_tokens": {"distribution": "constant", "value": 500},
        "prefix_num_tokens": {"distribution": "lognormal", "average": 1000, "max": 5000},
        "num_tokens": {"distribution": "uniform", "min": 120, "max": 160}},
    "prompt_output": {"num_tokens": {"distribution": "uniform", "min": 80, "max": 120}}}
"""What vLLM's example file asks for, with twice its conversations."""
GUIDELLM = ("--profile", "kind=concurrent,streams=16", "--constraint", "kind=max_duration,seconds=60")
GUIDELLM_DATA = "kind=synthetic_text,prompt_tokens=500,output_tokens=100,turns=8,prefix_tokens=512,prefix_count=4"
"""Its own multi-turn scenario with shorter prompts and answers and more turns."""
Figures = dict[str, float]


# ---------------------------------------------------------------------- the tools
def multi_turn(folder: Path, model: Path, url: str, out: Path) -> Figures:
    """vLLM's script, with this project's documentation as its text."""
    text = out / "text.txt"
    text.write_text("\n".join(p.read_text() for p in sorted(Path("docs").rglob("*.md"))))
    (out / "conversations.json").write_text(json.dumps(CONVERSATIONS | {"text_files": [str(text.resolve())]}))
    stats = out / "stats.json"
    _run([sys.executable, str(folder.resolve() / "benchmark_serving_multi_turn.py"), "--model", str(model.resolve()),
          "--served-model-name", MODEL, "--url", url, "--api-key", KEY, "--input-file",
          str((out / "conversations.json").resolve()), "--stats-json-output", str(stats.resolve()), *MULTI_TURN], out,
         folder)
    rows = json.loads(stats.read_text())
    first, whole = np.array([r["ttft_ms"] for r in rows]), np.array([r["latency_ms"] for r in rows])
    begin = np.array([r["start_time_ms"] for r in rows])
    return figures(first / 1e3, whole / 1e3, float((begin + whole).max() - begin.min()) / 1e3)


def guidellm(program: Path, model: Path, url: str, out: Path) -> Figures:
    """GuideLLM's synthetic multi-turn conversations."""
    report = out / "report.json"
    _run([str(program.resolve()), "run", "--backend",
          f"kind=openai_http,target={url},model={MODEL},request_format=/v1/chat/completions,api_key={KEY}",
          "--tokenizer", f"kind=hf_auto,model={model.resolve()}", "--data", GUIDELLM_DATA, "--seed",
          "kind=static,value=1",
          "--output", f"kind=json,path={report.resolve()}", "--disable-console", *GUIDELLM], out, out)
    done = json.loads(report.read_text())["benchmarks"][0]["requests"]["successful"]
    first = np.array([r["time_to_first_token_ms"] for r in done])
    whole = np.array([r["request_latency"] for r in done])
    ends = np.array([r["request_end_time"] for r in done])
    return figures(first / 1e3, whole, float(ends.max() - (ends - whole).min()))


def _run(command: list[str], out: Path, cwd: Path) -> None:
    with (out / "tool.log").open("w") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=cwd, check=False).returncode
    if status:
        tail = "\n".join((out / "tool.log").read_text().splitlines()[-8:])
        raise UserError(command[0], f"ended with status {status}", f"read {out / 'tool.log'}:\n{tail}")


def figures(first_s: np.ndarray, whole_s: np.ndarray, seconds: float) -> Figures:
    """first_s, whole_s: of each request, to its first token and to its end; seconds: of the run."""
    return {"requests": len(whole_s), "first_mean_s": float(first_s.mean()),
            "first_p99_s": float(np.percentile(first_s, 99)), "mean_s": float(whole_s.mean()),
            "p99_s": float(np.percentile(whole_s, 99)), "per_s": len(whole_s) / seconds}


# ---------------------------------------------------------------------- the servers
def serve(policy: str, pool: int, model: Path, log: Path) -> Server:
    port = free_port()
    words = ["--policy", policy, "--emulate", PROFILE_OF[SHAPE], "--kv-tokens", str(pool), "--host", "127.0.0.1",
             "--port", str(port), "--served-model-name", MODEL, "--disable-uvicorn-access-log"]
    return Server(f"{policy} {pool}", str(model), words, port, log, policy, EMULATED)


def cached(server: Server) -> tuple[float, float]:
    """Prompt tokens looked up in vLLM's prefix cache so far, and found."""
    text = ask(server, "/metrics").splitlines()
    return tuple(sum(float(line.split()[-1]) for line in text if line.startswith(f"vllm:prefix_cache_{what}_total"))
                 for what in ("queries", "hits"))  # type: ignore[return-value]


def measure(policy: str, pool: int, model: Path, out: Path, tools: dict[str, Callable[..., Figures]]
            ) -> dict[str, Figures]:
    """Each tool's figures against one server."""
    found = {}
    with serve(policy, pool, model, out / f"{policy}.log") as server:
        server.ready()
        for name, tool in tools.items():
            server.empty()
            before = cached(server)
            place = out / f"{policy}-{name}"
            place.mkdir(parents=True, exist_ok=True)
            found[name] = tool(model, server.url, place)
            asked, hit = (b - a for a, b in zip(before, cached(server), strict=True))
            found[name]["cached"] = hit / asked if asked else 0.0
    return found


COLUMNS = {"per_s": "requests a second", "first_mean_s": "first token, s", "first_p99_s": "P99", "mean_s": "answer, s",
           "p99_s": "P99", "cached": "cached"}


def table(rows: list[dict[str, Any]], policy: str) -> list[list[str]]:
    """A line for each tool, pool and server: geometric means over the repeats, and ours over stock's."""
    out = []
    for tool, pool in dict.fromkeys((r["tool"], r["pool"]) for r in rows):
        mine = {who: [r for r in rows if (r["tool"], r["pool"], r["policy"]) == (tool, pool, who)]
                for who in ("stock", policy)}
        mean = {who: {k: float(np.exp(np.mean(np.log([max(r[k], 1e-9) for r in found])))) for k in COLUMNS}
                for who, found in mine.items()}
        for who in mine:
            cells = [f"{mean[who][k]:.3f}" + ("" if who == "stock" else f" ({mean[who][k] / mean['stock'][k]:.2f}x)")
                     for k in COLUMNS]
            out.append([tool, f"{pool:,}", who, *cells])
    return out


def main(
    multi_turn_folder: Annotated[Path | None, Option("--multi-turn", help="vLLM's benchmarks/multi_turn.")] = None,
    guidellm_program: Annotated[Path | None, Option("--guidellm", help="Its program.")] = None,
    policy: Annotated[str, Option(help="Ours.")] = "auto",
    pool: Annotated[list[int] | None, Option(help=f"KV tokens; {' and '.join(map(str, POOLS))} unless given.")] = None,
    repeats: Annotated[int, Option(help="Of everything.")] = 1,
    out: Annotated[Path, Option(help="Folder for what is written.")] = Path("runs/public-clients"),
) -> None:
    """Run public benchmarks against our server and stock."""
    check_range("--repeats", repeats, 1, 100)
    tools: dict[str, Callable[..., Figures]] = {}
    if multi_turn_folder is not None:
        if not (multi_turn_folder / "benchmark_serving_multi_turn.py").is_file():
            raise UserError(multi_turn_folder, "has no benchmark_serving_multi_turn.py",
                            "name benchmarks/multi_turn of vLLM's source archive")
        tools["multi_turn"] = partial(multi_turn, multi_turn_folder)
    if guidellm_program is not None:
        if not guidellm_program.is_file():
            raise UserError(guidellm_program, "is not there", "install guidellm in an environment of its own")
        tools["guidellm"] = partial(guidellm, guidellm_program)
    console = Console(width=160)
    if not tools:
        console.print("no tool was named: --multi-turn, --guidellm; nothing to measure", highlight=False)
        return
    out.mkdir(parents=True, exist_ok=True)
    model = out / "model"
    if not model.exists():
        write_model(SHAPE, model, WINDOW)
    rows: list[dict[str, Any]] = []
    for k in range(repeats):
        for tokens in pool or POOLS:
            for who in ("stock", policy)[::-1 if k % 2 else 1]:
                found = measure(who, tokens, model, out / f"{k}-{tokens}", tools)
                rows += [{"repeat": k, "tool": t, "pool": tokens, "policy": who, **f} for t, f in found.items()]
                write_json(out / "public-clients.json", {"measured": True, "rows": rows,
                                                         "provenance": provenance(seed=1, trace=None)})
    head = ["tool", "KV tokens", "server", *COLUMNS.values()]
    lines = table(rows, policy)
    shown = Table(*head)
    for line in lines:
        shown.add_row(*line)
    console.print(shown)
    (out / "public-clients.md").write_text(markdown(head, lines) + "\n")


if __name__ == "__main__":
    run_script(main)

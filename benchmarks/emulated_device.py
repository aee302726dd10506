"""What an emulated device costs in CPU, and how many engines keep its time on this machine.

    python benchmarks/emulated_device.py [--engines 2,8] [--seconds 40] [--time-scale 1] [--out runs/emulated_device]

Two tables. CPU time of one step with 1, 32 and 256 running requests: vLLM's own (`schedule`, `update_from_output`) and
the executor's (`execute_model`, `sample_tokens`), in one process, in the same run. Then servers with so many engines
under a steady load of agents: cores used by all their processes, and how much longer a token of an answer takes than it
would alone on the device (1 = never late, never shared). Writes `emulated_device.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PROFILE = "h100-llama3.1-8b-tp1"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", default="2,8", help="data-parallel engines of each server; empty: no server")
    parser.add_argument("--seconds", type=float, default=40.0, help="length of the load on each server")
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=300, help="measured steps in one process")
    parser.add_argument("--out", type=Path, default=Path("runs/emulated_device"))
    args = parser.parse_args()
    console = Console(width=140)
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ |= {"SAGA_RL_EMULATE": PROFILE, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1",
                   "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from saga_rl.provenance import provenance
    from saga_rl.runtime.emulate.shapes import write_model

    with tempfile.TemporaryDirectory() as folder:
        model = write_model("llama3.1-8b", Path(folder) / "model")
        found: dict[str, Any] = {"steps": _steps(model, args.steps)}
        console.print(_table("CPU of one step, microseconds (medians)", found["steps"]))
        os.environ.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
        from emulation_kit.load import measure

        found["servers"] = [measure(model, int(n), args.seconds, args.time_scale, PROFILE, args.out)
                            for n in args.engines.split(",") if n]
        if found["servers"]:
            console.print(_table("servers under load", found["servers"]))
    from saga_rl.files import write_json

    write_json(args.out / "emulated_device.json", found | {"provenance": provenance(seed=None, trace=None) | {
        "device": "emulated", "profile": PROFILE}})
    console.print(f"written: {args.out}/emulated_device.json")


def _steps(model: Path, steps: int) -> list[dict[str, Any]]:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(str(model), disable_log_stats=True)
    core = llm.llm_engine.engine_core.engine_core
    out = []
    for running in (1, 32, 256):
        spent: dict[str, list[float]] = {}
        names = {"schedule": core.scheduler, "update_from_output": core.scheduler, "execute_model": core.model_executor,
                 "sample_tokens": core.model_executor}
        kept = {name: getattr(owner, name) for name, owner in names.items()}
        for name, owner in names.items():
            setattr(owner, name, _timed(kept[name], spent.setdefault(name, [])))
        prompts = [TokensPrompt(prompt_token_ids=[300 + (i * j) % 190 for i in range(64)]) for j in range(running)]
        llm.generate(prompts, SamplingParams(max_tokens=steps, ignore_eos=True), use_tqdm=False)
        for name, owner in names.items():
            setattr(owner, name, kept[name])
        median = {name: 1e6 * statistics.median(times[len(times) // 4:]) for name, times in spent.items()}
        out.append({"running": running, **{k: round(v, 1) for k, v in median.items()},
                    "vllm": round(median["schedule"] + median["update_from_output"], 1),
                    "device": round(median["execute_model"] + median["sample_tokens"], 1)})
    return out


def _timed(call: Any, spent: list[float]) -> Any:
    """The call, its CPU seconds noted: a wait costs none."""
    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.thread_time()
        try:
            return call(*args, **kwargs)
        finally:
            spent.append(time.thread_time() - begin)

    return timed


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title)
    for key in rows[0]:
        table.add_column(key, justify="right")
    for row in rows:
        table.add_row(*(f"{v:,.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    return table


if __name__ == "__main__":
    main()

"""How fast the simulator runs: LLM steps and events a second, on one core, for each preset."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from saga_rl.aeg.generators import generate
from saga_rl.policies.presets import preset, preset_names
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig

SESSIONS, WORKERS, POPULATION, REPEATS = 200, 4, 48, 3


def main() -> None:
    trace = generate("swe-bench", 1, sessions=SESSIONS)
    config = SimConfig(workers=WORKERS, population=POPULATION)
    table = Table(title=f"{trace.n_sessions} swe-bench sessions, {trace.n_steps} steps, {WORKERS} workers, "
                        f"best of {REPEATS}")
    for column in ("preset", "steps / s", "events / s", "seconds", "simulated seconds / s"):
        table.add_column(column, justify="left" if column == "preset" else "right")
    console = Console()
    with console.status("compiling") as status:
        for name in preset_names():
            runs = []
            for i in range(REPEATS + 1):  # the first one compiles
                runs.append(simulate(trace, config, preset(name), slo=False))
                status.update(f"{name}, run {i} of {REPEATS}")
            best = min(runs[1:], key=lambda r: r.metrics["wall_s"])
            m, span = best.metrics, float(best.steps["done_s"].max())
            table.add_row(name, f"{m['llm_steps'] / m['wall_s']:,.0f}", f"{m['events'] / m['wall_s']:,.0f}",
                          f"{m['wall_s']:.2f}", f"{span / m['wall_s']:,.0f}")
    console.print(table)


if __name__ == "__main__":
    main()

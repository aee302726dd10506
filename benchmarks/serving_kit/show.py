"""Tables and the picture of `benchmarks/serving.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from saga_rl.errors import UserError
from saga_rl.files import atomic
from saga_rl.report.style import INK, PALETTE, dress, new_figure, save
from serving_kit.engine import STOCK

BEGIN, END = "<!-- serving: begin -->", "<!-- serving: end -->"


def steps_table(scenes: dict[str, dict[str, dict[str, float]]]) -> Table:
    table = Table(title="CPU time of one step without its model; ours minus stock: median and 95 % interval")
    for head in ("scene", "policy", "median ms", "P99 ms", "more than stock, us", "ratio", "2 % or 50 us", "P99 too"):
        table.add_column(head, justify="left" if head in ("scene", "policy", "2 % or 50 us", "P99 too") else "right")
    for scene, rows in scenes.items():
        for k, (name, r) in enumerate(rows.items()):
            more = "" if name == STOCK else f"{r['more_us']:+.0f} ({r['low_us']:+.0f} .. {r['high_us']:+.0f})"
            verdicts = ["" if name == STOCK else "met" if r[key] else "not met" for key in ("met", "p99_met")]
            table.add_row(scene if k == 0 else "", name, f"{r['ms']:.3f}", f"{r['p99_ms']:.3f}", more,
                          f"{r['ratio']:.3f}", *verdicts, end_section=k == len(rows) - 1)
    return table


def others_table(placement: dict[str, Any], memory: dict[str, float], workers: int) -> Table:
    table = Table(title=f"placement among {workers} engines, and memory of an idle session")
    for head in ("policy", "P50 us", "P99 us", "longest us", "P99 < 200 us", "bytes a session", "< 1 KiB"):
        table.add_column(head, justify="left" if head in ("policy", "< 1 KiB", "P99 < 200 us") else "right")
    for name, p in placement.items():
        table.add_row(name, f"{p['p50_us']:.0f}", f"{p['p99_us']:.0f}", f"{p['max_us']:.0f}",
                      "met" if p["met"] else "not met", f"{memory[name]:+.0f}" if name in memory else "",
                      ("met" if memory[name] < 1024 else "not met") if name in memory else "")
    return table


def server_table(r: dict[str, Any]) -> Table:
    table = Table(title=f"two real servers, traffic without agents: stock against {r['policy']}")
    for head in ("measured", "stock", r["policy"], "ours against stock, 95 % interval", "target"):
        table.add_column(head, justify="left" if head in ("measured", "target") else "right")
    a, b = r["latency_ms"].values()
    met = {k: "met" if v else "not met" for k, v in r["met"].items()}
    mid, low, high = r["more_ms"]
    table.add_row(f"one request at a time, P50 of {r['requests']}, ms", f"{a['p50']:.2f}", f"{b['p50']:.2f}",
                  f"{mid:+.3f} ms ({low:+.3f} .. {high:+.3f})", f"p50 < 0.5 ms: {met['p50 < 0.5 ms']}")
    x, y = r["tokens_per_s"].values()
    mid, low, high = r["throughput"]
    table.add_row(f"{r['at_once']} at once, {r['rounds']} rounds of {r['requests_a_round']}, answered tokens/s",
                  f"{x:.0f}", f"{y:.0f}", f"{mid:.3f} ({low:.3f} .. {high:.3f})",
                  f"1.00 +- 0.02: {met['1.00 +- 0.02']}")
    return table


def update_markdown(path: Path, tables: list[Table], where: dict[str, Any]) -> None:
    """Replace what stands between the two marks in `path`. Raises `UserError` if they are not there."""
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(path, f"does not have the lines {BEGIN} and {END} once each", "put them where the tables go")
    parts = []
    for t in tables:
        cells = [list(column.cells) for column in t.columns]
        parts += [f"**{t.title}**\n", "| " + " | ".join(str(c.header) for c in t.columns) + " |",
                  "|" + "|".join("---" if c.justify == "left" else "---:" for c in t.columns) + "|",
                  *("| " + " | ".join(row) + " |" for row in zip(*cells, strict=True)), ""]
    parts.append(f"Tree {where['commit'][:12]}, {where['machine']}, vLLM {where['vllm']}, {where['at'][:10]}, machine "
                 f"load {where['load']:.1f} at the end.")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    with atomic(path) as tmp:
        tmp.write_text(f"{head}{BEGIN}\n" + "\n".join(parts) + f"\n{END}{tail}", encoding="utf-8")


def picture(scenes: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Milliseconds a step, one group of bars for each scene. Writes SVG."""
    figure = new_figure(10.0, 3.4)
    axes = figure.subplots()
    names = list(next(iter(scenes.values())))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        at = [k + (i - (len(names) - 1) / 2) * width for k in range(len(scenes))]
        axes.bar(at, [rows[name]["ms"] for rows in scenes.values()], width * 0.92, color=PALETTE[i % len(PALETTE)],
                 label=name)
    axes.set_xticks(range(len(scenes)), [s.replace(", ", ",\n") for s in scenes], fontsize=8, color=INK)
    dress(axes, "One scheduling step without its model", "", "median CPU ms")
    axes.legend(frameon=False, fontsize=8, ncols=len(names))
    save(figure, path)

"""The table in the terminal, in a markdown page, and as a picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from gain_kit.settings import INFINITE, STOCK
from saga_rl.errors import UserError
from saga_rl.files import atomic, must_exist
from saga_rl.report.style import INK, PALETTE, dress, new_figure, save

HEAD = ("pressure", "arm", "TCT mean", "of stock", "TCT P95", "of stock", "TTFT mean", "P95", "computed again",
        "in time", "sessions/min", "of stock", "repeats")
BEGIN, END = "<!-- serving_gain: begin -->", "<!-- serving_gain: end -->"


def rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Cells as `HEAD` names them, arm by arm."""
    for level in result["levels"]:
        for arm, a in level["arms"].items():
            f, r = a["figures"], a["ratios"]
            yield (f"{level['pressure']:g}x" if arm != INFINITE else "none", arm, _s(f, "tct_mean_s"),
                   _r(arm, r.get("tct_mean_s")), _s(f, "tct_p95_s"), _r(arm, r.get("tct_p95_s")), _s(f, "ttft_mean_s"),
                   _s(f, "ttft_p95_s"), _k(f.get("recomputed_tokens")), _percent(f.get("in_time")),
                   _n(f.get("throughput_sessions_per_min")), _r(arm, r.get("throughput_sessions_per_min")),
                   str(a["repeats"]) + (f" ({a['failed_runs']} failed)" if a["failed_runs"] else ""))


def tenant_rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Pressure, arm, tenant, TCT mean and P95, TTFT mean and P95, tokens computed again."""
    for level in result["levels"]:
        for arm, a in level["arms"].items():
            for tenant, f in a["tenants"].items():
                yield (f"{level['pressure']:g}x" if arm != INFINITE else "none", arm, tenant, _s(f, "tct_mean_s"),
                       _s(f, "tct_p95_s"), _s(f, "ttft_mean_s"), _s(f, "ttft_p95_s"), _k(f.get("recomputed_tokens")))


TENANT_HEAD = ("pressure", "arm", "tenant", "TCT mean", "TCT P95", "TTFT mean", "TTFT P95", "computed again")


def _s(f: dict[str, Any], key: str) -> str:
    return "-" if f.get(key) is None else f"{f[key]:.2f} s"


def _n(x: float | None) -> str:
    return "-" if x is None else f"{x:.0f}"


def _k(x: float | None) -> str:
    return "-" if x is None else f"{x / 1000:.0f}k"


def _percent(x: float | None) -> str:
    return "-" if x is None else f"{x:.0%}"


def _r(arm: str, r: dict[str, Any] | None) -> str:
    if arm == STOCK:
        return "1"
    if not r or r["ratio"] is None:
        return "-"
    if r["low"] is None:
        return f"{r['ratio']:.2f}"
    return f"{r['ratio']:.2f} [{r['low']:.2f}-{r['high']:.2f}]"


def table(head: tuple[str, ...], cells: Iterator[tuple[str, ...]], title: str) -> Table:
    out = Table(title=title)
    for i, name in enumerate(head):
        out.add_column(name, justify="left" if i < 2 else "right", no_wrap=True)
    before = None
    for row in cells:
        if before not in (None, row[0]) and row[0] != "none":
            out.add_section()
        before = row[0]
        out.add_row(*row)
    return out


def caption(result: dict[str, Any]) -> str:
    """One paragraph: what was measured, on what, and from which commit."""
    s, last = result["setup"], result["starts"][-1]
    factors = ", ".join(f"{x['name']} lengths x 1/{1 / x['length_factor']:g}, times x 1/{1 / x['time_factor']:g}"
                        for x in s["sources"])
    seen = {level["pressure"]: level["arms"].get(STOCK, {}).get("figures", {}).get("oversubscription")
            for level in result["levels"]}
    live = "; ".join(f"{p:g}x: {tokens:,} KV tokens an engine" + (f", measured {x:.2f}x" if (x := seen[p]) else "")
                     for p, tokens in zip(s["pressures"], s["pools"]["tokens"], strict=True) if p in seen)
    return (f"{s['sessions']} sessions a run, {s['alive']} alive at once, {s['engines']} engines ({last['device']}); "
            f"{factors}. Live demand {s['pools']['demand']:,.0f} tokens; {live} (under stock). "
            f"End of a session {'told' if s['ends'] else 'not told'}. {s['repeats']} repeats, brackets: 95 % bootstrap "
            f"intervals of paired ratios. Commit {last['commit']}, vLLM {last['vllm']}, {last['machine']}.")


def markdown(result: dict[str, Any]) -> str:
    """Both tables and the caption."""
    def lines(head: tuple[str, ...], cells: Iterator[tuple[str, ...]]) -> list[str]:
        return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(c) + " |" for c in cells)]

    return "\n".join([caption(result), "", *lines(HEAD, rows(result)), "", "By tenant:", "",
                      *lines(TENANT_HEAD, tenant_rows(result))])


def update_markdown(path: Path, result: dict[str, Any]) -> None:
    """Replace what stands between the two marks in `path`. Raises `UserError` if they are not there."""
    text = must_exist(path).read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(path, f"does not have the lines {BEGIN} and {END} once each", "put them where the table goes")
    new = re.sub(re.escape(BEGIN) + ".*" + re.escape(END), lambda _: f"{BEGIN}\n{markdown(result)}\n{END}", text,
                 flags=re.DOTALL)
    with atomic(path) as tmp:
        tmp.write_text(new, encoding="utf-8")


def picture(result: dict[str, Any], path: Path) -> None:
    """Ratios of mean TCT to stock with intervals, a panel a pressure; a dot is one repeat. PNG."""
    levels = result["levels"]
    figure = new_figure(4.6 * len(levels), 3.2)
    panels = figure.subplots(1, len(levels), squeeze=False)[0]
    for axes, level in zip(panels, levels, strict=True):
        base = level["arms"].get(STOCK, {}).get("each", {})
        shown = [(arm, a) for arm, a in level["arms"].items() if a["ratios"].get("tct_mean_s")]
        for y, (arm, a) in enumerate(shown):
            r = a["ratios"]["tct_mean_s"]
            colour = PALETTE[6] if arm == INFINITE else PALETTE[0]
            axes.plot([r["low"], r["high"]], [y, y], color=colour, linewidth=2)
            axes.plot(r["ratio"], y, "D", color=colour, markersize=6)
            each = [a["each"][k] / base[k] for k in a["each"] if k in base]
            axes.plot(each, [y + 0.22] * len(each), "o", color=colour, markersize=3, alpha=0.6)
        axes.axvline(1.0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(shown)), [arm for arm, _ in shown])
        axes.invert_yaxis()
        dress(axes, f"KV oversubscribed {level['pressure']:g}x", "mean completion time, of stock's", "")
    save(figure, path)

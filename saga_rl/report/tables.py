"""One comparison, three ways to show it: rows for any renderer, a rich table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

KINDS = ("measured", "simulated")
Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A figure by its key in the metrics; `less` says whether less is better (None: neither)."""

    title: str
    key: str
    form: str
    scale: float = 1.0
    less: bool | None = True


COLUMNS = (
    Column("mean TCT, s", "tct_mean_s", "{:.1f}"),
    Column("P95 TCT, s", "tct_p95_s", "{:.1f}"),
    Column("again, k tokens", "recomputed_tokens", "{:,.0f}", 1e-3),
    Column("cached %", "hit_share", "{:.1f}", 100.0, less=False),
    Column("a minute", "throughput_sessions_per_min", "{:.1f}", less=False),
    Column("done", "sessions_done", "{}", less=None),
)


def comparison_rows(arms: Mapping[str, Mapping[str, Metrics]],
                    columns: tuple[Column, ...] = COLUMNS) -> list[list[str]]:
    """Rows of text: policy, kind, then `columns`, mean TCT followed by its ratio to the first arm of the same kind.

    arms: policy -> kind -> metrics; the first arm is the baseline. A figure that is not known is a dash.
    """
    out = []
    baseline = next(iter(arms.values()))
    for kind in KINDS:
        for name, by_kind in arms.items():
            if kind not in by_kind:
                continue
            m = by_kind[kind]
            cells = [name, kind, *(_cell(m.get(c.key), c) for c in columns)]
            ratio = _ratio(m, baseline.get(kind), columns[0].key)
            out.append([*cells[:3], ratio, *cells[3:]])
    return out


def comparison_header(first: str, columns: tuple[Column, ...] = COLUMNS) -> list[str]:
    """Titles of `comparison_rows`' cells."""
    titles = [c.title for c in columns]
    return ["policy", "kind", titles[0], f"/ {first}", *titles[1:]]


def comparison(arms: Mapping[str, Mapping[str, Metrics]], title: str) -> Table:
    """A rich table of measured rows, then simulated ones; fits 80 columns."""
    header = comparison_header(next(iter(arms)).split()[0])
    table = Table(title=title, title_justify="left", caption="TCT: task completion time. again: tokens computed again. "
                  "cached: of the prompts. a minute: sessions.", caption_justify="left", padding=(0, 0, 0, 1))
    for i, name in enumerate(header):
        words = max(len(word) for word in name.split())  # rich would cut one short before it breaks another line
        table.add_column(name, justify="left" if i < 2 else "right", no_wrap=i < 2, min_width=words)
    rows = comparison_rows(arms)
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(*row, end_section=after is None or after[1] != row[1])
    return table


def _cell(value: Any, column: Column) -> str:
    return "-" if value is None else column.form.format(value * column.scale if column.scale != 1.0 else value)


def _ratio(m: Metrics, baseline: Metrics | None, key: str) -> str:
    ours, theirs = m.get(key), (baseline or {}).get(key)
    return "-" if not ours or not theirs else f"{ours / theirs:.2f}"

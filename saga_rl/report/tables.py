"""Tables are headers and rows of text, for a terminal, markdown and `html.Page` alike; and how figures become text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def terminal(header: Sequence[str], rows: Sequence[Sequence[str]], title: str, left: Sequence[str] = (),
             no_wrap: bool = False, **look: Any) -> Table:
    """A table for a terminal; the first column and those named in `left` begin at the left. no_wrap: a cell is one
    line. look: of `rich.table.Table`."""
    out = Table(title=title, title_justify="left", padding=(0, 1, 0, 0), **look)
    for i, name in enumerate(header):
        out.add_column(name, justify="left" if i == 0 or name in left else "right", no_wrap=no_wrap)
    for row in rows:
        out.add_row(*row)
    return out


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a page in a repository, without a final newline."""
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "---|" * len(header),
                      *("| " + " | ".join(row) + " |" for row in rows)])


def or_dash(value: Any, form: str, scale: float = 1.0) -> str:
    """`form` of a figure, times `scale` unless that is 1; a dash where there is none."""
    return "-" if value is None else form.format(value * scale if scale != 1.0 else value)


def interval(value: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """`0.85 [0.80, 0.91]`; without an interval just the value, a dash without that."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]")


def ratio_text(ratio: Mapping[str, Any] | None, digits: int = 2) -> str:
    """`interval` of a paired ratio (`ratio`, `low`, `high`), or a dash."""
    return "-" if ratio is None else interval(ratio["ratio"], ratio["low"], ratio["high"], digits)


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
            cells = [name, kind, *(or_dash(m.get(c.key), c.form, c.scale) for c in columns)]
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


def _ratio(m: Metrics, baseline: Metrics | None, key: str) -> str:
    ours, theirs = m.get(key), (baseline or {}).get(key)
    return "-" if not ours or not theirs else f"{ours / theirs:.2f}"

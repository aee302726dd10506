"""One self-contained page: text, tables and pictures, with provenance in the footer."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saga_rl.files import atomic
from saga_rl.report.style import data_uri

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: .9rem; } th, td { padding: .25rem .7rem; text-align: right; }
th:first-child, td:first-child, td.left, th.left { text-align: left; }
thead th { border-bottom: 2px solid #222; font-weight: 600; vertical-align: bottom; }
tbody td { border-bottom: 1px solid #ddd; }
body.wide { max-width: 76rem; } .wide td { white-space: nowrap; } details { margin: .6rem 0; }
summary { cursor: pointer; }
td.worse { color: #B23A00; font-weight: 600; } td.better { color: #00508C; font-weight: 600; }
.measured { color: #0072B2; font-weight: 600; } .simulated { color: #7F7F7F; font-style: italic; }
img { max-width: 100%; height: auto; } figcaption, footer, .small { color: #555; font-size: .85rem; }
figure { margin: 1rem 0; } pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .8rem; }
.scroll { overflow-x: auto; }
"""


@dataclass
class Page:
    """Parts in order of the calls; `write` puts them under one title. wide: for tables of many columns."""

    title: str
    provenance: dict[str, Any]
    parts: list[str] = field(default_factory=list)
    wide: bool = False

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str, small: bool = False) -> None:
        self.parts.append(f"<p{' class=small' if small else ''}>{html.escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Cells that say `measured`, `simulated`, `better` or `worse` are coloured as such."""
        head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
        body = "".join("<tr>" + "".join(_cell(c) for c in row) + "</tr>" for row in rows)
        self.parts.append(f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>")

    def folded(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table that is seen once its title is clicked."""
        self.parts.append(f"<details><summary>{html.escape(title)}</summary>")
        self.table(header, rows)
        self.parts.append("</details>")

    def picture(self, image: bytes, caption: str) -> None:
        """A PNG or SVG, embedded."""
        alt = html.escape(caption, quote=True)
        self.parts.append(f'<figure><img alt="{alt}" src="{data_uri(image)}"><figcaption>{html.escape(caption)}'
                          "</figcaption></figure>")

    def render(self) -> str:
        title, wide = html.escape(self.title), " class=wide" if self.wide else ""
        about = html.escape(json.dumps(self.provenance, indent=2, ensure_ascii=False))
        return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
                f'content="width=device-width"><title>{title}</title><style>{STYLE}</style></head><body{wide}><h1>{title}</h1>\n'
                + "\n".join(self.parts)
                + f"\n<footer><h2>Where these figures come from</h2><pre>{about}</pre></footer></body></html>\n")

    def write(self, path: str | Path) -> None:
        """Write the page, whole or not at all."""
        with atomic(path) as tmp:
            tmp.write_text(self.render(), encoding="utf-8")


def _cell(text: str) -> str:
    verdict = next((word for word in ("better", "worse") if text.startswith(word)), None)
    kind = f' class="left {text}"' if text in ("measured", "simulated") else f' class="{verdict}"' if verdict else ""
    return f"<td{kind}>{html.escape(text)}</td>"

"""CARD.md of the checkpoints that a direct search wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_rl.learn.cards import command

WHAT = {
    "eviction": "scores each idle session's KV cache; highest goes first",
    "ordering": "scores each waiting request; lowest is served first",
    "admission": "scores the request at the head of a queue; it is let in if the score is above 0",
    "placement": "scores each worker for a request; the highest gets it",
}


def search_card(decision: str, meta: Mapping[str, Any], features: tuple[str, ...], others: Mapping[str, str]) -> str:
    """meta: as `training/search.py` writes it."""
    source, weights = meta["source"], meta["weights"][decision]
    lines = [f"# A learned {decision} policy", "", f"It {WHAT[decision]}. Found by direct search (CMA-ES) with the "
             f"other decisions named {', '.join(meta['config']['decisions'])}.", "", "## Training",
             f"- command: `{command(source['argv'])}`",
             f"- commit {source['commit']}, version {source['version']}, seed {source['seed']}",
             f"- {meta['runs']:,} simulated episodes, references included; no other look at any session",
             *([f"- {meta['note']}"] if meta["note"] else []), "", "## Data"]
    lines += [f"- {line}" for line in meta["arenas"]]
    few = "five" if meta["config"]["trained"] else "four"
    lines += ["", f"## Figures on validation sessions (simulated; they chose among {few}, so they flatter a little)",
              f"- cost against the reference rule: {meta['searched_cost']:+.4f}, the rules it started from "
              f"{meta['start_cost']:+.4f} (log of mean completion time, plus half of the log of P95 where worse)",
              *_tried(meta),
              f"- reference: {', '.join(f'{k} `{v}`' for k, v in meta['reference'].items())}",
              "", "What it gains and loses on test sessions: `checkpoints/REPORT.md`, by `training/protocol.py`.", "",
              "## What it reads", "Weights of the linear part, in units of the raw feature:", ""]
    lines += [f"- {name}: {w:+.4g}" for name, w in sorted(weights.items(), key=lambda kv: -abs(kv[1]))]
    lines += ["", f"{len(features)} features, simulator and vLLM alike.", "", "## What runs beside it",
              *(f"- {other}: `{spec}`" for other, spec in others.items()), "", "## Limits",
              "- It saw simulated runs only.",
              "- It overrides no constraint: fairness, floors and capacity are enforced outside of it.",
              "- It is refused where the feature code differs from the one it was found with.",
              "- Licence: that of the project.", ""]
    return "\n".join(lines)


def _tried(meta: Mapping[str, Any]) -> list[str]:
    trained, cost = meta["config"]["trained"], meta["validation_cost"]
    if not trained:
        return []
    if cost == meta["searched_cost"]:
        return [f"- trained otherwise and tried in its place: {', '.join(trained)}; no better, so left out"]
    return [f"- with what was trained otherwise in place of the searched {', '.join(trained)}: {cost:+.4f}; it is here"]


def copied_card(decision: str, meta: Mapping[str, Any], others: Mapping[str, str]) -> str:
    """What a copy of a trained checkpoint adds to its card: what it serves beside. meta: as `search_card`'s."""
    how = _tried(meta) if decision in meta["config"]["trained"] else ["- it was given; the others were searched"]
    beside = ", ".join(f"{other} `{spec}`" for other, spec in others.items())
    return "\n".join(["", "## In this folder", "A copy, for a set of policies that a search found (the other cards "
                      "here say how). Figures above are the original's, with the original's other policies.", *how,
                      f"- what runs beside it here: {beside}", ""])

"""CARD.md of a checkpoint that an offline learner made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saga_rl.learn.cards import command

SERVED = {
    "eviction": "it scores each idle session's KV cache, highest goes first",
    "placement": "it scores each worker for a request, highest gets it",
    "ordering": "it scores each waiting request, lowest goes first",
    "admission": "it scores a request, which enters if the score is over 0",
}


def learner_card(name: str, decision: str, meta: Mapping[str, Any], features: Sequence[str],
                 others: Mapping[str, str]) -> str:
    """The card in Markdown; `meta` as `saga_rl.learn.offline.from_datasets.save` makes it."""
    source, config = meta["source"], meta["config"]
    options = ", ".join(f"{k} {v}" for k, v in config["options"].items())
    lines = [f"# {name}", "", f"A learned {decision} policy: {SERVED[decision]}.", "", "## Training",
             f"- command: `{command(source['argv'])}`",
             f"- commit {source['commit']}, version {source['version']}, seed {source['seed']}",
             f"- algorithm: {meta['algorithm']}" + (f"; {options}" if options else ""),
             f"- {config['epochs']} epochs, of which number {meta['epoch']} is kept ({meta['keeps']}); "
             f"{meta['seen']:,} decisions seen", *([f"- {meta['note']}"] if meta.get("note") else []), ""]
    lines += ["## Data", *(f"- {key}: {value}" for key, value in meta["data"].items()), ""]
    lines += [f"## Figures of {meta['figures_of']}",
              *(f"- {key}: {value:.4g}" for key, value in meta["figures"].items()), "",
              "These figures are of single decisions; tokens computed again and completion times are measured by "
              "`training/evaluate.py`.", ""]
    lines += ["## What it reads",
              f"{len(features)} features a row, simulator and vLLM alike: {', '.join(features)}.", "",
              "## What runs beside it", *(f"- {other}: `{spec}`" for other, spec in others.items()), ""]
    lines += ["## Limits", "- It saw simulated decisions only, on the traces named above.",
              f"- It decides {decision} and overrides no constraint; the other decisions have policies of their own.",
              "- It is refused where the feature code differs from the one it was trained on."]
    if decision == "ordering":
        lines.append("- It says who goes first, not that nobody should: a row for holding was scored in training only.")
    return "\n".join([*lines, ""])

"""CARD.md of datasets and checkpoints: what a person needs to know before using one."""

from __future__ import annotations

import shlex
from typing import Any


def dataset_card(name: str, facts: dict[str, Any]) -> str:
    """Card of a collected dataset; `facts` as `training/collect.py` writes them."""
    source = facts["source"]
    lines = [f"# {name}", "", "Eviction decisions of `saga_rl/Eviction-v0` (open-loop replays) with Belady labels.",
             "", "| behaviour | episodes | decisions | candidates a decision | tokens computed again |",
             "|---|---|---|---|---|"]
    for behaviour, c in facts["statistics"].items():
        lines.append(f"| {behaviour} | {c['episodes']} | {c['decisions']} | {c['candidates'] / c['decisions']:.1f} "
                     f"| {c['recomputed_tokens']} |")
    lines += ["", f"- actions are uniform with chance {facts['epsilon']:g}; their propensity is in `infos/propensity`",
              f"- traces: {_hashes(facts['traces'])}",
              f"- capacities, KV tokens: {', '.join(map(str, facts['capacities']))}",
              f"- reference strings recorded under: {', '.join(facts['record'])}",
              f"- features: `{facts['feature_hash'][:16]}`, {len(facts['features'])} columns, {facts['max_rows']} rows",
              f"- made by: `{command(source['argv'])}` at commit {source['commit']}", ""]
    return "\n".join(lines)


def checkpoint_card(name: str, meta: dict[str, Any], features: tuple[str, ...], companions: dict[str, str]) -> str:
    """Card of a trained eviction checkpoint; `meta` as the training scripts write it."""
    source, data = meta["source"], meta["data"]
    lines = [f"# {name}", "", "A learned eviction policy: it scores each idle session's KV cache, highest goes first.",
             "", "## Training", f"- command: `{command(source['argv'])}`",
             f"- commit {source['commit']}, version {source['version']}, seed {source['seed']}",
             f"- algorithm: {meta['algorithm']}", ""]
    lines += ["## Data", *(f"- {key}: {value}" for key, value in data.items()), ""]
    lines += [f"## Figures of {meta['figures_of']}",
              *(f"- {key}: {value:.4g}" for key, value in meta["figures"].items()),
              "", "These figures are of single decisions; tokens computed again and completion times are measured by "
              "`training/evaluate.py`.", ""]
    lines += ["## What it reads",
              f"{len(features)} features a row, simulator and vLLM alike: {', '.join(features)}.", "",
              "## What runs beside it", *(f"- {seam}: `{spec}`" for seam, spec in companions.items()), ""]
    lines += ["## Limits", "- It saw simulated decisions only, on the traces named above.",
              "- It orders eviction and overrides no constraint; admission, order and placement are its companions'.",
              "- It is refused where the feature code differs from the one it was trained on.", ""]
    return "\n".join(lines)


def command(argv: list[str]) -> str:
    """The command line as a person would type it, from the root of the project."""
    return shlex.join(["python", *argv])


def _hashes(traces: dict[str, str]) -> str:
    return ", ".join(f"{name} (sha256 {digest[:12]})" for name, digest in traces.items())

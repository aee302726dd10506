"""CARD.md of datasets and checkpoints: what a person needs to know before using one."""

from __future__ import annotations

import shlex
from typing import Any

from saga_rl.report.tables import markdown, or_dash, ratio_text


def dataset_card(name: str, facts: dict[str, Any]) -> str:
    """Card of a collected dataset; `facts` as `training/collect.py` writes them."""
    source, decision = facts["source"], facts["seam"]
    part = f", part `{facts['part']}` of a split by session group" if facts["part"] else ""
    lines = [f"# {name}", "", f"Decisions: {decision}{part}. {DECISION_OF_DATASET[decision]}", "",
             "| behaviour | episodes (cut) | decisions | candidates a decision | propensity | return of an episode, "
             "10 / 50 / 90 % |", "|---|---|---|---|---|---|"]
    statistics = facts["statistics"]
    for behaviour, c in statistics.items():
        returns = " / ".join(f"{x:.1f}" for x in c["returns"])
        lines.append(f"| {behaviour} | {c['episodes']} ({c['cut']}) | {c['decisions']} "
                     f"| {c['candidates'] / c['decisions']:.1f} | {c['propensity'][0]:.3g} - {c['propensity'][1]:.3g} "
                     f"| {returns} |")
    lines += ["", "| behaviour | tokens computed again | log completion time | service gap, tokens |",
              "|---|---|---|---|"]
    lines += [f"| {behaviour} | {c['recomputed_tokens']:.0f} | {c['log_tct']:.1f} | {c['fairness_gap_tokens']:.0f} |"
              for behaviour, c in statistics.items()]
    groups = sum(len(g) for g in facts["session_groups"].values())
    lines += ["", "Components are sums over all episodes; 0 where the decision does not know one. Every behaviour saw "
              "other sessions, so its sums are not to be compared with another's.", "",
              f"- actions are uniform with chance {facts['epsilon']:g}; their propensity is in `infos/propensity`",
              f"- traces: {_hashes(facts['traces'])}; {groups} groups of sessions, listed in the metadata",
              f"- capacities, KV tokens: {', '.join(map(str, facts['capacities']))}",
              f"- loads, times the trace's own arrivals: {', '.join(f'{x:g}' for x in facts['loads'])}",
              *([f"- reference strings recorded under: {', '.join(facts['record'])}"] if facts["record"] else []),
              f"- features: `{facts['feature_hash'][:16]}`, {len(facts['features'])} columns, {facts['max_rows']} rows",
              f"- made by: `{command(source['argv'])}` at commit {source['commit']}", ""]
    return "\n".join(lines)


DECISION_OF_DATASET = {
    "eviction": "Open-loop replays of `saga_rl/Eviction-v0` with Belady labels.",
    "placement": "Closed-loop runs of `saga_rl/Placement-v0`; a row is a worker.",
    "ordering": "Closed-loop runs of `saga_rl/Ordering-v0`; a row is a request that waits.",
    "admission": "Closed-loop runs of `saga_rl/Admission-v0`; row 0 lets the head of the queue in, row 1 holds it.",
    "joint": "Closed-loop runs of `saga_rl/Joint-v0`; a row is a request that waits, the last row holds them all.",
}


def checkpoint_card(name: str, meta: dict[str, Any], features: tuple[str, ...], others: dict[str, str]) -> str:
    """Card of a trained eviction checkpoint; `meta` as the training scripts write it."""
    source, data = meta["source"], meta["data"]
    lines = [f"# {name}", "", "A learned eviction policy: it scores each idle session's KV cache, highest goes first.",
             "", "## Training", f"- command: `{command(source['argv'])}`",
             f"- commit {source['commit']}, version {source['version']}, seed {source['seed']}",
             f"- algorithm: {meta['algorithm']}", *([f"- {meta['note']}"] if meta.get("note") else []), ""]
    lines += ["## Data", *(f"- {key}: {value}" for key, value in data.items()), ""]
    lines += [f"## Figures of {meta['figures_of']}",
              *(f"- {key}: {value:.4g}" for key, value in meta["figures"].items()),
              "", "These figures are of single decisions; tokens computed again and completion times are measured by "
              "`training/evaluate.py`.", ""]
    lines += ["## What it reads",
              f"{len(features)} features a row, simulator and vLLM alike: {', '.join(features)}.", "",
              "## What runs beside it", *(f"- {decision}: `{spec}`" for decision, spec in others.items()), ""]
    lines += ["## Limits", "- It saw simulated decisions only, on the traces named above.",
              "- It orders eviction and overrides no constraint; admission, order and placement are decided by other policies.",
              "- It is refused where the feature code differs from the one it was trained on.", ""]
    return "\n".join(lines)


def evaluation_card(result: dict[str, Any], trace: str) -> str:
    """The tables of `evaluation.json` in Markdown: gains and losses alike."""
    labels = list(result["open_loop"][0]["policies"])
    opened = [[f"{row['capacity_tokens']}{' (low pressure)' if row['low_pressure'] else ''}",
               *(or_dash(p["ratio"], "{:.3f}") for p in row["policies"].values())] for row in result["open_loop"]]
    closed = [[str(run["kv_tokens"]), label, f"{sum(arm['tct_mean_s']) / len(arm['tct_mean_s']):.1f}",
               ratio_text(arm.get("mean_vs_stock"), 3), ratio_text(arm.get("p95_vs_stock"), 3),
               f"{arm['vs_infinite']:.2f}", f"{arm['collapsed']} of {len(run['seeds'])}"]
              for run in result["closed_loop"] for label, arm in run["arms"].items()]
    lines = [f"## {trace}", "", "Tokens computed again over Belady's, open loop (1 = the bound).", "",
             markdown(("KV tokens", *labels), opened), "",
             "Completion times, closed loop; ratios to lru over paired seeds, 95 % interval.", "",
             markdown(("KV tokens", "policy", "mean TCT, s", "mean / lru", "P95 / lru", "/ infinite memory",
                       "collapsed"), closed)]
    lines += ["", "The checkpoint against the other arms, mean TCT: " + "; ".join(
        f"at {run['kv_tokens']} " + ", ".join(
            f"{other} {ratio_text(ratio, 3)}" + (f" ({ratio['verdict']})" if ratio else "")
            for other, ratio in run["mean_vs"].items()) for run in result["closed_loop"]) + "."]
    return "\n".join([*lines, ""])


def command(argv: list[str]) -> str:
    """The command line as a person would type it, from the root of the project."""
    return shlex.join(["python", *argv])


def _hashes(traces: dict[str, str]) -> str:
    return ", ".join(f"{name} (sha256 {digest[:12]})" for name, digest in traces.items())

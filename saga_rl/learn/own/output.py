"""What a learning run leaves behind: result.json, CARD.md, a picture, and one page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from saga_rl.files import atomic, write_json
from saga_rl.learn.own import rule
from saga_rl.learn.own.run import Outcome
from saga_rl.learn.own.verdict import BARE, INFINITE, kept, sentence
from saga_rl.provenance import provenance
from saga_rl.report.html import Page
from saga_rl.report.pictures import forest
from saga_rl.report.style import PALETTE, dress, new_figure, svg
from saga_rl.report.tables import interval, markdown, terminal

HEADER = ("served by", "mean, s", "P95, s", "first token, s", "its P95, s", "sessions a minute", "mean over stock",
          "P95 over stock")


def write_all(o: Outcome, out: Path, console: Console) -> None:
    """Every file, each whole or not at all, and the table on the screen."""
    source = provenance(seed=o.settings.seed, trace=None, code_sha256=o.code,
                        trace_parts=o.facts["parts"], profile=o.settings.profile)
    said = sentence(o.figures, o.choice, base(o), kept(o.searches))
    write_json(out / "result.json", {
        "sentence": said, "serves": o.choice.serves, "why": o.choice.why, "simulated": True, "trace": o.facts,
        "world": asdict(o.world), "settings": o.settings.as_json(), "searches": o.searches, **o.figures,
        "provenance": source})
    picture = svg(drawn(o))
    with atomic(out / "gain.svg") as tmp:
        tmp.write_bytes(picture)
    with atomic(out / "CARD.md") as tmp:
        tmp.write_text(card(o, said, source), encoding="utf-8")
    page(o, said, source, picture).write(out / "index.html")
    wide = console if console.is_terminal else Console(width=150, file=console.file)
    wide.print(terminal(HEADER, rows(o), f"{o.figures['arrangements']} arrangements of test sessions, simulated"))
    for text in (said, f"Written to {out}: {verdict(o)}", f"page: {out / 'index.html'}"):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def base(o: Outcome) -> str:
    """How stock with the same memory below the GPU is named."""
    return "vLLM as it is, with the same CPU tier" if o.settings.cpu_tokens else "vLLM as it is"


def command(o: Outcome) -> str:
    """How an operator serves the folder with the memory that it was judged with."""
    tier = " --kv-offloading-size GIB" if o.settings.cpu_tokens else ""
    return f"saga-rl serve MODEL --policy FOLDER{tier}" + (" --lazy-offload" if o.settings.lazy_offload else "")


def label(arm: str, o: Outcome) -> str:
    """An arm in a table."""
    own = {rule.STOCK: "stock + tier" if o.settings.cpu_tokens else "stock", rule.FOUND: "found here"}
    return own.get(arm, arm) + (" *" if arm == o.choice.serves else "")


def verdict(o: Outcome) -> str:
    """What the folder serves and why, in a sentence."""
    if o.choice.serves == rule.FOUND:
        start = kept(o.searches)
        what = f"{start} that the search began from, since nothing better was found and" if start else (
            "what was found, since")
        return f"it serves {what} {o.choice.why}."
    return (f"it serves the safe default, {rule.named(o.choice.serves)}, NOT what was found: {o.choice.why}. What was "
            "found stands in the folder found.")


def rows(o: Outcome) -> list[list[str]]:
    """Cells as `HEADER` names them."""
    out = []
    for arm, f in o.figures["arms"].items():
        over = f["over"].get(rule.STOCK, {})
        out.append([label(arm, o), f"{f['tct_mean_s']:,.0f}", f"{f['tct_p95_s']:,.0f}", f"{f['ttft_mean_s']:,.2f}",
                    f"{f['ttft_p95_s']:,.2f}", f"{f['throughput_sessions_per_min']:.2f}",
                    ratio(over.get("tct_mean_s")), ratio(over.get("tct_p95_s"))])
    return out


def ratio(r: dict[str, Any] | None) -> str:
    """With its interval; a dash where there is none."""
    return "-" if r is None else interval(r["ratio"], r["low"], r["high"])


def against(o: Outcome) -> tuple[tuple[str, ...], list[list[str]]]:
    """What was found over every other arm."""
    over = o.figures["arms"][rule.FOUND]["over"]
    return ("found here, over", "mean", "P95", "first token", "its P95", "throughput"), [
        [label(other, o), *(ratio(r[key]) for key in ("tct_mean_s", "tct_p95_s", "ttft_mean_s", "ttft_p95_s",
                                                      "throughput_sessions_per_min"))] for other, r in over.items()]


def conditions(o: Outcome) -> list[str]:
    """What the figures hold for."""
    t, p = o.facts, o.world.pressure
    few = " The population is the largest that the trace can feed." if not o.settings.load and (
        not o.settings.population and p.ratio < 1.7) else ""
    left = f", {t['left_out']} left out: longer than {t['longest_allowed_tokens']:,} tokens ({t['limit']})"
    return [
        f"Sessions: {t['sessions']} of {t['source']} in {t['groups']} groups{left if t['left_out'] else ''}. "
        f"{t['parts']['train']} to search on, {t['parts']['validation']} to choose by, {t['parts']['test']} to judge "
        f"on; no group is in two of them. Quality: {t['sentence']}."
        + (f" {t['doubts'].capitalize()}." if t["doubts"] else ""),
        f"World: {o.world.described()}; tools' names are not known ahead. vLLM as it is takes {p.ratio:.2f} times as "
        f"long as with infinite memory there, on training sessions.{few}",
        f"Intervals are 95 % bootstrap intervals over {o.figures['arrangements']} arrangements of the test sessions, "
        "in pairs: they say how far the draw and order of these sessions matters, not what other traffic would do."]


def card(o: Outcome, said: str, source: dict[str, Any]) -> str:
    """CARD.md of the folder."""
    lines = ["# A policy for one trace", "", said, "", f"This folder: {verdict(o)}", "",
             f"Serve it: `{command(o)}`. Play it: `saga-rl simulate TRACE --policy FOLDER`.", "",
             "## What the figures hold for", *(f"- {text}" for text in conditions(o)), "", "## On test sessions", "",
             markdown(HEADER, rows(o)), "", "`*`: what this folder serves.", "", markdown(*against(o)), "",
             "## How it was searched", *(f"- {text}" for text in searched(o)), "", "## Where it comes from",
             f"- commit {source['commit']}, version {source['version']}, seed {source['seed']}",
             "- the command line stands in result.json", "", "## Limits",
             "- All of it is simulated; measure before you switch (`saga-rl bench`).",
             "- It was searched for this trace, this pool, this tier and this load.",
             "- A server refuses it where the code of its columns differs. Then run `saga-rl learn` again.", ""]
    return "\n".join(lines)


def searched(o: Outcome) -> list[str]:
    """A sentence for each search."""
    return [f"From {r['from']}: {', '.join(r['searched'])}, {r['runs']:,} simulated runs; on validation sessions "
            f"{r['validation_cost']:+.3f} against {rule.named(o.figures['default'])}, its start {r['start_cost']:+.3f} "
            "(log of mean completion, plus half of the log of P95 where worse)." for r in o.searches]


def page(o: Outcome, said: str, source: dict[str, Any], picture: bytes) -> Page:
    """index.html."""
    made = Page("What would your agents gain?", source)
    made.text(said)
    made.text(f"This folder: {verdict(o)}")
    made.picture(picture, "Mean and P95 of completion over vLLM as it is"
                 + (" with the same CPU tier" if o.settings.cpu_tokens else "") + ", with 95 % intervals: left of the "
                 "line is faster (simulated).")
    made.heading("On test sessions")
    made.table(HEADER, rows(o))
    made.text("Completion: from a session's first request to its last answer, tools included. P95: 95 of 100 take "
              "less. *: what this folder serves.", small=True)
    made.heading("What was found, over every other")
    made.table(*against(o))
    made.heading("What the figures hold for")
    for text in conditions(o):
        made.text(text)
    made.heading("How it was searched")
    for text in searched(o):
        made.text(text)
    made.heading("What to do next")
    made.text(f"1. Serve it: {command(o)}. 2. Measure before you switch: saga-rl bench TRACE "
              f"--arms stock,{o.figures['default']},FOLDER --emulate PROFILE runs real vLLM. 3. Record a day of the "
              "new traffic and run saga-rl learn again when it changes.")
    return made


def drawn(o: Outcome) -> Any:
    """Mean and P95 over stock with the same tier, an arm a row."""
    arms = [arm for arm in o.figures["arms"] if arm not in (rule.STOCK,)]
    figure = new_figure(9.0, 1.2 + 0.42 * len(arms))
    for axes, key, title in zip(figure.subplots(1, 2, sharey=True), ("tct_mean_s", "tct_p95_s"), ("mean", "P95"),
                                strict=True):
        there = [(arm, r) for arm in arms if (r := o.figures["arms"][arm]["over"][rule.STOCK][key])]
        forest(axes, [label(arm, o) for arm, _ in there], [(r["ratio"], r["low"], r["high"]) for _, r in there],
               [colour(arm) for arm, _ in there], 9)
        dress(axes, f"{title} of completion over stock", "ratio (less is better)", "")
    return figure


def colour(arm: str) -> str:
    """Grey for what is no choice."""
    return PALETTE[6] if arm in (INFINITE, BARE) else PALETTE[1] if arm == rule.FOUND else PALETTE[0]

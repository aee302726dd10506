"""What is served in the end: what was found, unless the test cannot exclude that the safe default is as good.

A ratio is what `intervals.paired_ratio` gives: of a cost, ours over the other's, over the same arrangements of test
sessions; None where there are too few of them, which excludes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Ratio = Mapping[str, Any] | None
MOST_P95 = 1.02
"""P95 of completion over the default's: its middle value may not be above, whatever its interval."""
FOUND, STOCK = "found", "lru"


@dataclass(frozen=True)
class Choice:
    """serves: `found`, or the preset that is served in its place; why: a clause that says so."""

    serves: str
    why: str


def no_worse(p95: Ratio) -> bool:
    """Whether a P95 counts as not worse: the interval does not lie above 1, nor the middle above `MOST_P95`."""
    return p95 is not None and p95["low"] <= 1 and p95["ratio"] <= MOST_P95


def wins(mean: Ratio, p95: Ratio) -> bool:
    """Whether a policy is shown better than the other: the whole interval of the mean below 1, and P95 not worse."""
    return mean is not None and mean["high"] < 1 and no_worse(p95)


def safe_default(default: str, mean: Ratio) -> str:
    """`default`, or vLLM as it is where the test shows `default` slower. mean: the default over stock with the same
    tier."""
    return STOCK if mean is not None and mean["low"] > 1 else default


def choose(default: str, default_over_stock: Ratio, found_over: Mapping[str, Mapping[str, Ratio]]) -> Choice:
    """found_over: of the preset `default`, and of `lru` (stock with the same tier), `mean` and `p95` of what was found
    over it. It is served only if it beats both."""
    safe = safe_default(default, default_over_stock)
    beaten_by = [name for name in dict.fromkeys((safe, default, STOCK))
                 if not wins(found_over[name]["mean"], found_over[name]["p95"])]
    if not beaten_by:
        return Choice(FOUND, f"it is shown better than {named(default)} and than {named(STOCK)} on test sessions")
    other = beaten_by[0]
    mean, p95 = found_over[other]["mean"], found_over[other]["p95"]
    if mean is None or p95 is None:
        why = "there were too few arrangements to tell"
    elif not mean["high"] < 1:
        why = (f"its mean completion is {mean['ratio']:.3f} of that of {named(other)} [{mean['low']:.3f}, "
               f"{mean['high']:.3f}], which does not exclude that it is no better")
    else:
        why = (f"its P95 of completion is {p95['ratio']:.3f} of that of {named(other)} [{p95['low']:.3f}, "
               f"{p95['high']:.3f}], so some sessions would wait longer")
    return Choice(safe, why)


def named(preset: str) -> str:
    """The preset as a sentence names it."""
    return "vLLM as it is" if preset == STOCK else f"the preset `{preset}`"

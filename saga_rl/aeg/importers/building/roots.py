"""Sub-agents that are recorded as sessions of their own: which session they belong to."""

from __future__ import annotations

from collections.abc import Mapping


def root_of(name: str, parents: Mapping[str, str]) -> str:
    """The session at the top of `name`'s callers; a circle ends where it closes."""
    seen = {name}
    while (above := parents.get(name)) is not None and above not in seen:
        name = above
        seen.add(name)
    return name

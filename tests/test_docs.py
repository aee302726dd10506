"""What the pages of docs/ name is what there is: columns, policies, learners, arms, tasks, files and classes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import saga_rl.policies.registry as registry
from saga_rl.aeg.importers import importer_names
from saga_rl.env.tasks import NAMED, short_name
from saga_rl.experiments.bench.arms import ARMS
from saga_rl.learn.offline.learners import LEARNERS
from saga_rl.policies.base import DECISIONS
from saga_rl.policies.features import (
    ADMISSION,
    EVICTION,
    LEARNED_ADMISSION,
    LEARNED_EVICTION,
    LEARNED_ORDERING,
    LEARNED_PLACEMENT,
    ORDERING,
    PLACEMENT,
)

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COLUMNS = {"eviction": EVICTION, "placement": PLACEMENT, "ordering": ORDERING, "admission": ADMISSION}
LEARNED = {"eviction": LEARNED_EVICTION, "placement": LEARNED_PLACEMENT, "ordering": LEARNED_ORDERING,
           "admission": LEARNED_ADMISSION}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def quoted(text: str) -> set[str]:
    """All that stands between back quotes; `mine_0` to `mine_3` stands for all four."""
    out = set(re.findall(r"`([^`\n]+)`", text))
    for name, low, high in re.findall(r"`(\w+_)(\d)` to `\w+_(\d)`", text):
        out |= {f"{name}{k}" for k in range(int(low), int(high) + 1)}
    return out


@pytest.mark.parametrize("decision", DECISIONS)
def test_every_column_has_a_row(decision: str) -> None:
    """And no row is of a column that is not there."""
    text = page("reference/observations.md")
    section = text[text.index(f"## {decision.capitalize()}\n"):].split("\n## ")[0]
    learned, other = section.split("Not learned:")
    first = [quoted(line.split("|")[1]) for line in learned.splitlines() if line.startswith("| `")]
    assert [name for names in first for name in names] == list(LEARNED[decision])
    assert f"{len(LEARNED[decision])} learned columns" in learned
    rest = set().union(*(quoted(line.split("|")[1]) for line in other.splitlines() if line.startswith("| `")))
    assert rest == set(COLUMNS[decision]) - set(LEARNED[decision])


@pytest.mark.parametrize(("where", "names"), [
    ("reference/policies.md", [n for d in DECISIONS for n in registry.names(d)]),
    ("reference/learners.md", list(LEARNERS)), ("how-to/bench.md", list(ARMS)),
    ("reference/import-formats.md", importer_names()), ("reference/environments.md", [short_name(t) for t in NAMED])],
    ids=lambda x: x if isinstance(x, str) else "")
def test_every_name_is_on_its_page(where: str, names: list[str]) -> None:
    text = page(where)
    assert not [n for n in names if not re.search(rf"(?<![\w+-]){re.escape(n)}(?![\w+])", text)]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(path: Path) -> None:
    """Paths with capitals (NAME.py, DECISION.py) stand for many; an environment's id (`saga_rl/Joint-v0`) is none."""
    named = set(re.findall(r"\b(?:saga_rl|benchmarks|training|tests|checkpoints)/[\w./-]*[\w/]", path.read_text()))
    assert not [n for n in named if not re.search(r"[A-Z]{4}|-v\d$", n) and not (ROOT / n).exists()
                and not (ROOT / f"{n}.py").exists() and not list(ROOT.glob(f"{n}*"))]


# ---------------------------------------------------------------------- vLLM's features
FEATURES = page("reference/vllm-features.md")
TESTS = re.findall(r"`(test_\w+\.py)::(test_\w+)(?:\[([^\]`]+)\])?`", FEATURES)


@pytest.mark.parametrize(("file", "test", "case"), sorted(set(TESTS)), ids=lambda x: x if isinstance(x, str) else "")
def test_every_test_that_the_page_of_features_names_is_there(file: str, test: str, case: str) -> None:
    text = (ROOT / "tests" / file).read_text()
    assert f"\ndef {test}(" in text
    if case:
        assert f'    "{case}": Feature(' in (ROOT / "tests" / "features_kit.py").read_text()


def test_every_feature_is_served_or_refused_by_a_test_and_none_is_left_out() -> None:
    rows = [line.strip("|").split(" | ") for line in FEATURES.splitlines() if line.startswith("| ")]
    table = rows[rows.index(next(r for r in rows if "all presets" in r[2])) + 1:]
    table = table[:next(k for k, r in enumerate(table) if r[0].strip() == "scene")]
    assert len(table) >= 20
    for row in table:
        assert len(row) == 4 and all(cell.strip(" |") for cell in row), row
        assert re.search(r"(served|refused): `test_\w+\.py::test_", row[2]), row
    kit = (ROOT / "tests" / "features_kit.py").read_text()
    assert set(re.findall(r'^    "([^"]+)": Feature\(', kit, re.M)) == {case for *_, case in TESTS if case}

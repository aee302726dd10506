"""Tables, pictures and the page: unknown figures are dashes, and measured and simulated ones are never mixed up."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from saga_rl.report import pictures
from saga_rl.report.html import Page
from saga_rl.report.style import png, save
from saga_rl.report.tables import comparison, comparison_header, comparison_rows

matplotlib = pytest.importorskip("matplotlib", reason="pictures need the extra saga-rl[train]")


def metrics(tct: float, **more) -> dict:
    return {"tct_mean_s": tct, "tct_p95_s": 2 * tct, "recomputed_tokens": 12_345, "hit_share": 0.5,
            "throughput_sessions_per_min": 3.0, "sessions_done": 4, **more}


ARMS = {"lru": {"measured": metrics(20.0), "simulated": metrics(10.0)},
        "other": {"measured": metrics(30.0, recomputed_tokens=None), "simulated": metrics(5.0)}}


def test_ratios_compare_like_with_like_and_losses_show():
    rows = {(r[0], r[1]): r for r in comparison_rows(ARMS)}
    at = comparison_header("lru").index("/ lru")
    assert rows["other", "measured"][at] == "1.50"
    assert rows["other", "simulated"][at] == "0.50"
    assert rows["lru", "measured"][at] == rows["lru", "simulated"][at] == "1.00"


def test_rows_match_the_header_measured_first_and_unknown_is_a_dash():
    rows, header = comparison_rows(ARMS), comparison_header("lru")
    assert all(len(r) == len(header) for r in rows)
    assert [r[1] for r in rows] == ["measured"] * 2 + ["simulated"] * 2
    assert rows[1][header.index("again, k tokens")] == "-"
    assert rows[0][header.index("again, k tokens")] == "12"
    assert rows[0][header.index("cached %")] == "50.0"


def test_an_arm_without_a_kind_has_no_row_of_it():
    rows = comparison_rows({"lru": {"simulated": metrics(1.0)}, "x": {"measured": metrics(1.0)}})
    assert [(r[0], r[1]) for r in rows] == [("x", "measured"), ("lru", "simulated")]
    assert rows[0][3] == "-"


def test_the_table_prints_every_cell():
    out = io.StringIO()
    Console(file=out, width=200).print(comparison(ARMS, "title"))
    for row in comparison_rows(ARMS):
        for cell in row:
            assert cell in out.getvalue()


def test_eighty_columns_cut_no_word_short():
    arms = {"lru (stock)": {kind: metrics(139.0, recomputed_tokens=1_234_567) for kind in ("measured", "simulated")}}
    out = io.StringIO()
    Console(file=out, width=80).print(comparison(arms, "title"))
    assert "…" not in out.getvalue() and "┓" in out.getvalue()
    for word in " ".join([*comparison_header("lru"), *comparison_rows(arms)[0]]).split():
        assert word in out.getvalue()


def test_curves_are_distribution_functions():
    figure = pictures.completion_times({"lru": {"measured": [3.0, 1.0, 2.0], "simulated": [1.5]},
                                        "x": {"measured": [9.0]}})
    lines = figure.axes[0].lines
    assert len(lines) == 3
    x, y = lines[0].get_data()
    assert list(x) == [0.0, 1.0, 2.0, 3.0] and list(y) == pytest.approx([0, 100 / 3, 200 / 3, 100])
    texts = {t.get_text() for t in figure.axes[0].get_legend().get_texts()}
    assert texts == {"lru", "x", "measured", "simulated"}


def test_the_bound_is_drawn_and_named_and_axes_have_units():
    rows = [{"capacity_tokens": c, "belady_recomputed_tokens": 10 ** 6,
             "policies": {"lru": {"recomputed_tokens": 2 * 10 ** 6}}}
            for c in (20_000, 10_000)]
    axes = pictures.computed_again(rows).axes[0]
    drawn = {line.get_label(): line.get_data() for line in axes.lines}
    assert list(drawn["lru"][0]) == [10, 20] and list(drawn["lru"][1]) == [2, 2]
    assert list(drawn["Bélády, the bound"][1]) == [1, 1]
    assert "thousand tokens" in axes.get_xlabel() and "million" in axes.get_ylabel()


def test_occupancy_stacks_to_the_total_and_marks_capacity():
    blocks = np.array([[1, 0, 2], [3, 0, 4]])
    figure = pictures.occupancy({"lru": {"time_s": np.array([0.0, 1.0]), "blocks": blocks}}, 10_000, 1000)
    axes = figure.axes[0]
    assert len(axes.collections) == 2  # the session that never held a block has no band
    top = max(path.vertices[:, 1].max() for c in axes.collections for path in c.get_paths())
    assert top == pytest.approx(7.0)
    assert axes.lines[0].get_ydata()[0] == 10.0


class Counter(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs) -> None:
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_self_contained_and_escapes_what_it_shows(tmp_path):
    page = Page("a <b> title", {"commit": "abc", "argv": ["x & y"]})
    page.heading("<script>")
    page.text("1 < 2")
    page.table(comparison_header("lru"), comparison_rows(ARMS))
    page.picture(png(pictures.completion_times({"lru": {"measured": [1.0]}})), 'say "hello"')
    page.write(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    parser = Counter()
    parser.feed(text)
    assert not parser.open
    assert "<script>" not in text and "x &amp; y" in text and "&quot;commit&quot;" in text
    assert len(parser.images) == 1 and parser.images[0].startswith("data:image/png;base64,")
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert text.count('class="left measured"') == 2 and text.count('class="left simulated"') == 2


def test_a_picture_is_written_whole(tmp_path):
    save(pictures.completion_times({"lru": {"measured": [1.0]}}), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1

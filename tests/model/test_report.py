"""The report of a day: every number is of a record, nothing is from another host, it can be looked at."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model import report
from model.reports import charts, page, words
from model.reports.charts import Bar, Bin
from model.reports.records import bins_of, read_day, series_of
from spark_jobs.lake import verdicts
from tests.model.conftest import METRICS, evaluation_of, pass_gate

DS = "2026-03-02"
INTERVALS = {f"{task}_gauc_{end}": value for task in ("ctr", "ctcvr") for end, value in
             (("low", 0.58123), ("high", 0.71987))}  # fmt: skip
FACTS = {
    "events": {
        "impressions": 19113,
        "clicks": 2243,
        "immature_share": 0.06891,
        "late_rows": 243,
        "users": 556.0,
    },
    "samples": {"rows": 571, "candidates": 16321, "ctr": 0.09227},
}
BROKEN = {"rule": "labels_mature", "description": "share that <is> late", "observed": 0.3,
          "bounds": "at most 0.15", "success": False}  # fmt: skip


class Links(HTMLParser):
    """Collects what a page would load or lead to, and whether its tags are closed."""

    VOID = ("meta", "br", "path", "circle", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [
            str(value) for name, value in attrs if name in ("src", "href", "srcset", "action", "data")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def judge(suite: str, *findings: dict[str, Any], allowed: str = "", ds: str = DS) -> None:
    verdict = {"success": not findings, "allowed": allowed, "facts": FACTS[suite], "findings": [*findings]}
    verdicts.write(verdicts.path_of("foodlog", suite, ds), verdict)


def decide(run: Any, **changes: Any) -> None:
    record = {
        "promoted": False, "alarm": False, "reasons": ["ctcvr_gauc 0.6700 lost"], "note": "",
        "champion": None,
        "candidate": {"version": 3, "preset": run.record["preset"]},
        "findings": [{"rule": "unseen_day", "holds": True, "reason": "not seen"},
                     {"rule": "ctcvr_gauc", "holds": False, "reason": "0.6700 < 0.6800"}],
    }  # fmt: skip
    (run.path / "promotion.json").write_text(json.dumps(record | changes))


@pytest.fixture
def make_day(make_run: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a day's records: verdicts, and a run of each preset with its evaluation and scores."""

    def make(*presets: str, ds: str = DS) -> list[Any]:
        judge("events", ds=ds)
        judge("samples", ds=ds)
        runs = []
        for place, preset in enumerate(presets):
            run = make_run(ds, ["2026-03-01"], preset)
            mine = {**INTERVALS, "ctr_gauc": 0.6212 + place / 100}
            segment = {**METRICS, **mine, "ctr_gauc": 0.6543}
            evaluation = evaluation_of(
                run.digest, ds, mine, {"version": 2, "ctr_gauc": 0.6111}, preset=preset,
                segments={"candidate": {"history_none": segment, "history_10_to_49": segment}},
            )  # fmt: skip
            (run.path / "evaluation.json").write_text(json.dumps(evaluation))
            scores = np.linspace(0.01, 0.4, 40)
            columns = {"label_click": np.tile([0.0, 1.0], 20), "label_conversion": np.zeros(40)}
            pq.write_table(pa.table({**columns, "ctr_live": scores, "ctcvr_live": scores / 2}),
                           run.path / "scores_candidate.parquet")  # fmt: skip
            pass_gate(run)
            runs.append(run)
        return runs

    return make


def records_of(var: Path) -> list[float]:
    """Every number that a record of the day holds."""
    texts = [path.read_text() for place in ("gates", "runs") for path in (var / place).rglob("*.json")]
    return [float(number) for text in texts for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def test_every_number_is_of_a_record_and_nothing_is_loaded(var: Path, make_day: Callable[..., Any]) -> None:
    for run in make_day("tiny", "user_tower"):
        decide(run)
    assert report.main(["--dataset", "foodlog", "--ds", DS]) == 0
    text = page.path_of("foodlog", DS).read_text()
    parser = Links()
    parser.feed(text)
    assert parser.links == []
    assert parser.open == []
    assert not re.findall(r"//(?!www\.w3\.org/2000/svg)[a-z]|url\(|@import|<script", text)
    known = np.array(records_of(var))
    drawn = re.sub(r"<h2>Calibration</h2>.*?<h2>", "<h2>", text, flags=re.S)
    shown = re.findall(
        r"(?<=[>\[ :])\d+\.\d{4}(?!\d)", re.sub(r'(?:<text[^>]*font-size="11">[^<]*|<path[^>]*)', "", drawn)
    )
    assert len(shown) > 40
    assert [number for number in shown if np.abs(known - float(number)).min() > 6e-5] == []
    assert {"0.6212", "0.6312", "0.6543", "0.6111", "0.5812", "0.7199"} <= set(shown)
    for told in ("19,113", "16,321", "0.0689", "unseen_day", "0.6700 &lt; 0.6800", "samples version 7"):
        assert told in text, told


def test_run_again_it_is_the_same(make_day: Callable[..., Any]) -> None:
    make_day("tiny")
    first = page.write("foodlog", DS).read_bytes()
    assert page.write("foodlog", DS).read_bytes() == first


def test_a_day_that_a_gate_stopped_has_a_report_that_says_why(make_day: Callable[..., Any]) -> None:
    make_day()
    judge("events", BROKEN)
    text = page.page(read_day("foodlog", DS))
    assert "Stopped by a gate: gate_events." in text
    assert "labels_mature: share that &lt;is&gt; late (0.3, at most 0.15)" in text
    judge("events", BROKEN, allowed="a holiday")
    text = page.page(read_day("foodlog", DS))
    assert "No model was trained for this day." in text
    assert "allowed: a holiday" in text


@pytest.mark.usefixtures("var")
def test_a_day_without_any_record_is_refused() -> None:
    assert report.main(["--dataset", "foodlog", "--ds", DS]) == 1
    assert not page.path_of("foodlog", DS).exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "Nobody was promoted."),
        ({"champion": {"version": 2, "preset": "tiny"}}, "The champion stayed: version 2 (tiny)."),
        ({"alarm": True}, "Alarm: tiny (version 3) not promoted; somebody has to look."),
        ({"promoted": True}, "tiny (version 3) was promoted to champion."),
    ],
)
def test_the_decision_in_one_sentence(
    make_day: Callable[..., Any], changes: dict[str, Any], told: str
) -> None:
    (run,) = make_day("tiny")
    assert words.headline(read_day("foodlog", DS)) == "Not decided yet."
    decide(run, **changes)
    assert words.headline(read_day("foodlog", DS)) == told


def test_earlier_days_stand_beside_the_day_and_later_ones_do_not(make_day: Callable[..., Any]) -> None:
    for ds in ("2026-03-02", "2026-03-03", "2026-03-04"):
        make_day("tiny", ds=ds)
    day = read_day("foodlog", "2026-03-03")
    series = series_of(day.history["tiny"], "ctr_gauc")
    assert series["candidate"] == [("2026-03-02", 0.6212), ("2026-03-03", 0.6212)]
    assert series["champion"] == [("2026-03-02", 0.6111), ("2026-03-03", 0.6111)]
    assert "oracle" not in series  # it has no ctr_gauc in these records
    assert sorted(day.verdicts["events"]) == ["2026-03-02", "2026-03-03"]


def test_calibration_weighs_candidates_by_what_they_stand_for() -> None:
    scores, labels = np.repeat([0.1, 0.5], 50), np.r_[np.ones(5), np.zeros(45), np.ones(25), np.zeros(25)]
    plain = bins_of(labels, scores)
    assert [one.score for one in plain] == pytest.approx([0.1] * 5 + [0.5] * 5)
    assert np.mean([one.rate for one in plain[:5]]) == pytest.approx(0.1)
    weighted = bins_of(np.tile([1.0, 0.0], 10), np.full(20, 0.25), np.tile([1.0, 3.0], 10))
    assert [one.rate for one in weighted] == pytest.approx([0.25] * 10)
    assert bins_of(np.zeros(3), np.zeros(3))[0].rate == 0.0


def xs(svg: str) -> list[float]:
    return [float(x) for x in re.findall(r'<circle[^>]*cx="([\d.]+)"', svg)]


def test_bars_lie_on_their_axis_in_order_and_say_when_there_is_no_value() -> None:
    rows = [
        Bar(name="a", value=0.6, low=0.55, high=0.65),
        Bar(name="b <", value=0.7),
        Bar(name="c", value=None),
    ]
    svg = charts.bars(rows, "GAUC", "GAUC", 0.5)
    (first, second) = xs(svg)
    at = {
        float(mark): float(x)
        for x, mark in re.findall(r'<text x="([\d.]+)"[^>]*font-size="11">([\d.]+)<', svg)
    }
    assert at[0.5] < first < second
    assert first == pytest.approx(at[0.6], abs=0.11)
    assert "a: 0.6000 [0.5500, 0.6500]" in svg
    assert "no value" in svg
    assert "b &lt;" in svg
    assert charts.bars([], "GAUC", "GAUC")


@pytest.mark.parametrize(
    ("low", "high"), [(0.5, 0.9), (0.0, 0.0), (0.6711, 0.6712), (-3.0, 1000.0), (0.0, 1e-9)]
)
def test_ticks_cover_the_range_and_rise(low: float, high: float) -> None:
    marks = charts.ticks(low, high)
    assert marks[0] <= low + 1e-9
    assert marks[-1] >= high - 1e-9
    assert 2 <= len(marks) <= 9
    assert all(later > earlier for earlier, later in pairwise(marks))


def test_calibration_has_both_axes_from_zero() -> None:
    bins = [Bin(score=0.1, rate=0.1, error=0.02, rows=9), Bin(score=0.2, rate=0.0, error=0.0, rows=9)]
    svg = charts.calibration(bins, "CTR")
    marks = re.findall(r'font-size="11">([\d.]+)<', svg)
    assert marks.count("0") == 2
    assert "mean score 0.1000, observed 0.1000 +- 0.0200, 9 candidates" in svg


@pytest.mark.slow
def test_the_page_is_a_picture_that_fills_its_width_and_hides_nothing(
    make_day: Callable[..., Any], tmp_path: Path
) -> None:
    """By Chromium: sections stand where they should, and none is wider than the page."""
    from matplotlib.image import imread

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    for run in make_day("tiny", "user_tower"):
        decide(run)
    path, picture = page.write("foodlog", DS), tmp_path / "page.png"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               f"--user-data-dir={tmp_path / 'chromium'}", "--window-size=1100,2600",
               f"--screenshot={picture}", path.as_uri()]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    dark = imread(picture)[:, :, :3].mean(axis=2) < 0.7
    assert dark.shape == (2600, 1100)
    assert not dark[:, -20:].any()  # nothing runs over the right edge
    assert not dark[:, :20].any()
    blue = np.abs(imread(picture)[:, :, :3] - np.array([0x1F, 0x6F, 0xB4]) / 255).sum(axis=2) < 0.05
    assert blue.sum() > 1000  # dots of the charts
    rows = dark.any(axis=1)
    assert np.diff(np.flatnonzero(rows[:2000])).max() < 120  # no hole where a chart should be

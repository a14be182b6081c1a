"""What a failed gate says where a person looks first: its refusal, and the page that it names."""

from pathlib import Path

import pytest

from expectations import gate
from expectations.judging.verdict import Finding, Verdict
from expectations.rules.suites import suite_of
from tests.expectations.mini import MINI

SUITE = suite_of(MINI, "events")


def _finding(rule: str, success: bool, follows: str = "") -> Finding:
    return Finding(
        rule=rule, column="click", description="clicks per view", bounds="at least 0.1", observed=0.01,
        success=success, limit="ctr", follows=follows,
    )  # fmt: skip


def _verdict(ds: str, *findings: Finding, allowed: str = "", preset: str | None = None) -> Verdict:
    success = all(finding.success for finding in findings)
    return Verdict(
        dataset="mini",
        suite="events",
        ds=ds,
        preset=preset,
        success=success,
        allowed=allowed,
        findings=findings,
    )


def test_a_refusal_is_the_first_cause_in_full_and_the_names_of_the_others() -> None:
    said = gate._told(
        SUITE,
        [
            _verdict("2026-03-01", _finding("rows", False), allowed="a holiday"),
            _verdict("2026-03-02", _finding("rows", True)),
            _verdict(
                "2026-03-03",
                _finding("drift", False, "ctr"),
                _finding("ctr", False),
                _finding("ctcvr", False),
            ),
        ],
    )
    assert said == (
        "gate events of 2026-03-03: ctr is 0.01, allowed: at least 0.1 (Limits.ctr); table events, "
        "column click: clicks per view; and 1 more: 2026-03-03/ctcvr"
    )


def test_a_verdict_names_its_newest_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    verdict = _verdict("2026-03-03", preset="tiny")
    assert verdict.page == "index.html"
    for run in ("tiny-2026-03-03/20260305T1", "tiny-2026-03-03/20260304T9", "tiny-2026-03-04/20260309T1"):
        folder = tmp_path / "data_docs" / "validations" / "mini_events" / run
        folder.mkdir(parents=True)
        (folder / "page.html").touch()
    assert verdict.page == "validations/mini_events/tiny-2026-03-03/20260305T1/page.html"

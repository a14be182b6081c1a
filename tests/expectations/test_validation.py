"""What Great Expectations makes of each rule's value, and what the data docs show."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from expectations.judging import validation
from expectations.judging.validation import NothingValidatedError, expectation_suite, validate
from expectations.rules.listing import rule_tables
from expectations.rules.rule import Fact, Rule, Suite, Trailing
from expectations.rules.suites import SUITES, suite_of
from spark_jobs.contract.datasets import DATASETS
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.kuairand import KUAIRAND
from tests.expectations.mini import LIMITS, MINI


def suite(*rules: Rule) -> Suite:
    return Suite(name="events", dataset="mini", table="events", facts=(Fact(name="rows"),), rules=rules)


ROWS = Rule(name="rows_present", column="(rows)", description="there are rows", fact="rows", low=1, high=9)


@pytest.fixture(autouse=True)
def _var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))


@pytest.mark.parametrize("name", list(SUITES))
def test_every_rule_of_every_suite_fails_outside_of_its_bounds_only(name: str) -> None:
    checked = SUITES[name](MINI, LIMITS)
    inside = {rule.name: rule.low if rule.low is not None else rule.high for rule in checked.rules}
    above = {rule.name: rule.high + 1.0 for rule in checked.rules if rule.high is not None}
    below = {rule.name: rule.low - 1.0 for rule in checked.rules if rule.low is not None}
    everything = {rule.name for rule in checked.rules}
    assert failed(checked, inside) == set()
    assert failed(checked, {**inside, **above}) == set(above)
    assert failed(checked, {**inside, **below}) == set(below)
    assert failed(checked, dict.fromkeys(everything, math.nan)) == everything
    assert failed(checked, {}) == everything


def failed(checked: Suite, values: dict[str, Any]) -> set[str]:
    judgements = validate(checked, checked.rules, values, "2026-03-02")
    assert set(judgements) == {rule.name for rule in checked.rules}
    return {rule for rule, judgement in judgements.items() if not judgement.success}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, 0.0, 9.5])
def test_unknown_and_infinite_values_fail(value: float | None) -> None:
    assert not validate(suite(ROWS), (ROWS,), {"rows_present": value}, "2026-03-02")["rows_present"].success


def test_a_value_that_was_not_measured_fails_with_an_error() -> None:
    judgement = validate(suite(ROWS), (ROWS,), {}, "2026-03-02")["rows_present"]
    assert not judgement.success
    assert "rows_present" in judgement.error


def test_no_rules_are_refused() -> None:
    with pytest.raises(NothingValidatedError, match="nothing validated"):
        expectation_suite(suite(ROWS), ())
    with pytest.raises(ValueError, match="has no rule"):
        suite()


def test_a_misspelled_suite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown suite 'sampels'.*events, samples, evaluation"):
        suite_of(FOODLOG, "sampels")


@pytest.mark.parametrize("dataset", [FOODLOG, KUAIRAND], ids=lambda dataset: dataset.name)
def test_suites_follow_from_the_declaration(dataset: Any) -> None:
    names = {rule.name for rule in suite_of(dataset, "samples").rules}
    columns = {column for feature in dataset.features for _, column in feature.columns()}
    assert {f"{column}_values" for column in columns} <= names


def result(*successes: tuple[Any, dict[str, Any] | None]) -> Any:
    results = [
        SimpleNamespace(
            success=success,
            exception_info=info,
            expectation_config=SimpleNamespace(kwargs={"column": f"rule{index}"}),
        )
        for index, (success, info) in enumerate(successes)
    ]
    return SimpleNamespace(results=results, success=all(success is True for success, _ in successes))


def test_an_exception_counts_as_failed_even_when_reported_as_success() -> None:
    rules = tuple(Rule(name=f"rule{i}", column="c", description="d", fact="rows", low=0) for i in range(4))
    raised = {"raised_exception": True, "exception_message": "no such column\ntrace"}
    found = validation._judgements(
        result((True, None), (True, raised), (None, None), (True, {"m": raised})), rules
    )
    assert [found[rule.name].success for rule in rules] == [True, False, False, False]
    assert found["rule1"].error == found["rule3"].error == "no such column"


def test_a_rule_without_a_result_is_an_error() -> None:
    rules = tuple(Rule(name=f"rule{i}", column="c", description="d", fact="rows", low=0) for i in range(2))
    with pytest.raises(NothingValidatedError, match="rule1"):
        validation._judgements(result((True, None)), rules)


def test_data_docs_show_description_and_value_and_keep_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "KEPT", 2)
    for day in ("2026-03-01", "2026-03-02", "2026-03-03"):
        validate(suite(ROWS), (ROWS,), {"rows_present": 12345.0}, day)
    docs = tmp_path / "data_docs"
    pages = sorted(docs.glob("validations/**/*.html"))
    assert [page.parts[-3] for page in pages] == ["2026-03-02", "2026-03-03"]
    assert "there are rows" in pages[-1].read_text()
    assert "12345" in pages[-1].read_text()
    index = (docs / "index.html").read_text()
    assert "2026-03-03" in index
    assert "2026-03-01" not in index
    links = [part.split('"')[0] for part in index.split('href="validations')[1:]]
    assert len(links) == 2
    for link in links:
        assert (docs / f"validations{link}").exists()
    assert index.count('class="failed"') == 2  # 12345 rows, at most 9 are allowed
    for page in docs.rglob("*.html"):  # nothing is fetched: a browser loads what is under src and link
        assert not re.search(
            r"""\ssrc=["']?(https?:)?//|<link[^>]+https?:|url\(["']?(https?:)?//""", page.read_text()
        )


def test_rules_must_bound_something() -> None:
    with pytest.raises(ValueError, match="bounds nothing"):
        Rule(name="r", column="c", description="d", fact="rows")
    with pytest.raises(ValueError, match="either"):
        Rule(name="r", column="c", description="d", low=0)
    with pytest.raises(ValueError, match="nobody measures"):
        suite(Rule(name="r", column="c", description="d", fact="gone", low=0, trailing=Trailing.RATIO))


def test_nothing_is_sent_anywhere() -> None:
    assert json.dumps(validation._config(Path("/nowhere")).analytics_enabled) == "false"


def test_the_list_of_rules_has_a_dataset_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "mini", MINI)
    text = rule_tables()
    assert all(f"### mini: {name} (" in text for name in SUITES)

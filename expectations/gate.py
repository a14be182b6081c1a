"""The gate command: checks partitions, writes verdicts and data docs, fails when a rule does not hold.

    python -m expectations.gate --dataset foodlog --suite events --ds 2026-03-01
    python -m expectations.gate --dataset foodlog --suite samples --ds 2026-03-01 2026-03-02
    python -m expectations.gate --dataset foodlog --list

A day is compared with the trailing days whose gate passed, so several days are judged in ascending order.
Rows that break a row rule go to the `quarantine` table (stage `gate_<suite>`) with the rules that they break.
An absent or empty partition fails. Messages name day, table, column, value and limit.

Prints one JSON line: `{"success", "dataset", "suite", "failed", "verdicts", "data_docs"}`. Exit code 0 when
every rule holds for every day, 1 when one does not or the gate could not be carried out, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import threading
from collections.abc import Sequence
from typing import Any

from expectations.baseline import compared, trailing_facts
from expectations.rules import Rule, Suite
from expectations.suites import SUITES, suite_of
from expectations.verdict import Finding, Verdict, write_verdict
from spark_jobs import locations
from spark_jobs.contract import Dataset, parse_day
from spark_jobs.datasets import dataset_named
from spark_jobs.deltalog import LakeError, exists, open_table
from spark_jobs.phases import reach
from spark_jobs.session import SparkUnavailableError, spark_session

LOG = logging.getLogger(__name__)
MOST_QUARANTINED = 1_000
_ALWAYS = ("schema_missing", "schema_retyped", "schema_unexpected", "rows_present")
_KEYS = {"events": ("event_id", "user_id", "time_ms"), "samples": ("user_id", "window_start_ms")}


def judge(
    suite: Suite,
    ds: str,
    facts: dict[str, Any],
    *,
    details: dict[str, str] | None = None,
    version: int | None = None,
    preset: str | None = None,
) -> Verdict:
    """Judges what was measured of one partition.

    Args:
        suite: The suite.
        ds: The day.
        facts: Fact name to value; a rule whose fact is missing fails. With `rows` 0 only presence is judged.
        details: Fact name to more in words.
        version: Version of the table.
        preset: The model's preset, for evaluations.

    Returns:
        The verdict; it is not written yet.
    """
    from expectations.validation import validate

    baseline = trailing_facts(suite.dataset, suite.name, ds, preset)
    present = facts.get("rows", 0) > 0
    values: dict[str, float | None] = {}
    rules, without = [], []
    for rule in suite.rules:
        if not present and rule.name not in _ALWAYS:
            continue
        trailing = [day[rule.fact] for day in baseline.values() if day.get(rule.fact) is not None]
        if rule.trailing is not None and not trailing:
            without.append(rule.name)
            continue
        rules.append(rule)
        values[rule.name] = _value(rule, facts, trailing)
    run = "-".join(part for part in (suite.dataset, suite.name, preset, ds) if part)
    judgements = validate(suite, tuple(rules), values, run)
    findings = []
    for rule in rules:
        judgement = judgements[rule.name]
        words = (details or {}).get(rule.fact or rule.name) or judgement.error
        if not present and rule.name == "rows_present":
            words = f"upstream day {ds} absent or empty: nothing to check"
        findings.append(Finding.of(rule, values[rule.name], judgement.success, words))
    return Verdict(
        dataset=suite.dataset,
        suite=suite.name,
        ds=ds,
        preset=preset,
        success=all(finding.success for finding in findings),
        version=version,
        baseline_days=tuple(baseline),
        without_baseline=tuple(without),
        facts=facts,
        findings=tuple(findings),
    )


def _value(rule: Rule, facts: dict[str, Any], trailing: list[Any]) -> float | None:
    """The value that a rule bounds."""
    if rule.trailing is not None:
        return compared(rule, facts.get(rule.fact), trailing)
    value = facts.get(rule.name if rule.is_row_rule else rule.fact)
    return None if value is None else float(value)


def gate_lake(dataset: Dataset, suite: Suite, days: Sequence[str]) -> list[Verdict]:
    """Checks days of a table in the lake, in ascending order, and writes their verdicts.

    Raises:
        LakeError: A table cannot be read or quarantine not written.
        SparkUnavailableError: Spark cannot be reached.
    """
    from expectations.partitions import inspect_events, inspect_samples

    importing = threading.Thread(target=_import_validation, daemon=True)
    importing.start()  # Great Expectations takes seconds to import: while Spark works
    spark = spark_session(f"gate {dataset.name} {suite.name}")
    inspect = {"events": inspect_events, "samples": inspect_samples}[suite.name]
    inspections = inspect(spark, dataset, sorted(set(days)), suite)
    reach("gate:measured")
    importing.join()
    verdicts = []
    for ds, inspection in inspections.items():
        verdict = judge(suite, ds, inspection.facts, details=inspection.details, version=inspection.version)
        reach("gate:judged")
        _quarantine(dataset, suite, ds, inspection.facts, inspection.partition_df)
        reach("gate:quarantined")
        _conclude(verdict, suite)
        verdicts.append(verdict)
    return verdicts


def _import_validation() -> None:
    import expectations.validation  # noqa: F401


def _quarantine(dataset: Dataset, suite: Suite, ds: str, facts: dict[str, Any], partition_df: Any) -> None:
    """Replaces what the gate has quarantined of a day; without broken rows only what an earlier run left."""
    from expectations.facts import broken_rows
    from spark_jobs.quarantine import as_quarantined, quarantine

    stage = f"gate_{suite.name}"
    broken = {rule.name: facts.get(rule.name) for rule in suite.row_rules if facts.get(rule.name)}
    if not broken and not _has_quarantined(dataset, ds, stage):
        return
    rows_df = broken_rows(partition_df, suite, broken, _KEYS[suite.name]).limit(MOST_QUARANTINED)
    rows_df = rows_df.selectExpr("* EXCEPT (reasons)", "array_join(reasons, ', ') AS reason")
    quarantine(as_quarantined(rows_df, suite.table), dataset.name, ds, stage, {"ds": ds, "broken": broken})
    if broken:
        LOG.warning(
            "%s %s: at most %d broken rows of %s are in quarantine, stage %s",
            dataset.name,
            ds,
            MOST_QUARANTINED,
            suite.table,
            stage,
        )


def _has_quarantined(dataset: Dataset, ds: str, stage: str) -> bool:
    uri = locations.table(dataset.name, "quarantine")
    return exists(uri) and {"ds": ds, "stage": stage} in open_table(uri).partitions()


def _conclude(verdict: Verdict, suite: Suite) -> None:
    """Writes the verdict and tells the operator."""
    path = write_verdict(verdict)
    reach("gate:verdict")
    for finding in verdict.findings:
        if not finding.success:
            LOG.error("%s", finding.message(verdict.dataset, suite.table, verdict.ds))
    if verdict.without_baseline:
        LOG.info(
            "%s %s: no trailing days yet for %d rules",
            verdict.dataset,
            verdict.ds,
            len(verdict.without_baseline),
        )
    outcome = "passed" if verdict.success else f"FAILED {len(verdict.failed)} of"
    LOG.info(
        "%s %s: suite %s %s %d rules: %s",
        verdict.dataset,
        verdict.ds,
        suite.name,
        outcome,
        len(verdict.findings),
        path,
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m expectations.gate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--suite", choices=sorted(SUITES))
    parser.add_argument("--ds", nargs="+", default=[], help="days, YYYY-MM-DD")
    parser.add_argument("--preset", help="the model's preset; suite evaluation only")
    parser.add_argument("--list", action="store_true", help="print the rules as a table and end")
    arguments = parser.parse_args(argv)
    try:
        arguments.dataset = dataset_named(arguments.dataset)
        for ds in arguments.ds:
            parse_day(ds)
    except ValueError as error:
        parser.error(str(error))
    if not arguments.list:
        if not arguments.suite or not arguments.ds:
            parser.error("give --suite and --ds: without them nothing would be validated")
        if (arguments.suite == "evaluation") != bool(arguments.preset):
            parser.error("--preset goes with --suite evaluation, and only with it")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Gates partitions. Exit code 0 all rules hold, 1 one does not or the gate failed, 2 wrong usage."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("py4j", "great_expectations"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    arguments = _arguments(argv)
    try:
        suite = suite_of(arguments.dataset, arguments.suite)
        verdicts = gate_lake(arguments.dataset, suite, arguments.ds)
    except (LakeError, SparkUnavailableError, ValueError, OSError) as error:
        LOG.error("%s", error)
        return 1
    success = bool(verdicts) and all(verdict.success for verdict in verdicts)
    result = {
        "success": success,
        "dataset": arguments.dataset.name,
        "suite": suite.name,
        "failed": [f"{verdict.ds}/{rule}" for verdict in verdicts for rule in verdict.failed],
        "verdicts": {verdict.ds: verdict.success for verdict in verdicts},
        "data_docs": str(locations.var() / "data_docs" / "index.html"),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if success else 1


if __name__ == "__main__":
    sys.exit(main())

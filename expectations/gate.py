"""The gate command: checks partitions, writes verdicts and data docs, fails when a rule does not hold.

    python -m expectations.gate --dataset foodlog --suite events --ds 2026-03-01
    python -m expectations.gate --dataset foodlog --suite samples --ds 2026-03-01 2026-03-02
    python -m expectations.gate --dataset foodlog --suite evaluation --preset tiny user_tower --ds 2026-03-02
    python -m expectations.gate --dataset foodlog --suite samples --ds 2026-03-01 --allow "a holiday"
    python -m expectations.gate --list

Later stages use what has passed, and nothing else (`spark_jobs/lake/verdicts.py`). `--allow` says why a day
that fails may be used as it is: they then take it and record the reason; `--allow ""` takes that back. A day
is compared with the trailing days whose gate passed, so several days are judged in ascending order. Rows that
break a row rule go to the `quarantine` table (stage `gate_<suite>`) with the rules that they break. An absent
or empty partition fails. Messages name day, table, column, value and limit.

Prints one JSON line: `{"success", "dataset", "suite", "failed", "allowed", "verdicts", "rules", "data_docs",
"page"}`; `rules` are how many hold, of how many. Exit code 0 when every day passes or is allowed, 1 when one
does not or the gate could not be carried out, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from expectations.judging.verdict import Verdict, keep
from expectations.rules.listing import rule_tables
from expectations.rules.rule import Suite
from expectations.rules.suites import SUITES, suite_of
from spark_jobs.contract import command, locations
from spark_jobs.contract.command import RefusedError, UsageError
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.phases import reach
from spark_jobs.lake.log import exists, open_table
from spark_jobs.lake.session import spark_session
from spark_jobs.lake.verdicts import path_of, read

logger = logging.getLogger(__name__)
MOST_QUARANTINED = 1_000
_KEYS = {"events": ("event_id", "user_id", "time_ms"), "samples": ("user_id", "window_start_ms")}


def gate_lake(dataset: Dataset, suite: Suite, days: Sequence[str], allow: str | None = None) -> list[Verdict]:
    """Checks days of a table in the lake, in ascending order, and writes their verdicts.

    Args:
        dataset: The dataset.
        suite: Its suite.
        days: The days.
        allow: Why days that fail may be used; None leaves what was said of the same rows before.

    Raises:
        LakeError: A table cannot be read or quarantine not written.
        SparkUnavailableError: Spark cannot be reached.
    """
    from expectations.measuring.partitions import inspect_events, inspect_samples
    from spark_jobs.lake.failures import spark_errors

    importing = threading.Thread(target=_import_validation, daemon=True)
    importing.start()  # Great Expectations takes seconds to import: while Spark works
    spark = spark_session(f"gate {dataset.name} {suite.name}")
    inspect = {"events": inspect_events, "samples": inspect_samples}[suite.name]
    with spark_errors(f"gate of {dataset.name} {suite.name}, days {', '.join(sorted(set(days)))}"):
        inspections = inspect(spark, dataset, sorted(set(days)), suite)
    reach("gate:measured")
    importing.join()
    from expectations.judging.judge import judge

    verdicts = []
    for ds, inspection in inspections.items():
        verdict = judge(
            suite,
            ds,
            inspection.facts,
            details=inspection.details,
            table=inspection.table,
            version=inspection.version,
        )
        reach("gate:judged")
        _quarantine(dataset, suite, ds, inspection.facts, inspection.partition_df)
        reach("gate:quarantined")
        verdicts.append(_conclude(verdict, suite, allow))
    return verdicts


def gate_evaluations(
    dataset: Dataset, suite: Suite, days: Sequence[str], presets: Sequence[str], allow: str | None = None
) -> list[Verdict]:
    """Checks the evaluations of the presets' runs and writes their verdicts; `allow` as in `gate_lake`.

    Raises:
        EvaluationUnavailableError: An evaluation is missing or damaged.
    """
    from expectations.judging.judge import judge
    from expectations.measuring.evaluations import inspect_evaluation

    verdicts = []
    for ds, preset in itertools.product(sorted(set(days)), presets):
        facts, details, there, version, digest = inspect_evaluation(dataset, preset, ds)
        verdict = judge(
            suite, ds, facts, details=details, there=there, table=digest, version=version, preset=preset
        )
        verdicts.append(_conclude(verdict, suite, allow))
    return verdicts


def _import_validation() -> None:
    import expectations.judging.validation  # noqa: F401


def _quarantine(dataset: Dataset, suite: Suite, ds: str, facts: Mapping[str, Any], partition_df: Any) -> None:
    """Replaces what the gate has quarantined of a day; without broken rows only what an earlier run left."""
    from expectations.measuring.facts import broken_rows
    from spark_jobs.lake.quarantine import as_quarantined, quarantine

    stage = f"gate_{suite.name}"
    broken = {rule.name: facts[rule.name] for rule in suite.row_rules if facts.get(rule.name)}
    if partition_df is None or not (broken or _has_quarantined(dataset, ds, stage)):
        return
    rows_df = broken_rows(partition_df, suite, broken, _KEYS[suite.name]).limit(MOST_QUARANTINED)
    rows_df = rows_df.selectExpr("* EXCEPT (reasons)", "array_join(reasons, ', ') AS reason")
    quarantine(as_quarantined(rows_df, suite.table), dataset.name, ds, stage, {"ds": ds, "broken": broken})
    if broken:
        logger.warning(
            "%s %s: the broken rows of %s, at most %d, are in quarantine, stage %s",
            dataset.name,
            ds,
            suite.table,
            MOST_QUARANTINED,
            stage,
        )


def _has_quarantined(dataset: Dataset, ds: str, stage: str) -> bool:
    uri = locations.table(dataset.name, "quarantine")
    return exists(uri) and {"ds": ds, "stage": stage} in open_table(uri).partitions()


def _conclude(verdict: Verdict, suite: Suite, allow: str | None) -> Verdict:
    """Writes the verdict, with why it is allowed where it is, and tells the operator."""
    if not verdict.success:
        verdict = replace(verdict, allowed=_allowed_before(verdict) if allow is None else allow)
    path = keep(verdict)
    reach("gate:verdict")
    for finding in verdict.findings:
        if not finding.success and not finding.follows:
            following = verdict.following(finding.rule)
            more = f"; with it do not hold: {', '.join(following)}" if following else ""
            logger.error("%s%s", finding.message(verdict.dataset, suite.table, verdict.ds), more)
    logger.info(
        "%s %s: suite %s %s: %d of %d rules hold, %d left out; %s",
        verdict.dataset,
        verdict.ds,
        suite.name,
        "passed" if verdict.success else "FAILED",
        sum(finding.success for finding in verdict.findings),
        len(verdict.findings),
        len(verdict.left_out),
        path,
    )
    if verdict.allowed:
        logger.warning(
            "%s %s: suite %s FAILED and is used nevertheless: %s",
            verdict.dataset,
            verdict.ds,
            suite.name,
            verdict.allowed,
        )
    return verdict


def _allowed_before(verdict: Verdict) -> str:
    """What an operator said of the very same rows: a task that is cleared does not take it back."""
    before = read(path_of(verdict.dataset, verdict.suite, verdict.ds, verdict.preset))
    if before is None or (before.get("table"), before.get("version")) != (verdict.table, verdict.version):
        return ""
    return str(before.get("allowed") or "")


def _run(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
    if arguments.list:
        sys.stdout.write(rule_tables())
        return None
    if not (arguments.dataset and arguments.suite and arguments.ds):
        raise UsageError("give --dataset, --suite and --ds: without them nothing would be validated")
    suite = suite_of(arguments.dataset, arguments.suite)
    if suite.name == "evaluation":
        verdicts = gate_evaluations(arguments.dataset, suite, arguments.ds, arguments.preset, arguments.allow)
    else:
        verdicts = gate_lake(arguments.dataset, suite, arguments.ds, arguments.allow)
    several = len(verdicts) > len({verdict.ds for verdict in verdicts})
    failed = [
        "/".join((verdict.ds, *([str(verdict.preset)] if several else []), rule))
        for verdict in verdicts
        for rule in verdict.failed
    ]
    success = bool(verdicts) and all(verdict.is_usable for verdict in verdicts)
    result = {
        "success": success,
        "dataset": arguments.dataset.name,
        "suite": suite.name,
        "failed": failed,
        "allowed": {verdict.ds: verdict.allowed for verdict in verdicts if verdict.allowed},
        "verdicts": {
            ds: all(verdict.success for verdict in verdicts if verdict.ds == ds)
            for ds in dict.fromkeys(verdict.ds for verdict in verdicts)
        },
        "rules": [
            sum(finding.success for verdict in verdicts for finding in verdict.findings),
            sum(len(verdict.findings) for verdict in verdicts),
        ],
        "data_docs": str(locations.var() / "data_docs" / "index.html"),
        "page": next((verdict for verdict in verdicts if not verdict.is_usable), verdicts[-1]).page,
    }
    if not success:
        raise RefusedError(_told(suite, verdicts), result)
    return result


def _told(suite: Suite, verdicts: Sequence[Verdict]) -> str:
    """The first rule that does not hold, for who looks at the failed task, and the names of the others."""
    broken = [
        (verdict, finding)
        for verdict in verdicts
        if not verdict.is_usable
        for finding in verdict.findings
        if finding.rule in verdict.failed
    ]
    (verdict, first), *others = broken
    names = ", ".join(f"{of.ds}/{finding.rule}" for of, finding in others)
    more = f"; and {len(others)} more: {names}" if others else ""
    of = f"{verdict.ds}, {verdict.preset}" if verdict.preset else verdict.ds
    # What breaks comes first: a page of logs shows the beginning of a line.
    where = f"table {suite.table}, column {first.column}: {first.description}"
    return f"gate {suite.name} of {of}: {first.rule} is {first.value}; {where}{more}"


def main(argv: Sequence[str] | None = None) -> int:
    """Gates partitions; a rule that does not hold ends with 1, see `command.run` for the other exit codes."""
    parser = command.parser("expectations.gate", __doc__)
    command.add_dataset(parser, required=False)
    parser.add_argument("--suite", choices=sorted(SUITES))
    command.add_day(parser, required=False, nargs="+", default=[], help="days, YYYY-MM-DD")
    command.add_presets(parser, help="of the runs whose evaluations are checked")
    parser.add_argument("--allow", metavar="WHY", help="why days that fail may be used as they are")
    parser.add_argument("--list", action="store_true", help="print the rules of all suites and end")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())

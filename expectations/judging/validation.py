"""Great Expectations judges a day's facts and keeps the data docs.

A day comes as one row with one column a rule, and the suite has one expectation a rule: the column's maximum
lies in the rule's bounds. That is one small pandas batch instead of a Spark job an expectation, it shows the
observed value of every rule in the data docs, and there is no value of any record in it that docs could
print. An aggregate of a null or NaN column is unknown and fails, unlike a map expectation, which would pass
it.

The data docs are a static site under `$MTGR_VAR/data_docs`; open `index.html`. They keep the last `KEPT`
validations and fetch nothing from anywhere.
"""

from __future__ import annotations

import datetime
import fcntl
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)

from expectations.judging.offline_docs import make_offline
from expectations.rules.rule import Rule, Suite
from spark_jobs.contract import locations
from spark_jobs.contract.command import CommandError

logger = logging.getLogger(__name__)
KEPT = 60


class NothingValidatedError(CommandError):
    """A validation without a result for each rule: it proves nothing, so it cannot pass."""


@dataclass(frozen=True)
class Judgement:
    """What Great Expectations says of one rule.

    Args:
        success: Whether the expectation holds; False when it raised.
        error: What it raised.
    """

    success: bool
    error: str = ""


def expectation_suite(suite: Suite, rules: tuple[Rule, ...]) -> Any:
    """The Great Expectations suite of the given rules, `<dataset>_<suite>`.

    Raises:
        NothingValidatedError: There are no rules.
    """
    if not rules:
        raise NothingValidatedError(
            f"suite {suite.name!r} of {suite.dataset!r} has no expectations: nothing validated"
        )
    expectations = [
        gxe.ExpectColumnMaxToBeBetween(
            column=rule.name,
            min_value=rule.low,
            max_value=rule.high,
            description=f"{suite.table}.{rule.column}: {rule.description}. Allowed: {rule.bounds}",
        )
        for rule in rules
    ]
    return gx.ExpectationSuite(name=f"{suite.dataset}_{suite.name}", expectations=expectations)


def validate(
    suite: Suite, rules: tuple[Rule, ...], values: Mapping[str, float | None], run: str
) -> dict[str, Judgement]:
    """Judges one day and adds the result to the data docs.

    Args:
        suite: The suite that the rules are of.
        rules: The rules to judge.
        values: Rule name to value; a rule whose value is missing fails.
        run: Name of the run in the data docs, e.g. `2026-03-01`.

    Returns:
        A judgement for every rule.

    Raises:
        NothingValidatedError: There are no rules, or not every one has a result.
    """
    expectations = expectation_suite(suite, rules)
    measured = {name: float(value) for name, value in values.items() if value is not None}
    batch_df = pd.DataFrame([measured], index=[0])
    with _locked(locations.var() / "data_docs") as folder:
        _prune(folder)
        (folder / ".suites" / f"{expectations.name}.json").unlink(missing_ok=True)
        context = gx.get_context(project_config=_config(folder))
        asset = context.data_sources.add_pandas(suite.dataset).add_dataframe_asset(f"{suite.table}-{run}")
        definition = gx.ValidationDefinition(
            name=f"{expectations.name} {run}",
            data=asset.add_batch_definition_whole_dataframe("facts"),
            suite=context.suites.add(expectations),
        )
        context.validation_definitions.add(definition)
        now = datetime.datetime.now(datetime.UTC)
        result = definition.run(
            batch_parameters={"dataframe": batch_df}, run_id=RunIdentifier(run_name=run, run_time=now)
        )
        # Only what is new, so that pages of earlier validations are not rendered again.
        newest = max(context.validation_results_store.list_keys(), key=lambda key: key.run_id.run_time)
        own = [key for key in context.expectations_store.list_keys() if key.name == expectations.name]
        context.build_data_docs(resource_identifiers=[newest, *own])
        make_offline(folder)
    return _judgements(result, rules)


def _judgements(result: Any, rules: tuple[Rule, ...]) -> dict[str, Judgement]:
    """A judgement a rule; success is nothing but True without an exception."""
    judgements = {}
    for one in result.results:
        error = _exception(one.exception_info)
        rule = one.expectation_config.kwargs["column"]
        judgements[rule] = Judgement(one.success is True and not error, error)
    lost = sorted({one.name for one in rules} - set(judgements))
    if lost or len(result.results) != len(rules):
        raise NothingValidatedError(
            f"{len(lost)} rules have no result, e.g. {lost[:3]}: the validation proves nothing"
        )
    if result.success is not True and all(judgement.success for judgement in judgements.values()):
        raise NothingValidatedError("the validation failed although each of its results succeeded")
    return judgements


def _exception(info: Mapping[str, Any] | None) -> str:
    """The message of an exception in a result, which lies flat or by metric; empty when there was none."""
    if not info:
        return ""
    if info.get("raised_exception"):
        return str(info.get("exception_message") or "exception").splitlines()[0]
    nested = [value for value in info.values() if isinstance(value, Mapping)]
    return next(filter(None, map(_exception, nested)), "")


def _config(folder: Path) -> DataContextConfig:
    """A context in memory, but for the validations and suites that the data docs show."""
    defaults = InMemoryStoreBackendDefaults()
    for store, name in (
        (defaults.validation_results_store_name, ".validations"),
        (defaults.expectations_store_name, ".suites"),
    ):
        defaults.stores[store]["store_backend"] = {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(folder / name),
            "filepath_suffix": ".json",
        }
    defaults.data_docs_sites = {
        "gates": {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder", "show_how_to_buttons": False},
        }
    }
    return DataContextConfig(
        store_backend_defaults=defaults,
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False),
    )


def _prune(folder: Path) -> None:
    """Removes the oldest validations but KEPT - 1; the index then drops their pages."""
    runs = sorted((folder / ".validations").glob("*/*/*"), key=lambda path: path.name)
    for run in runs[: max(0, len(runs) - KEPT + 1)]:
        shutil.rmtree(run)


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Excludes other gates from the site while this one writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder

"""The suites by name: what a gate of a dataset checks."""

from __future__ import annotations

from collections.abc import Callable

from expectations.rules.evaluation import evaluation_suite
from expectations.rules.events import events_suite
from expectations.rules.rule import Suite
from expectations.rules.samples import samples_suite
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.limits import Limits

SUITES: dict[str, Callable[[Dataset, Limits], Suite]] = {
    "events": events_suite,
    "samples": samples_suite,
    "evaluation": evaluation_suite,
}


def suite_of(dataset: Dataset, name: str) -> Suite:
    """The suite called `name` of a dataset.

    Raises:
        ValueError: There is no such suite.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}: nothing would be validated; known: {', '.join(SUITES)}")
    return SUITES[name](dataset, dataset.limits)

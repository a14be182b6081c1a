"""What a run has read, as MLflow shows datasets: Delta table and version, days, rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from model.registry.lineage import as_ranges
from spark_jobs.contract import locations

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

TRAINING, EVALUATION = "training", "evaluation"
_LONGEST = 200  # characters of the days in a name


def trained_on(record: Mapping[str, Any]) -> DatasetInput:
    """The days that a training read, as the last link of its lineage has them.

    Args:
        record: What `train.json` says.
    """
    link = record["lineage"][-1]
    rows = record.get("rows")  # runs of before it was counted have none
    profile = {} if rows is None else {"num_rows": sum(rows.values())}
    table = str(link.get("samples_table", ""))
    return _input(str(record["dataset"]), link["days"], table, TRAINING, profile)


def judged_on(evaluation: Mapping[str, Any]) -> DatasetInput:
    """The day that a run was judged on, as its evaluation has it."""
    days = {str(evaluation["ds"]): int(evaluation["samples_version"])}
    counted = evaluation.get("candidates")
    profile = {} if counted is None else {"num_elements": counted}  # candidates: a row holds several
    return _input(str(evaluation["dataset"]), days, "", EVALUATION, profile)


def _input(
    dataset: str, days: Mapping[str, int], table: str, context: str, profile: Mapping[str, int]
) -> DatasetInput:
    from mlflow.data.delta_dataset_source import DeltaDatasetSource
    from mlflow.entities import Dataset, DatasetInput, InputTag

    versions = sorted(set(days.values()))
    uri = locations.table(dataset, "samples")
    source = DeltaDatasetSource(path=uri, delta_table_version=versions[-1] if versions else None)
    content = json.dumps([table, sorted(days.items())])
    entry = Dataset(
        name=f"{dataset} samples {_named(days)}",
        digest=hashlib.sha256(content.encode()).hexdigest()[:8],
        source_type=source._get_source_type(),
        source=source.to_json(),
        profile=json.dumps(dict(profile)) if profile else None,
    )
    # What the source does not tell: which table, where one was made anew, and versions of days that differ.
    tags = {"mlflow.data.context": context, "days": _named(days)}
    span = "..".join(str(version) for version in dict.fromkeys(versions[:1] + versions[-1:]))
    tags |= {"versions": span, "table": table or "not recorded"}
    return DatasetInput(entry, [InputTag(key, value) for key, value in tags.items()])


def _named(days: Mapping[str, int]) -> str:
    """The days as ranges, or in short where they have many holes: MLflow bounds names and tags of inputs."""
    ranges = as_ranges(days)
    return ranges if len(ranges) <= _LONGEST else f"{len(days)} days from {min(days)} to {max(days)}"

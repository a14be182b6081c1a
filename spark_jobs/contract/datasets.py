"""The datasets that the commands know: what each declares is all that the rest of the system knows of it.

A further dataset is one file here that declares it, and one module in `spark_jobs/sources` that reads its raw
logs.
"""

from __future__ import annotations

from spark_jobs.contract.features import Dataset
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.kuairand import KUAIRAND

DATASETS = {dataset.name: dataset for dataset in (FOODLOG, KUAIRAND)}


def dataset_named(name: str) -> Dataset:
    """The dataset called `name`.

    Raises:
        ValueError: There is none.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; known: {', '.join(sorted(DATASETS))}")
    return DATASETS[name]

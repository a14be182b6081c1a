"""The datasets that the commands know: what each declares is all that the rest of the system knows of it.

A dataset is a file of this folder, `<name>.py`, with a `Dataset` of that name in it, and a module that reads
its raw logs, `spark_jobs/sources/<name>.py`. There is no list to keep: files are looked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from spark_jobs.contract.features import Dataset

_PACKAGE = __name__.rpartition(".")[0]
_SOURCES = Path(__file__).resolve().parents[1] / "sources"


def discovered(folder: Path, package: str) -> tuple[dict[str, Dataset], dict[str, str]]:
    """The datasets declared in the files of a package's folder.

    Returns:
        Datasets by name, and by file's name why a declaration is refused.
    """
    datasets, refused = {}, {}
    for name in sorted(module.name for module in pkgutil.iter_modules([str(folder)])):
        if name == __name__.rpartition(".")[2]:
            continue
        file = f"{folder.parent.name}/{folder.name}/{name}.py"
        try:
            values = vars(importlib.import_module(f"{package}.{name}")).values()
        except (ValueError, TypeError, ImportError, NameError, SyntaxError) as error:
            refused[name] = f"{file}: {error}"
            continue
        declared = [value for value in values if isinstance(value, Dataset)]
        own = [dataset for dataset in declared if dataset.name == name]
        if own:
            datasets[name] = own[0]
        elif declared:
            named = declared[-1].name
            refused[name] = (
                f"{file} declares dataset {named!r}; call the file {named}.py, or the dataset {name}"
            )
    return datasets, refused


DATASETS, _REFUSED = discovered(Path(__file__).parent, _PACKAGE)


def dataset_named(name: str) -> Dataset:
    """The dataset called `name`.

    Raises:
        ValueError: There is none, or its declaration is refused; says why.
    """
    if name in DATASETS:
        return DATASETS[name]
    if name in _REFUSED:
        raise ValueError(_REFUSED[name])
    known = ", ".join(sorted(DATASETS))
    refused = "".join(f"; refused: {reason}" for reason in _REFUSED.values())
    raise ValueError(f"unknown dataset {name!r}; known: {known}{refused}")


def require_source(dataset: Dataset, sources: Path = _SOURCES) -> None:
    """Checks that a dataset has the module that reads its raw logs, without importing Spark.

    Raises:
        ValueError: It has none.
    """
    if (
        not (sources / f"{dataset.name}.py").exists()
        and not (sources / dataset.name / "__init__.py").exists()
    ):
        raise ValueError(
            f"dataset {dataset.name!r} has no source: write spark_jobs/sources/{dataset.name}.py with "
            "read_delivery(spark, root, ds), see docs/sources.md"
        )

"""Serving packages of models that were not trained, made without a registry."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from model.config.run import Config
from model.runs.store import CONFIG, write_config
from model.serving.golden import Golden
from model.serving.package import FORMAT, Package, files_of, seal, write_parts
from spark_jobs.contract.features import Dataset


def write_package(
    folder: Path, dataset: Dataset, config: Config, weights: Mapping[str, Tensor], requests: Golden
) -> Package:
    """Writes a package, whose version is its folder's name, and loads it."""
    folder.mkdir(parents=True)
    source = folder.with_name(f".{folder.name}.config")
    source.mkdir()
    write_config(source, dataset, config)
    tables = write_parts(folder, weights, source / CONFIG, requests)
    record = {
        "format": FORMAT,
        "dataset": dataset.name,
        "version": int(folder.name),
        "preset": config.preset,
        "ds": "2026-03-02",
        "digest": f"{config.train.seed:064x}",
        "precision": config.train.precision,
        "tables": tables,
        "golden": requests.source,
        "graph": None,
        "files": files_of(folder),
    }
    seal(folder, record)
    shutil.rmtree(source)
    return Package.load(folder)

"""Serving packages of synthetic models, made without a registry."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from benchmarks.packages import write_package
from model.config.presets import preset_named
from model.data.synthetic import random_samples
from model.judging.scoring import Scorer
from model.rankers.protocol import build_ranker
from model.serving.golden import golden
from model.serving.package import Package
from spark_jobs.contract import locations


def make_package(dataset: Any, version: int, *, seed: int = 1, windows: Any = None) -> Package:
    """A package of the preset tiny with random weights and a few ids in its tables, in its place."""
    config = preset_named("tiny").sized(dataset)
    # Ids that are in no table read as training would begin them, by the run's seed.
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
    weights = build_ranker(dataset, config.model, seed).state_dict()
    generator = torch.Generator().manual_seed(seed)
    for name in [name for name in weights if name.endswith(".starts")]:
        base, num_tables = name.removesuffix("starts"), len(weights[name]) - 1
        weights[f"{base}ids"] = torch.arange(250).repeat(num_tables)
        weights[name] = torch.arange(num_tables + 1) * 250
        width = weights[f"{base}vectors"].shape[1]
        weights[f"{base}vectors"] = torch.randn(250 * num_tables, width, generator=generator)
    for name, tensor in weights.items():
        if name.endswith(("fitted_F", "std_F")):
            weights[name] = torch.ones_like(tensor)
    ranker = build_ranker(dataset, config.model, seed)
    ranker.load_state_dict(weights)
    windows = random_samples(dataset, 12, seed=seed, max_candidates=9) if windows is None else windows
    requests = golden(Scorer(dataset, config, ranker), windows, "synthetic rows")
    return write_package(folder_of(dataset, version), dataset, config, weights, requests)


def folder_of(dataset: Any, version: int) -> Path:
    return locations.serving() / dataset.name / str(version)

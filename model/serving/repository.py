"""A model repository for Triton: one model a role, each a configuration and three lines of Python.

    <folder>/<model>/config.pbtxt
    <folder>/<model>/1/scorer.py

`model.serve` writes it for the server that it starts; a stock Triton with its Python backend reads it as well
(docs/serving.md). What is loaded is the package that the role's link names, see `holder`: the repository has
no weights and does not change with them.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.serving.scorers import DEFAULT, EngineOptions

# `model.py`, Triton's own name for it, would be imported as the package `model`.
_FILE = "scorer.py"
_CODE = """import sys

sys.path[:0] = {path!r}
from model.serving.backend import TritonPythonModel
"""
_CONFIG = """name: {name}
backend: "python"
default_model_filename: "{file}"
max_batch_size: {max_batch}
input [
  {{ name: "row" data_type: TYPE_INT64 dims: [ -1 ] allow_ragged_batch: true }},
  {{ name: "ids" data_type: TYPE_INT64 dims: [ -1 ] allow_ragged_batch: true }},
  {{ name: "numbers" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }}
]
output [
  {{ name: "scores" data_type: TYPE_FP32 dims: [ 2, -1 ] }},
  {{ name: "version" data_type: TYPE_INT64 dims: [ 1 ] }}
]
instance_group [ {{ count: {instances} kind: KIND_CPU }} ]
parameters: {{ key: "options" value: {{ string_value: {options} }} }}
"""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How one model is served.

    Args:
        link: The role's symlink to a package.
        log: Folder of the log of scores; None: none is written.
        instances: Processes that score side by side.
        max_batch: Greatest number of requests of a batch.
        batch_tokens: Greatest number of tokens that are computed at once.
        engine: How a GPU computes.
    """

    link: Path
    log: Path | None
    instances: int
    max_batch: int = 32
    batch_tokens: int = 20_000
    engine: EngineOptions = DEFAULT


def write_repository(folder: Path, models: dict[str, ModelOptions]) -> None:
    """Writes the repository of the given models, in the place of any other."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, options in models.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / _FILE).write_text(_CODE.format(path=[p for p in sys.path if p]))
        (folder / name / "config.pbtxt").write_text(_config(name, options))


def _config(name: str, options: ModelOptions) -> str:
    given: dict[str, Any] = {
        "link": str(options.link),
        "log": str(options.log or ""),
        "batch_tokens": options.batch_tokens,
        "max_batch": options.max_batch,
        "engine": dataclasses.asdict(options.engine),
    }
    return _CONFIG.format(
        name=json.dumps(name),
        file=_FILE,
        max_batch=options.max_batch,
        instances=options.instances,
        options=json.dumps(json.dumps(given)),
    )

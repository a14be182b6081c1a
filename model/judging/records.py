"""Records beside a run that are written once: a repeat is a new file beside the first, numbered and labelled.

`evaluation.json` is the first, `evaluation-2.json` the next, and so on; the same for `promotion.json`. The
newest evaluation is what is gated, registered and decided upon. The decision is taken once: `promotion.json`
is the one that counts, a later one only says what the rules would say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.runs.files import write_text

EVALUATION, PROMOTION = "evaluation", "promotion"


def path_of(folder: Path, name: str, number: int = 1) -> Path:
    """Where the n-th record of a name lies."""
    return folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")


def records(folder: Path, name: str) -> list[Path]:
    """The records of a name, oldest first."""
    paths: list[Path] = []
    while (path := path_of(folder, name, len(paths) + 1)).exists():
        paths.append(path)
    return paths


def newest(folder: Path, name: str) -> Path:
    """The newest record of a name, or where the first would lie."""
    return [path_of(folder, name), *records(folder, name)][-1]


def scores_of(evaluation: Path, who: str) -> Path:
    """The score file of `candidate` or `champion` that belongs to an evaluation."""
    number = evaluation.stem.removeprefix(EVALUATION)
    return evaluation.with_name(f"scores_{who}{number}.parquet")


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record whole.

    Raises:
        ValueError: It is there already, or a number in it is not finite.
    """
    if path.exists():
        raise ValueError(f"{path} is written already; a repeat is a record of its own")
    write_text(path, as_json(record))


def as_json(record: Mapping[str, Any]) -> str:
    """A record as its file has it.

    Raises:
        ValueError: A number in it is not finite.
    """
    return json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n"

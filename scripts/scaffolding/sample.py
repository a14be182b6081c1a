"""A sample of logs: which logs there are, where a day's lie, and their columns and types."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark_jobs.contract.command import CommandError

_DAY = re.compile(r"(\d{4})(-?)(\d{2})\2(\d{2})(?!\d)")
_ENDINGS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet"}
_FILES, _LINES = 3, 10_000  # so many files of a log, and lines of each, are looked at
_NEARLY = 0.95  # as ingest: more broken records than one in twenty are no delivery
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class Log:
    """One log of the sample.

    Args:
        name: A name for it, from its files.
        form: `csv`, `json` (lines) or `parquet`.
        path: Where a day's lies below the root, with `{ds}` or `{nodash}` for the day; a file or a folder.
        columns: Column to Spark SQL type, in the files' order.
        left_out: Column to its type, of columns that hold lists or records.
        day: A day that the sample has of it; empty where no path says one.
        size: Bytes of its files.
    """

    name: str
    form: str
    path: str
    columns: Mapping[str, str]
    left_out: Mapping[str, str]
    day: str
    size: int


def logs_in(root: Path) -> list[Log]:
    """The logs below a folder, largest first.

    Raises:
        CommandError: There is none, a file cannot be read, or a column's name is none in SQL.
    """
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and _form(path):
            groups.setdefault((_place(path.relative_to(root)), _form(path)), []).append(path)
    if not groups:
        raise CommandError(f"{root} has no file that ends in {', '.join(_ENDINGS)} (or that and .gz)")
    logs = [_log(root, place, form, paths) for (place, form), paths in groups.items()]
    names = [log.name for log in logs]
    if len(set(names)) < len(names):
        twice = sorted({f"{log.path} ({log.form})" for log in logs if names.count(log.name) > 1})
        raise CommandError(
            f"{root}: {' and '.join(twice)} would be logs of one name: rename a file or folder"
        )
    return sorted(logs, key=lambda log: -log.size)


def _form(path: Path) -> str:
    return _ENDINGS.get(Path(path.name.removesuffix(".gz")).suffix, "")


def _with_day(text: str) -> tuple[str, str]:
    """A path with the day's place instead of a day, and the day."""
    match = _DAY.search(text)
    if not match:
        return text, ""
    year, dash, month, day = match.groups()
    return _DAY.sub("{ds}" if dash else "{nodash}", text), f"{year}-{month}-{day}"


def _place(path: Path) -> str:
    """Where a log's files of a day lie: a file, files that are numbered, or a folder of parts."""
    place = _with_day(path.as_posix())[0]
    folder, _, name = place.rpartition("/")
    if name.startswith("part-"):
        return folder
    return f"{folder}/{re.sub(r'[0-9]+(?=[.])', '*', name)}".removeprefix("/")


def _log(root: Path, place: str, form: str, paths: Sequence[Path]) -> Log:
    kinds: dict[str, str] = {}
    for path in paths[:_FILES]:
        kinds = _columns(path) | kinds
    parts = [re.sub(r"\w+=|\{\w+\}|\.[a-z.]+$|\*", "", part).strip("._-") for part in place.split("/")]
    is_flat = {column: not kind.startswith(("array", "struct")) for column, kind in kinds.items()}
    return Log(
        name=re.sub(r"\W+", "_", next((part for part in reversed(parts) if part), "log").lower()),
        form=form,
        path=place,
        columns={column: kind for column, kind in kinds.items() if is_flat[column]},
        left_out={column: kind for column, kind in kinds.items() if not is_flat[column]},
        day=_with_day(paths[0].relative_to(root).as_posix())[1],
        size=sum(path.stat().st_size for path in paths),
    )


def _columns(path: Path) -> dict[str, str]:
    """Columns of a file with their Spark SQL types."""
    try:
        kinds = _parquet_columns(path) if _form(path) == "parquet" else _text_columns(path)
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} cannot be read as {_form(path)}: {error}") from error
    for name in kinds:
        if not _NAME.fullmatch(name):
            raise CommandError(
                f"{path}: column {name!r} is no name in SQL: rename it where the log is written"
            )
    return kinds


def _parquet_columns(path: Path) -> dict[str, str]:
    from pyarrow import parquet, types

    kinds: dict[str, str] = {}
    for field in parquet.read_schema(path):
        is_kind = {
            "bigint": types.is_integer,
            "double": lambda kind: types.is_floating(kind) or types.is_decimal(kind),
            "boolean": types.is_boolean,
            "timestamp": types.is_timestamp,
            "date": types.is_date,
            "array": lambda kind: types.is_list(kind) or types.is_large_list(kind),
            "struct": lambda kind: types.is_struct(kind) or types.is_map(kind),
        }
        kinds[field.name] = next((kind for kind, holds in is_kind.items() if holds(field.type)), "string")
    return kinds


def _text_columns(path: Path) -> dict[str, str]:
    """Of CSV and JSON lines; lines that are broken, as some are in every log, have no say."""
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        lines = [line.decode(errors="replace") for line in itertools.islice(file, _LINES)]
    rows: Iterable[Mapping[str, Any]] = csv.DictReader(lines) if _form(path) == "csv" else _objects(lines)
    seen: dict[str, Counter[str]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(name, str):  # what a CSV line has beyond its header has no name
                seen.setdefault(name, Counter())[_kind(value)] += 1
    if not seen:
        raise ValueError("none of its lines can be")
    return {name: _most(kinds) for name, kinds in seen.items()}


def _objects(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _kind(value: Any) -> str:
    """The type of a value; of a CSV's text that of the number in it. None and an empty text have none."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (list, dict)):
        return "array" if isinstance(value, list) else "struct"
    if isinstance(value, float) or (
        isinstance(value, str) and re.fullmatch(r"-?\d+\.\d*([eE]-?\d+)?", value)
    ):
        return "double"
    if isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value)):
        return "bigint"
    return "string"


def _most(kinds: Mapping[str, int]) -> str:
    """The type that nearly all values have."""
    total = sum(number for kind, number in kinds.items() if kind)
    for wanted in (("bigint",), ("bigint", "double"), ("boolean",), ("array",), ("struct",)):
        if total and sum(kinds.get(kind, 0) for kind in wanted) >= _NEARLY * total:
            return wanted[-1]
    return "string"

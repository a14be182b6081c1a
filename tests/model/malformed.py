"""Requests that are not right, drawn from a declaration: each with the field that its refusal has to name."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.serving import kserve
from spark_jobs.contract.features import Dataset, Group, Kind

SEQUENCES = (Group.STATIC, Group.REALTIME, Group.CANDIDATE)


@dataclass(frozen=True)
class Case:
    body: Any
    field: str
    length: str | None = None


def _outside(feature: Any, rng: np.random.Generator) -> Any:
    """A value that the declaration of a feature does not allow."""
    if feature.kind is Kind.ID:
        return rng.choice(np.array([-1, 2**63 - 1])).item()
    if feature.kind is Kind.CATEGORY:
        return [-1, feature.cardinality, feature.cardinality + 7, 2**40][rng.integers(4)]
    over = feature.high + max(1.0, abs(feature.high) * 1e-3)
    return [over, feature.low - 1.0, float("nan"), float("inf"), 1e300][rng.integers(5)]


def _wrong(rng: np.random.Generator) -> Any:
    """What is neither an integer nor a number."""
    return [None, "7", "", True, [], {}, [1], {"a": 1}][rng.integers(8)]


def malformed_rows(
    dataset: Dataset, rows: Sequence[dict[str, Any]], rng: np.random.Generator, number: int
) -> Iterator[Case]:
    """Rows with one fault each: values, types, lengths, columns, times, counts, and bodies without a row."""
    for at in range(number):
        row = copy.deepcopy(rows[at % len(rows)])
        group = list(Group)[rng.integers(4)]
        feature = dataset.in_group(group)[rng.integers(len(dataset.in_group(group)))]
        column = f"{group}_{feature.name}"
        kind = at % 9
        if kind <= 1:  # a value outside of the declaration, or of another type
            value = _outside(feature, rng) if kind == 0 else _wrong(rng)
            if group is Group.PROFILE:
                row[column] = value
            else:
                row[column][rng.integers(len(row[column]))] = value
        elif kind == 2:
            del row[column]
        elif kind == 3:
            row[column] = _wrong(rng) if group is Group.PROFILE else [None, 7, "x", {}, True][rng.integers(5)]
        elif kind == 4:  # a list that is longer or shorter than its group
            group = SEQUENCES[rng.integers(3)]
            feature = dataset.in_group(group)[rng.integers(len(dataset.in_group(group)))]
            column = f"{group}_{feature.name}"
            values = row[column]
            row[column] = values + values[:1] if rng.random() < 0.5 else values[:-1]
        elif kind == 5:
            group = (Group.STATIC, Group.REALTIME)[rng.integers(2)]
            column = f"{group}_time_ms"
            shift = -1 if group is Group.REALTIME else 0
            row[column][-1] = row["window_start_ms"] + shift
            if group is Group.REALTIME:
                row[column] = [row["window_start_ms"] - 1] * len(row[column])
        elif kind == 6:
            group = (Group.REALTIME, Group.CANDIDATE)[rng.integers(2)]
            column = f"{group}_visible"
            row[column][0] = [-1, len(row["realtime_time_ms"]) + 1, 2**32][rng.integers(3)]
        elif kind == 7:
            column = f"column_{rng.integers(1000)}"
            row[column] = 1
        else:
            bodies = ["", "{", "[1, 2]", "null", "7", '"row"', "{]", "[" * 3000, "\x00\x01", "nan"]
            yield Case(body=bodies[rng.integers(len(bodies))], field="body")
            continue
        yield Case(body=row, field=column)


def malformed_tensors(tensors: Mapping[str, Any], rng: np.random.Generator, number: int) -> Iterator[Case]:
    """Bodies of the binary protocol with one fault each."""
    whole, length = kserve.encode(tensors)
    for at in range(number):
        name = list(tensors)[rng.integers(3)]
        changed = dict(tensors)
        kind = at % 7
        if kind == 0:
            del changed[name]
        elif kind == 1:
            changed[name] = tensors[name].astype(np.int32)
        elif kind == 2:
            name = ("ids", "numbers")[rng.integers(2)]
            changed[name] = tensors[name][:, : -1 - rng.integers(3)]
        elif kind == 3:
            name, row = "row", tensors["row"].copy()
            row[0, 2 + rng.integers(3)] = [-1, 2**40, 100_000][rng.integers(3)]
            changed["row"] = row
        elif kind == 4:
            yield Case(body=whole[: length + rng.integers(16)], field="tensor", length=str(length))
            continue
        elif kind == 5:
            wrong = [None, "x", "-1", "0", str(len(whole) + 1), str(length - 1)][rng.integers(6)]
            field = "JSON" if wrong == str(length - 1) else kserve.LENGTH_HEADER
            yield Case(body=whole, field=field, length=wrong)
            continue
        else:
            header = json.loads(whole[:length])
            described = header["inputs"][rng.integers(3)]
            name = described["name"]
            part, value = [
                ("datatype", "FP64"), ("shape", [-1]), ("shape", "x"), ("shape", [2**31]),
                ("parameters", None),
                ("parameters", {"binary_data_size": 3}), ("shape", [True]),
            ][rng.integers(7)]  # fmt: skip
            described[part] = value
            front = json.dumps(header).encode()
            yield Case(body=front + whole[length:], field=name, length=str(len(front)))
            continue
        body, size = kserve.encode(changed)
        yield Case(body=body, field=name, length=str(size))

"""A declaration as JSON, and what tells two declarations apart for a model that was made with one of them.

A run keeps the declaration that it was made with. Today's may differ: some changes alter nothing that a model
reads (a description, a wider range), others make the rows of today unreadable for it or another model of it.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

from spark_jobs.contract.features import Dataset, FeatureSpec, Kind

# What of a dataset a run keeps: the rest is of the pipeline that makes its rows.
_KEPT = (
    "name",
    "features",
    "actions",
    "conversion",
    "utc_offset_hours",
    "attribution_ms",
    "has_requests",
    "has_weights",
)
_READ_BY_MODELS = ("actions", "utc_offset_hours")
_LEARNED_BY_MODELS = ("attribution_ms", "has_weights")
_NOT_READ = ("description", "low", "high")  # but for what `_meaning` takes of the range


def to_dict(dataset: Dataset) -> dict[str, Any]:
    """A declaration as values that JSON has; no default is left out, as defaults may change."""
    return {name: _plain(getattr(dataset, name)) for name in _KEPT}


def from_dict(values: Mapping[str, Any]) -> Dataset:
    """Reads what `to_dict` wrote.

    Raises:
        ValueError: A field is missing, unknown or wrong; the message names it.
    """
    dataset = _read(Dataset, values, "declaration")
    assert isinstance(dataset, Dataset)
    return dataset


def differences(own: Dataset, other: Dataset) -> tuple[str, ...]:
    """What a model learns in another way from rows of `other` than from its own; empty when it can go on.

    Args:
        own: What a model was made with.
        other: What rows are made with now.
    """
    old, new = ([feature.name for feature in dataset.features] for dataset in (own, other))
    added = [f"feature {name} is new" for name in new if name not in old]
    order = [name for name in old if name in new] != [name for name in new if name in old]
    return (
        *unreadable(own, other),
        *added,
        *_changes(own, other, _LEARNED_BY_MODELS),
        *(["the features are in another order"] if order else []),
    )


def unreadable(own: Dataset, other: Dataset) -> tuple[str, ...]:
    """Why a model that was made with `own` cannot score rows made with `other`; empty when it can.

    Features that it does not know are left out by it, and their order is its own.
    """
    present = {feature.name: feature for feature in other.features}
    reasons = []
    for feature in own.features:
        now = present.get(feature.name)
        if now is None:
            reasons.append(f"feature {feature.name} is no longer declared")
        elif _meaning(now) != _meaning(feature):
            before, after = _meaning(feature), _meaning(now)
            keys = [key for key in after if before.get(key) != after[key]]
            what = ", ".join(f"{key} {before.get(key)!r} -> {after[key]!r}" for key in keys)
            reasons.append(f"feature {feature.name} means something else now ({what})")
    return (*reasons, *_changes(own, other, _READ_BY_MODELS))


def with_ranges_of(own: Dataset, other: Dataset) -> Dataset:
    """`own` with the ranges that `other` allows numbers: a wider range is no reason to refuse a row."""
    ranges = {feature.name: (feature.low, feature.high) for feature in other.features}
    features = []
    for feature in own.features:
        low, high = ranges.get(feature.name, (feature.low, feature.high))
        is_number = feature.kind is Kind.NUMBER
        features.append(dataclasses.replace(feature, low=low, high=high) if is_number else feature)
    return dataclasses.replace(own, features=tuple(features))


def _meaning(feature: FeatureSpec) -> dict[str, Any]:
    """A feature but for what no model reads; of the range, whether numbers may be negative, and unknown's."""
    values = {key: value for key, value in _plain(feature).items() if key not in _NOT_READ}
    nearest_zero = min(max(0.0, feature.low), feature.high)
    return values | {"may be negative": feature.low < 0, "nearest to zero": nearest_zero}


def _changes(own: Dataset, other: Dataset, fields: tuple[str, ...]) -> tuple[str, ...]:
    pairs = ((field, getattr(own, field), getattr(other, field)) for field in fields)
    return tuple(f"{field} was {old!r} and is {new!r}" for field, old, new in pairs if old != new)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _read(kind: Any, value: Any, place: str) -> Any:
    """A value of the type `kind` from what JSON has of it."""
    if get_origin(kind) is types.UnionType:
        if value is None:
            return None
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{place} is {value!r}; a list is expected")
        return tuple(_read(get_args(kind)[0], item, f"{place}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, Mapping) or not set(value) <= set(hints):
            raise ValueError(f"{place} is {value!r}; fields are {', '.join(hints)}")
        try:
            return kind(  # type: ignore[operator]
                **{name: _read(hints[name], part, f"{place}.{name}") for name, part in value.items()}
            )
        except TypeError as error:
            raise ValueError(f"{place}: {error}") from error
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if not isinstance(value, int | float if kind is float else kind):
        raise ValueError(f"{place} is {value!r}; {kind.__name__} is expected")
    return value

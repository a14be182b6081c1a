"""A request: a row of the samples table with one request's candidates, as JSON or as three tensors.

    form = RequestForm(dataset)
    rows = form.of_json(body)                      # people: an object, a list a column of a sequence
    rows = form.of_tensors(form.tensors_of(rows))  # machines: `row`, `ids`, `numbers`

| tensor | type, shape | holds |
|---|---|---|
| `row` | int64 `[1, 5]` | `user_id`, `window_start_ms`, how many static and real-time behaviours and candidates |
| `ids` | int64 `[1, n]` | group after group (profile, static, realtime, candidate), column after column, token after token: ids and categories in declared order, then `time_ms` of behaviours, then `visible` |
| `numbers` | float32 `[1, m]` | the same of numbers, as stored: training transforms them, and so does serving |

Three tensors, not one a column. `ds`, `window_end_ms`, labels, times and ids of candidates are not read, and may
be missing from JSON.
"""  # noqa: E501 - a table

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from model.data.encoder import SampleEncoder
from model.data.stored import BEHAVIOURS, COUNTED, Array, Columns, StoredRows, as_counts
from spark_jobs.contract.features import Dataset, Group
from spark_jobs.contract.tables import sample_columns

SEQUENCES = (Group.STATIC, Group.REALTIME, Group.CANDIDATE)
ROW, IDS, NUMBERS = "row", "ids", "numbers"
DTYPES: dict[str, Any] = {ROW: np.int64, IDS: np.int64, NUMBERS: np.float32}
MAX_CANDIDATES = 5_000
_ROW_COLUMNS = ("user_id", "window_start_ms", *(f"number of {group} tokens" for group in SEQUENCES))


class RequestError(ValueError):
    """A request is not right; the message names the field and the rule."""


def is_id(value: Any) -> bool:
    """Whether a value of JSON is an integer of 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63


def integer_of(values: Mapping[str, Any], name: str) -> int:
    """An integer that there has to be.

    Raises:
        RequestError: It is missing, or something else.
    """
    value = values.get(name)
    if not is_id(value) or not isinstance(value, int):
        raise RequestError(f"{name} is {value!r}; there has to be an integer of 64 bits")
    return value


def json_object(body: bytes | str) -> dict[str, Any]:
    """The object that a body is.

    Raises:
        RequestError: It is something else.
    """
    try:
        row = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise RequestError(f"the body is a {type(row).__name__}, not an object: send a row of samples")
    return row


class RequestForm:
    """What requests of a dataset look like.

    Args:
        dataset: As the model's run declared it.
        max_static: How many of the latest static behaviours the model reads.
    """

    def __init__(self, dataset: Dataset, max_static: int = 1000) -> None:
        self.dataset = dataset
        self.encoder = SampleEncoder(dataset, max_static)
        self._columns = Columns.of(dataset)
        self._known = {name for name, _ in sample_columns(dataset)}
        self._of_ids = {g: len(self._columns.ids[g]) + (g in BEHAVIOURS) + (g in COUNTED) for g in Group}
        self._num_profile = len(dataset.in_group(Group.PROFILE))
        self._of_numbers = {g: len(self._columns.numbers[g]) for g in Group}

    def of_json(self, body: bytes | str) -> StoredRows:
        """The row that a JSON object holds.

        Raises:
            RequestError: It is no object, lacks a column, has one that there is not, or a value does not fit.
        """
        return self.of_row(json_object(body))

    def of_row(self, row: Mapping[str, Any]) -> StoredRows:
        """The row that a dictionary holds; see `of_json`."""
        if unknown := sorted(set(row) - self._known):
            raise RequestError(f"{unknown[0]!r} is no column of the samples of {self.dataset.name}")
        lengths: dict[Group, int] = {Group.PROFILE: 1}
        for group in SEQUENCES:
            name = self._columns.length_of(group)
            value = self._value(row, name)
            if not isinstance(value, list):
                raise RequestError(f"column {name} is {_shown(value)}; it must be a list")
            lengths[group] = len(value)
        _check_candidates(lengths[Group.CANDIDATE])

        def vector(name: str, group: Group, dtype: Any) -> Array:
            value = self._value(row, name)
            return _array(name, [value] if group is Group.PROFILE else value, lengths[group], group, dtype)

        def matrix(names: Sequence[str], group: Group, dtype: Any) -> Array:
            values = np.empty((len(names), lengths[group]), dtype)
            for of_column, name in zip(values, names, strict=True):
                of_column[:] = vector(name, group, dtype)
            return values

        columns = self._columns
        return StoredRows(
            users=vector("user_id", Group.PROFILE, np.int64),
            starts=vector("window_start_ms", Group.PROFILE, np.int64),
            lengths={group: np.array([lengths[group]]) for group in SEQUENCES},
            ids={group: matrix(names, group, np.int64) for group, names in columns.ids.items()},
            numbers={group: matrix(names, group, np.float32) for group, names in columns.numbers.items()},
            times={group: vector(name, group, np.int64) for group, name in columns.times.items()},
            visible={g: as_counts(vector(name, g, np.int64)) for g, name in columns.visible.items()},
            labels=np.zeros((2, lengths[Group.CANDIDATE]), np.float32),
        )

    def _value(self, row: Mapping[str, Any], name: str) -> Any:
        try:
            return row[name]
        except KeyError:
            raise RequestError(f"column {name} is missing; send a row of samples") from None

    def tensors_of(self, rows: StoredRows) -> dict[str, Array]:
        """One row as its tensors; the inverse of `of_tensors`."""
        if rows.num_rows != 1:
            raise ValueError(f"a request is one row, these are {rows.num_rows}")
        lengths = [int(rows.lengths[group][0]) for group in SEQUENCES]
        ids = [part.reshape(-1) for group in Group for part in self._ids_of(rows, group)]
        numbers = [rows.numbers[group].reshape(-1) for group in Group]
        return {
            ROW: np.array([[int(rows.users[0]), int(rows.starts[0]), *lengths]], np.int64),
            IDS: np.concatenate(ids).astype(np.int64)[None],
            NUMBERS: np.concatenate(numbers)[None],
        }

    @staticmethod
    def _ids_of(rows: StoredRows, group: Group) -> Iterator[Array]:
        yield rows.ids[group]
        if group in BEHAVIOURS:
            yield rows.times[group]
        if group in COUNTED:
            yield rows.visible[group]

    def of_tensors(self, tensors: Mapping[str, Array]) -> StoredRows:
        """The row that tensors hold, in memory of its own.

        Raises:
            RequestError: A tensor is missing or has another type or size than the lengths in `row` say.
        """
        user, start, counts = self.check(tensors)
        tokens = {Group.PROFILE: 1, **dict(zip(SEQUENCES, counts, strict=True))}
        ids = self._split(tensors, IDS, self._of_ids, tokens)
        numbers = self._split(tensors, NUMBERS, self._of_numbers, tokens)
        num_ids = {group: len(names) for group, names in self._columns.ids.items()}
        return StoredRows(
            users=np.array([user]),
            starts=np.array([start]),
            lengths={g: np.array([count]) for g, count in zip(SEQUENCES, counts, strict=True)},
            ids={group: ids[group][: num_ids[group]] for group in Group},
            numbers=numbers,
            times={group: ids[group][num_ids[group]] for group in BEHAVIOURS},
            visible={group: as_counts(ids[group][-1]) for group in COUNTED},
            labels=np.zeros((2, counts[-1]), np.float32),
        )

    @staticmethod
    def joined(requests: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """Tensors of several requests end to end: the inverse of `split`."""
        return {name: np.concatenate([one[name] for one in requests], axis=1) for name in DTYPES}

    def split(self, tensors: Mapping[str, Array]) -> list[Mapping[str, Array]]:
        """Views of each of the requests whose tensors lie end to end; of one alone, its own.

        Raises:
            RequestError: They have other sizes than all lengths in `row` say.
        """
        rows = self._tensor(tensors, ROW)
        if len(rows) <= len(_ROW_COLUMNS):
            return [tensors]
        if len(rows) % len(_ROW_COLUMNS):
            raise RequestError(
                f"tensor row has {len(rows)} values, a request needs {len(_ROW_COLUMNS)} of them"
            )
        requests: list[dict[str, Array]] = [{ROW: row} for row in rows.reshape(-1, len(_ROW_COLUMNS))]
        for name, per_token in ((IDS, self._of_ids), (NUMBERS, self._of_numbers)):
            values, first = self._tensor(tensors, name), 0
            for request in requests:
                counts = dict(zip(SEQUENCES, request[ROW][2:].tolist(), strict=True))
                end = first + sum(per_token[g] * counts.get(g, 1) for g in Group)
                request[name] = values[first:end]
                first = end
            if first != len(values):
                raise RequestError(f"tensor {name} has {len(values)} values, its requests need {first}")
        return list(requests)

    def num_tokens(self, tensors: Mapping[str, Array]) -> int:
        """Tokens of a request that was checked."""
        return int(tensors[ROW].reshape(-1)[2:].sum()) + self._num_profile

    def check(self, tensors: Mapping[str, Array]) -> tuple[int, int, list[int]]:
        """User, window's start and lengths of the sequences of tensors that have the right types and sizes.

        Raises:
            RequestError: See `of_tensors`.
        """
        row = self._tensor(tensors, ROW)
        if len(row) != len(_ROW_COLUMNS):
            raise RequestError(f"tensor row has {len(row)} values, it needs {len(_ROW_COLUMNS)}: "
                               f"{', '.join(_ROW_COLUMNS)}")  # fmt: skip
        user, start, *counts = row.tolist()
        for group, count in zip(SEQUENCES, counts, strict=True):
            if not 0 <= count <= max(MAX_CANDIDATES, self.encoder.limits.get(group, 0)):
                raise RequestError(f"tensor row: {count} is no number of {group} tokens")
        _check_candidates(counts[-1])
        tokens = {Group.PROFILE: 1, **dict(zip(SEQUENCES, counts, strict=True))}
        for name, rows in ((IDS, self._of_ids), (NUMBERS, self._of_numbers)):
            size, needed = len(self._tensor(tensors, name)), sum(rows[g] * tokens[g] for g in Group)
            if size != needed:
                told = ", ".join(f"{rows[group]} x {tokens[group]} {group}" for group in Group)
                raise RequestError(
                    f"tensor {name} has {size} values, by the lengths in `row` it needs {needed}: {told}"
                )
        return user, start, counts

    @staticmethod
    def _tensor(tensors: Mapping[str, Array], name: str) -> Array:
        if name not in tensors:
            raise RequestError(f"tensor {name} is missing; send {', '.join(DTYPES)}")
        tensor = tensors[name]
        if tensor.dtype != DTYPES[name]:
            raise RequestError(f"tensor {name} is {tensor.dtype}, it must be {np.dtype(DTYPES[name])}")
        return tensor.reshape(-1)

    def _split(
        self, tensors: Mapping[str, Array], name: str, rows: Mapping[Group, int], tokens: Mapping[Group, int]
    ) -> dict[Group, Array]:
        values = self._tensor(tensors, name).copy()
        parts, first = {}, 0
        for group in Group:
            end = first + rows[group] * tokens[group]
            parts[group] = values[first:end].reshape(rows[group], tokens[group])
            first = end
        return parts


def _check_candidates(number: int) -> None:
    if number > MAX_CANDIDATES:
        raise RequestError(f"the request has {number} candidates; at most {MAX_CANDIDATES} are allowed")


def _array(name: str, values: Any, length: int, group: Group, dtype: Any) -> Array:
    """The values of a column: integers are no booleans, no text and never what a number was cut to."""
    if not isinstance(values, list):
        raise RequestError(f"column {name} is {_shown(values)}; it must be a list")
    if len(values) != length:
        raise RequestError(f"column {name} has {len(values)} values, where the group {group} has {length}")
    allowed = {int} if dtype is np.int64 else {int, float}
    if not set(map(type, values)) <= allowed:
        wrong = next(value for value in values if type(value) not in allowed)
        wanted = "an integer" if dtype is np.int64 else "a number"
        raise RequestError(f"column {name}: {_shown(wrong)} is not {wanted}")
    try:
        with np.errstate(over="ignore"):  # to infinity, which is refused as such
            return (
                np.array(values, np.float64).astype(dtype) if dtype is np.float32 else np.array(values, dtype)
            )
    except OverflowError:
        raise RequestError(f"column {name} has an integer of more than 64 bits") from None


def _shown(value: Any) -> str:
    """A value in JSON, cut short."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."

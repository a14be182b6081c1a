"""What a request does not carry: looked up by user and item in a store that is published for the day.

    write_store(dataset, "2026-03-04")                     # the table `lookups` -> one file, then its link
    row = Lookups(dataset, path).complete(request)         # a row of samples

The store is LMDB: one file, mapped into memory, read by any number of processes without a lock, written
beside its place and renamed. A request has `user_id`, `time_ms`, `candidate_item_id`, the context of each
candidate, and of today what it knows: `realtime_*` and the statistics of today. `hour`, `weekday` and the
window's start follow from `time_ms` in the dataset's clock. What a request has itself is never looked up.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from model.data.stored import Array, id_features, number_features
from model.runs.files import RunError, sync_folder
from model.serving import so_far
from model.serving.request import RequestError, integer_of, is_id
from model.serving.today import Event, Today
from spark_jobs.contract import locations
from spark_jobs.contract.clock import DAY_MS, clock_features
from spark_jobs.contract.features import Dataset, FeatureSpec, Group, Kind, Owner

logger = logging.getLogger(__name__)

LINK = "lookups"
_KEPT = 2  # stores: a reader may be about to open the one that was named a moment ago
_DAY = b"day"
_Values = tuple[Array, Array]  # ids, numbers


class Lookups:
    """A store of one day.

    Args:
        dataset: As the model's run declared it.
        path: The store's file, or a link to it.

    Raises:
        RunError: It cannot be read.
    """

    def __init__(self, dataset: Dataset, path: Path) -> None:
        self._dataset = dataset
        try:
            self._store = lmdb.open(str(path.resolve()), readonly=True, lock=False, subdir=False)
        except lmdb.Error as error:
            raise RunError(f"the lookups {path} cannot be read: {error}; publish them again") from error
        self._read = self._store.begin(buffers=True)
        self.day = bytes(self._read.get(_DAY, b"")).decode()
        self._profile = _Fields(dataset.of(Owner.PROFILE), "user_id")
        self._item = _Fields(dataset.of(Owner.ITEM), "item_id")
        self._keyed: dict[tuple[str, ...], list[FeatureSpec]] = {}
        for feature in dataset.features:
            if feature.statistic and feature.statistic.days:
                self._keyed.setdefault(feature.statistic.keys, []).append(feature)
        self._realtime = [f"realtime_{f.name}" for f in dataset.in_group(Group.REALTIME)]

    def close(self) -> None:
        """Lets the file go."""
        self._read.abort()
        self._store.close()

    def complete(self, request: Mapping[str, Any], today: Today | None = None) -> dict[str, Any]:
        """A row of samples: what the request has, and all that it lacks and that hangs on its keys.

        Args:
            request: What is asked.
            today: Where behaviours and statistics of today come from if it has no `realtime_time_ms`.

        Raises:
            RequestError: It lacks a key, or one is not right; names the field.
        """
        user, time_ms = (integer_of(request, name) for name in ("user_id", "time_ms"))
        items = request.get("candidate_item_id")
        if not isinstance(items, list) or not all(is_id(item) for item in items):
            raise RequestError("column candidate_item_id must be a list of integers of 64 bits")
        offset_ms = self._dataset.utc_offset_ms
        clock = clock_features(time_ms, offset_ms)
        row: dict[str, Any] = {
            "user_id": user,
            "profile_user_id": user,
            "window_start_ms": (time_ms + offset_ms) // DAY_MS * DAY_MS - offset_ms,
        }
        self._add_user(row, user)
        self._add_static(row, user)
        known = self._add_items(row, items, clock) | {name: [v] * len(items) for name, v in clock.items()}
        self._add_statistics(row, user, known)
        if today is None or "realtime_time_ms" in request:
            self._add_behaviours(row, request, time_ms, len(items))
        else:
            self._add_today(row, today.before(user, time_ms), {"user_id": [user] * len(items), **known})
        return row | {name: value for name, value in request.items() if name != "time_ms"}

    def _get(self, kind: str, key: Sequence[int]) -> _Values:
        """What is known of a key; of one that there is not, what is unknown."""
        value = self._read.get(_key(kind, key))
        if value is None:
            value = self._read.get(_key(kind, ()))
        if value is None:  # no user at all has a history
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        (count,) = np.frombuffer(value, np.int64, 1)
        return np.frombuffer(value, np.int64, count, 8), np.frombuffer(value, np.float32, -1, 8 + 8 * count)

    def _add_user(self, row: dict[str, Any], user: int) -> None:
        for name, value in self._profile.of(self._get("user", [user])).items():
            row[f"profile_{name}"] = value

    def _add_static(self, row: dict[str, Any], user: int) -> None:
        ids, numbers = self._get("static", [user])
        of_ids, of_numbers = (of(self._dataset, Group.STATIC) for of in (id_features, number_features))
        names = [*(f"static_{f.name}" for f in of_ids), "static_time_ms"]
        row |= dict(zip(names, ids.reshape(len(names), -1).tolist(), strict=True))
        columns = numbers.reshape(len(of_numbers), -1).tolist() if of_numbers else []
        row |= {f"static_{f.name}": column for f, column in zip(of_numbers, columns, strict=True)}

    def _add_items(
        self, row: dict[str, Any], items: list[int], clock: Mapping[str, int]
    ) -> dict[str, list[int]]:
        """Adds what is of items and of the clock; returns what statistics are keyed by."""
        columns: dict[str, list[Any]] = {name: [] for name in self._item.names}
        for item in items:
            for name, value in self._item.of(self._get("item", [item])).items():
                columns[name].append(value)
        for name, values in columns.items():
            row[f"candidate_{name}"] = values
        for feature in self._dataset.of(Owner.CONTEXT):
            if feature.name in clock:
                row[f"candidate_{feature.name}"] = [clock[feature.name]] * len(items)
        return {"item_id": items, **columns}

    def _add_statistics(self, row: dict[str, Any], user: int, known: Mapping[str, list[int]]) -> None:
        for keys, features in self._keyed.items():
            kind = f"statistic:{','.join(keys)}"
            of_profile = keys == ("user_id",) and features[0].owner is Owner.PROFILE
            places = range(1) if of_profile else range(len(known["item_id"]))
            values = [
                self._get(kind, [user if k == "user_id" else known[k][p] for k in keys])[1] for p in places
            ]
            for place, feature in enumerate(features):
                column = [float(of_key[place]) for of_key in values]
                if of_profile:
                    row[f"profile_{feature.name}"] = column[0]
                else:
                    row[f"candidate_{feature.name}"] = column

    def _add_today(
        self, row: dict[str, Any], events: Sequence[Event], known: Mapping[str, list[int]]
    ) -> None:
        """Adds the user's day so far, from its events before the request."""
        done = [so_far.Done(event=event, known=self._known_of(event)) for event in events]
        so_far.add_behaviours(
            row, self._dataset, [one for one in done if one.event.action], len(known["item_id"])
        )
        row |= so_far.statistics(self._dataset, done, known)

    def _known_of(self, event: Event) -> dict[str, Any]:
        """What a token of an event has, by feature."""
        return {
            "user_id": event.user,
            "item_id": event.item,
            "action": event.action,
            **self._item.of(self._get("item", [event.item])),
            **event.context,
            **clock_features(event.time_ms, self._dataset.utc_offset_ms),
        }

    def _add_behaviours(
        self, row: dict[str, Any], request: Mapping[str, Any], time_ms: int, count: int
    ) -> None:
        """Adds visibility, and without real-time behaviours their empty lists."""
        times = request.get("realtime_time_ms", [])
        if not isinstance(times, list) or not all(type(time) is int for time in times):
            raise RequestError("column realtime_time_ms must be a list of integers")
        if not times:
            row |= {name: [] for name in (*self._realtime, "realtime_time_ms")}
        row["realtime_visible"] = [sum(other < time for other in times) for time in times]
        row["candidate_visible"] = [sum(time < time_ms for time in times)] * count


class _Fields:
    """Names of what a row of users or items holds, in order."""

    def __init__(self, features: Sequence[FeatureSpec], key: str) -> None:
        held = [f for f in features if f.statistic is None and f.name != key]
        self._ids = [f.name for f in held if f.kind is not Kind.NUMBER]
        self._numbers = [f.name for f in held if f.kind is Kind.NUMBER]
        self.names = [*self._ids, *self._numbers]

    def of(self, values: _Values) -> dict[str, Any]:
        ids, numbers = values
        return dict(zip(self.names, [*ids.tolist(), *numbers.tolist()], strict=True))


def _key(kind: str, key: Sequence[int]) -> bytes:
    return kind.encode() + b"\0" + np.array(key, np.int64).tobytes()


def write_store(dataset: Dataset, ds: str) -> dict[str, Any]:
    """Makes the store of a day of the table `lookups`, and lets the link name it.

    Returns:
        `lookups`, the day, `rows` and `bytes`.

    Raises:
        RunError: The table has no such day, or the file cannot be written.
    """
    uri = locations.table(dataset.name, "lookups")
    folder = locations.serving() / dataset.name
    path = folder / f"lookups-{ds}-{time.time_ns()}.lmdb"  # never again: readers keep what they have mapped
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        rows = DeltaTable(uri).to_pyarrow_table(
            filters=[("ds", "=", ds)], columns=["kind", "key", "ids", "numbers"]
        )
        if not rows.num_rows:
            raise RunError(
                f"{uri} has no day {ds}; build it: "
                f"python -m spark_jobs.build_lookups --dataset {dataset.name} --ds {ds}"
            )
        with lmdb.open(
            str(partial), map_size=4 * rows.nbytes + (64 << 20), subdir=False, lock=False
        ) as store:
            with store.begin(write=True) as write:
                write.put(_DAY, ds.encode())
                columns = (rows.column(name).to_pylist() for name in ("kind", "key"))
                lists = (_arrays(rows.column(name)) for name in ("ids", "numbers"))
                for kind, key, ids, numbers in zip(*columns, *lists, strict=True):
                    write.put(
                        _key(kind, key), np.int64(len(ids)).tobytes() + ids.tobytes() + numbers.tobytes()
                    )
            store.sync(True)
        os.replace(partial, path)
    except (DeltaError, lmdb.Error, OSError) as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"the lookups of {ds} cannot be made from {uri}: {error}") from error
    new = folder / f".{LINK}.{os.getpid()}"
    new.unlink(missing_ok=True)
    new.symlink_to(path.name)
    os.replace(new, folder / LINK)
    sync_folder(folder)
    for old in sorted(folder.glob("lookups-*.lmdb"), key=lambda file: file.stat().st_mtime_ns)[:-_KEPT]:
        old.unlink()
    return {"lookups": ds, "rows": rows.num_rows, "bytes": path.stat().st_size}


def _arrays(column: Any) -> list[Array]:
    """The lists of a column as arrays."""
    parts: list[Array] = []
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy()
        values = chunk.values.to_numpy()[offsets[0] : offsets[-1]]
        parts += np.split(values, offsets[1:-1] - offsets[0]) if len(chunk) else []
    return parts

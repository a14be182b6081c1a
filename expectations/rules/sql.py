"""Spark SQL that rules are written in: native expressions only, so that a rule runs where the rows are.

Everything returns the text of an expression. Lists may be null or empty here: only the rule about lengths
says that a list is missing, so that one fault breaks one rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spark_jobs.contract.clock import DAY_MS, HOUR_MS
from spark_jobs.contract.features import NO_IDS, Dataset, FeatureSpec, Kind


def bounds(feature: FeatureSpec) -> tuple[str, str] | None:
    """Least and greatest allowed value as SQL literals; None for ids, see `no_id`."""
    if feature.kind is Kind.NUMBER:
        return f"{feature.low!r}D", f"{feature.high!r}D"
    if feature.kind is Kind.CATEGORY:
        return "0", str(feature.cardinality - 1)
    return None


def no_id(column: str) -> str:
    """True for a null, and for what stands for no id."""
    return f"({column} IS NULL OR {_stands_for_none(column)})"


def _stands_for_none(column: str) -> str:
    return f"{column} IN ({', '.join(f'{one}L' for one in NO_IDS)})"


def scalar_out_of_bounds(column: str, feature: FeatureSpec) -> str:
    """True for a value outside the feature's bounds, or for no id; NaN is greater than all numbers.

    Null for null.
    """
    limits = bounds(feature)
    if limits is None:
        return _stands_for_none(column)
    return f"({column} < {limits[0]} OR {column} > {limits[1]})"


def list_has_null(column: str) -> str:
    """True for a list with a null in it; false for a null list."""
    return f"coalesce(exists({column}, x -> x IS NULL), false)"


def list_out_of_bounds(column: str, feature: FeatureSpec) -> str:
    """True for a list with a value that is null, NaN, outside the feature's bounds or no id.

    `array_min` and `array_max` are compiled and skip nulls. `array_contains` of a value that is not in the
    list is null exactly when the list holds a null: this replaces a lambda over each value.
    """
    limits = bounds(feature)
    if limits is None:
        held = (f"coalesce(array_contains({column}, {one}L), {column} IS NOT NULL)" for one in NO_IDS)
        return f"({' OR '.join(held)})"
    impossible = "CAST('NaN' AS FLOAT)" if feature.kind is Kind.NUMBER else "-1"
    return (
        f"(coalesce(array_min({column}) < {limits[0]}, false)"
        f" OR coalesce(array_max({column}) > {limits[1]}, false)"
        f" OR coalesce(array_contains({column}, {impossible}), {column} IS NOT NULL))"
    )


def lengths_differ(columns: Sequence[str]) -> str:
    """True when a list is missing or the lists are not all of one length."""
    sizes = [f"coalesce(size({column}), -1)" for column in columns]
    return f"(least({', '.join(sizes)}) < greatest({', '.join(sizes)}) OR {sizes[0]} < 0)"


def stands_for(dataset: Dataset) -> str:
    """How many impressions a row's candidates stand for: their number, or the sum of their weights."""
    return _weights("candidate_weight") if dataset.has_weights else "size(candidate_time_ms)"


def ones(label: str, dataset: Dataset) -> str:
    """How many impressions with the label a row's candidates stand for."""
    if dataset.has_weights:
        return _weights(f"zip_with({label}, candidate_weight, (one, weight) -> one * weight)")
    return f"aggregate({label}, 0, (total, one) -> total + coalesce(CAST(one AS INT), 0))"


def _weights(values: str) -> str:
    """The sum of a list of weights, as a decimal: sums of it do not hang on the order of rows."""
    return f"CAST(aggregate({values}, 0D, (total, one) -> total + coalesce(one, 0D)) AS DECIMAL(28, 9))"


def not_ascending(column: str) -> str:
    """True for a list that is not in ascending order (equal neighbours allowed)."""
    return f"coalesce(sort_array({column}) <> {column}, false)"


def visible_differs(visible: str, times: str) -> str:
    """True when a token's `visible` is not the number of real-time tokens strictly earlier than it.

    With real-time tokens in ascending order, v of them are strictly earlier than t exactly when the v-th
    (from 1) is earlier than t and the next is not: two look-ups a token instead of a count over all of them.
    """
    token_differs = (
        "NOT (v >= 0 AND v <= size(realtime_time_ms)"
        " AND (v = 0 OR coalesce(get(realtime_time_ms, v - 1) < t, false))"
        " AND coalesce(get(realtime_time_ms, v) >= t, true))"
    )
    return f"coalesce(exists(zip_with({visible}, {times}, (v, t) -> {token_differs}), x -> x), false)"


def day_start_ms(ds: str, dataset: Dataset) -> str:
    """First millisecond of the day in column `ds`; integers, so that no session's time zone matters."""
    midnight = f"CAST(unix_date(try_cast({ds} AS DATE)) AS BIGINT) * {DAY_MS}"
    return f"({midnight} - {dataset.utc_offset_ms})"


def _local_ms(time_ms: str, dataset: Dataset) -> str:
    """A time in the dataset's clock; null instead of an overflow for times at the end of 64 bits."""
    return f"try_add({time_ms}, {dataset.utc_offset_ms}L)"


def day_of(time_ms: str, dataset: Dataset) -> str:
    """The day of a time in the dataset's clock, YYYY-MM-DD."""
    days = f"try_cast(floor({_local_ms(time_ms, dataset)} / {DAY_MS}) AS INT)"
    return f"date_format(date_from_unix_date({days}), 'yyyy-MM-dd')"


def hour_of(time_ms: str, dataset: Dataset) -> str:
    """The hour 0..23 of a time in the dataset's clock."""
    return f"pmod({_local_ms(time_ms, dataset)} div {HOUR_MS}, 24)"


@dataclass(frozen=True)
class Hours:
    """Rows by the hour after the start of the day in which they happened.

    Args:
        column: Holds the number of that hour, see `hour_after`; null for rows that do not count.
        number: How many hours are told apart.
    """

    column: str
    number: int

    def filled(self, enough: str) -> str:
        """How many hours have at least `enough` rows."""
        return " + ".join(f"CAST({self._rows(n)} >= {enough} AS INT)" for n in range(self.number))

    def last(self, enough: str) -> str:
        """The last time in the last hour that has at least `enough` rows; null when none has."""
        times = (
            f"CASE WHEN {self._rows(n)} >= {enough}"
            f" THEN max(CASE WHEN {self.column} = {n} THEN time_ms END) END"
            for n in range(self.number)
        )
        return f"greatest({', '.join(times)})"

    def _rows(self, hour: int) -> str:
        return f"count_if({self.column} = {hour})"


def hour_after(start_ms: str, condition: str = "true") -> str:
    """Whole hours from a time to `time_ms`, negative before it; null where the condition fails."""
    hours = f"try_cast(floor(try_subtract(time_ms, {start_ms}) / {HOUR_MS}) AS INT)"
    return f"CASE WHEN {condition} THEN {hours} END"


def weekday_of(time_ms: str, dataset: Dataset) -> str:
    """The weekday of a time in the dataset's clock, Monday 0; 1970-01-01 was a Thursday."""
    return f"pmod({_local_ms(time_ms, dataset)} div {DAY_MS} + 3, 7)"


def clock_differs(column: str, expected: str) -> str:
    """True when a clock feature of a candidate is not what its time `t` gives."""
    pairs = f"zip_with({column}, candidate_time_ms, (v, t) -> v <> {expected})"
    return f"coalesce(exists({pairs}, x -> x), false)"


def one_of(column: str) -> str:
    """One value of a list, chosen by the row's key: an unbiased look at lists without exploding them."""
    chosen = f"CAST(pmod(xxhash64(user_id, window_start_ms), greatest(size({column}), 1)) AS INT)"
    return f"get({column}, {chosen})"


LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))


def quantiles(value: str) -> str:
    """Quantiles of a value at LEVELS; NaN is for the row rules and left out; null when there is no value."""
    levels = ", ".join(str(level) for level in LEVELS)
    known = f"nanvl(CAST({value} AS DOUBLE), CAST(NULL AS DOUBLE))"
    return f"percentile_approx({known}, array({levels}), 1000)"


def share(condition: str, among: str = "true") -> str:
    """Share of the rows with `among` for which `condition` holds; null without such rows."""
    return (
        f"(CAST(count_if(({condition}) AND ({among})) AS DOUBLE)"
        f" / nullif(CAST(count_if({among}) AS DOUBLE), 0D))"
    )


def ratio(part: str, whole: str) -> str:
    """One aggregate by another; null when the second is zero."""
    return f"(CAST({part} AS DOUBLE) / nullif(CAST({whole} AS DOUBLE), 0D))"

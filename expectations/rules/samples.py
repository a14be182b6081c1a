"""The rules for samples: one day's partition, as the builder wrote it.

Rules about single rows are in `jagged_rules.py`; here are those about the day: volume, keys, label rates,
drift. Drift is measured on one candidate a row, drawn by the row's key, so that nothing is exploded.
"""

from __future__ import annotations

from expectations.rules import sql
from expectations.rules.jagged import jagged_rules
from expectations.rules.rule import Fact, Rule, Suite, Trailing, schema_facts, schema_rules
from spark_jobs.contract.features import Dataset, FeatureSpec, Group, Kind
from spark_jobs.contract.limits import Limits

_KEY = ("user_id", "window_start_ms")
RATES = {"ctr": "label_click", "ctcvr": "label_conversion"}
LEAST, MOST, HASH = "_least", "_most", "_hash"


def samples_suite(dataset: Dataset, limits: Limits) -> Suite:
    """The suite for one day of a dataset's samples."""
    return Suite(
        name="samples",
        dataset=dataset.name,
        table="samples",
        facts=(*schema_facts(), *_facts(dataset), *_joined_facts()),
        rules=(
            *schema_rules(),
            *_volume_rules(limits),
            *_label_rate_rules(limits, dataset.has_weights),
            *jagged_rules(dataset),
            *_drift_rules(dataset, limits),
            *_alike_rules(),
        ),
    )


def _facts(dataset: Dataset) -> tuple[Fact, ...]:
    """What one pass over the day measures."""
    candidates = "sum(size(candidate_time_ms))"
    facts = [
        Fact(name="rows", sql="count(*)"),
        Fact(name="candidates", sql=candidates, needs=("candidate_time_ms",)),
        Fact(name="static_tokens", sql="sum(size(static_time_ms))", needs=("static_time_ms",)),
        Fact(name="realtime_tokens", sql="sum(size(realtime_time_ms))", needs=("realtime_time_ms",)),
    ]
    needs = ("candidate_time_ms", *(("candidate_weight",) if dataset.has_weights else ()))
    for rate, label in RATES.items():
        mean = sql.ratio(f"sum({sql.ones(label, dataset)})", f"sum({sql.stands_for(dataset)})")
        facts.append(Fact(name=rate, sql=mean, needs=(label, *needs)))
    for column, feature in compared_columns(dataset):
        facts += _fingerprint(column, feature)
    for column, feature, value in _drifting(dataset):
        if feature.kind is Kind.NUMBER:
            facts.append(Fact(name=f"{column}_quantiles", sql=sql.quantiles(value), needs=(*_KEY, column)))
        else:
            absent = f"coalesce({value}, 0) = 0"
            facts.append(Fact(name=f"{column}_unknown_share", sql=sql.share(absent), needs=(*_KEY, column)))
    return tuple(facts)


def compared_columns(dataset: Dataset) -> list[tuple[str, FeatureSpec]]:
    """(column, feature) of what could be constant, or equal to another: users' and candidates' features."""
    return [
        (f"{group}_{feature.name}", feature)
        for group in (Group.PROFILE, Group.CANDIDATE)
        for feature in dataset.in_group(group)
    ]


def _fingerprint(column: str, feature: FeatureSpec) -> list[Fact]:
    """Least and greatest value of a column, and a hash of all values in their rows."""
    is_list = not column.startswith(f"{Group.PROFILE}_")
    low, high = (f"array_{end}({column})" if is_list else column for end in ("min", "max"))
    same = f"CAST({column} AS {'ARRAY<DOUBLE>' if is_list else 'DOUBLE'})"
    hashed = f"CAST(sum(CAST(xxhash64({same}) AS DECIMAL(38, 0))) AS STRING)"
    return [
        Fact(name=f"{column}{LEAST}", sql=f"min({low})", needs=(column,)),
        Fact(name=f"{column}{MOST}", sql=f"max({high})", needs=(column,)),
        Fact(name=f"{column}{HASH}", sql=hashed, needs=(column,)),
    ]


def _drifting(dataset: Dataset) -> list[tuple[str, FeatureSpec, str]]:
    """(column, feature, one value a row) of what the log brings: users' and candidates' own features.

    Statistics are left out: counts grow by themselves while a dataset is young, and what they count is
    checked in events.
    """
    numbers = []
    for group, one in ((Group.PROFILE, str), (Group.CANDIDATE, sql.one_of)):
        for feature in dataset.in_group(group):
            column = f"{group}_{feature.name}"
            if feature.statistic is None and feature.name not in ("hour", "weekday"):
                numbers.append((column, feature, one(column)))
    return numbers


def _joined_facts() -> tuple[Fact, ...]:
    """What needs a second look: keys over the whole day, and the day's events."""
    return tuple(
        Fact(name=name)
        for name in (
            "window_overlaps",
            "duplicate_candidates",
            "built_share",
            "left_out_share",
            "outrun_share",
            "users",
            "constant_features",
            "constant_statistics",
            "equal_features",
        )
    )


def _volume_rules(limits: Limits) -> tuple[Rule, ...]:
    low, high = limits.volume_ratio
    return (
        Rule(name="rows_present", column="(rows)", description="the day has samples", fact="rows", low=1),
        *(
            Rule(
                name=f"{what}_volume",
                column="(rows)",
                description=f"about as many {what} as the trailing days had",
                fact=what,
                trailing=Trailing.RATIO,
                low=low,
                high=high,
                limit="volume_ratio",
                errors=limits.standard_errors,
                explained_by=() if what == "candidates" else ("candidates_volume",),
            )
            for what in ("rows", "users", "candidates")
        ),
        Rule(
            name="impressions_built",
            column="candidate_impression_id",
            description="candidates for each impression of the day in events, users taken for bots apart:"
            " nothing is lost, nothing invented, and no later delivery is left out",
            fact="built_share",
            low=limits.built_share,
            high=1,
            limit="built_share",
        ),
        Rule(
            name="impressions_left_out",
            column="candidate_impression_id",
            description="share of the day's impressions that no sample holds, for whatever reason: bots"
            " (guests who share one user id are one), broken records, lost ones",
            fact="left_out_share",
            high=limits.left_out_share,
            limit="left_out_share",
            explained_by=("impressions_built",),
        ),
        Rule(
            name="candidate_unique",
            column="candidate_impression_id",
            description="no impression is a candidate twice",
            fact="duplicate_candidates",
            high=0,
        ),
        Rule(
            name="requests_at_once",
            column="candidate_request_id",
            description="share of candidates that were shown after a behaviour which their request, one"
            " moment, cannot have seen: more, and its id names a session",
            fact="outrun_share",
            high=limits.outrun_share,
        ),
        Rule(
            name="windows_disjoint",
            column="window_start_ms",
            description="no two windows of a user overlap, so that (user_id, window_start_ms) is a key",
            fact="window_overlaps",
            high=0,
        ),
    )


def _label_rate_rules(limits: Limits, weighted: bool) -> tuple[Rule, ...]:
    rules = []
    by = ", by their weights" if weighted else ""
    for rate, column in RATES.items():
        low, high = limits.ctr if rate == "ctr" else limits.ctcvr
        rules.append(
            Rule(
                name=f"{rate}_level",
                column=column,
                description=f"{rate}: mean of {column} over candidates{by}",
                fact=rate,
                low=low,
                high=high,
                limit=rate,
                explained_by=_clicks_first(rate),
            )
        )
        rules.append(
            Rule(
                name=f"{rate}_drift",
                column=column,
                description=f"{rate} against the trailing days",
                fact=rate,
                trailing=Trailing.RATIO,
                low=limits.label_ratio[0],
                high=limits.label_ratio[1],
                limit="label_ratio",
                errors=limits.standard_errors,
                explained_by=(f"{rate}_level", *_clicks_first(rate)),
            )
        )
    return tuple(rules)


def _clicks_first(rate: str) -> tuple[str, ...]:
    """A conversion counts with its click: clicks that are lost take conversions with them."""
    return ("ctr_level", "ctr_drift") if rate == "ctcvr" else ()


def _drift_rules(dataset: Dataset, limits: Limits) -> tuple[Rule, ...]:
    rules = []
    for column, feature, _ in _drifting(dataset):
        if feature.kind is Kind.NUMBER:
            rules.append(
                Rule(
                    name=f"{column}_drift",
                    column=column,
                    description=f"quantiles of {column} stay where they were: a change of unit moves them",
                    fact=f"{column}_quantiles",
                    trailing=Trailing.SHIFT,
                    high=limits.quantile_shift,
                    limit="quantile_shift",
                    errors=limits.standard_errors,
                    users="users",
                )
            )
        else:
            rules.append(
                Rule(
                    name=f"{column}_unknown_drift",
                    column=column,
                    description=f"share of unknown (0) {column}: a column lost or renamed makes it jump",
                    fact=f"{column}_unknown_share",
                    trailing=Trailing.INCREASE,
                    high=limits.null_increase,
                    limit="null_increase",
                    errors=limits.standard_errors,
                    users="users",
                )
            )
    return tuple(rules)


def _alike_rules() -> tuple[Rule, ...]:
    """See `expectations/measuring/alike.py`."""
    return (
        Rule(
            name="features_vary",
            column="(features)",
            description="no feature has one value all day, but for those that may: features that have",
            fact="constant_features",
            high=0,
            limit="constant",
        ),
        Rule(
            name="statistics_vary",
            column="(features)",
            description="no statistic that varied on the trailing days has one value all day: statistics with"
            " one",
            fact="constant_statistics",
            trailing=Trailing.NAMES,
            high=0,
        ),
        Rule(
            name="features_differ",
            column="(features)",
            description="no feature equals another in all rows, to the last digit: pairs that do",
            fact="equal_features",
            high=0,
            limit="constant",
        ),
    )

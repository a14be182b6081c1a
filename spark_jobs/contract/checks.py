"""What a declaration may say: each check refuses in one sentence: thing, value, what to do.

`features.py` calls them when a value is made, so that nothing runs with a declaration that means something
else than it says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn, TypeVar

from spark_jobs.contract.clock import DAY_MS

if TYPE_CHECKING:
    from spark_jobs.contract.features import Dataset, FeatureSpec, Statistic

MAX_DAYS = 365  # the longest window of a statistic, and the longest history
NAME = r"[a-z][a-z0-9_]*"
_GREATEST_FLOAT32 = 3.4e38
_Name = TypeVar("_Name", bound=StrEnum)
CLOCK_VALUES = {"hour": 24, "weekday": 7}
# Whose columns these are already, by the owner that may bring a feature of that name.
KEY_FEATURES = {"user_id": "profile", "item_id": "item", "action": "action"}
RESERVED = frozenset(
    "event_id event_type request_id impression_id time_ms ds delivery_ds arrival_ms file reason row record "
    "window_start_ms window_end_ms window offset visible shown_ms label_click label_conversion click_ms "
    "conversion_ms known earlier is_on_time is_active candidates behaviours behaviour history last "
    "static realtime candidate profile first_delivery_ds last_delivery_ds recency".split()
)

# MTGR_<NAME> is the folder of a dataset's raw logs, and these are settings.
SETTINGS = frozenset(
    "var lake runs dataset preset device threads launcher train_launcher training_queue python "
    "retries retry_seconds schedule scheduled kill_at trace_phases alert_webhook challengers docs_url "
    "mlflow_url keep tables_budget runs_budget keep_log_days".split()
)


def refuse(thing: str, problem: str, remedy: str) -> NoReturn:
    """Raises ValueError with one sentence: what, what is wrong with which value, what to do."""
    raise ValueError(f"{thing}: {problem}; {remedy}")


def one_of(kind: type[_Name], value: object, thing: str) -> _Name:
    """The member of an enumeration that a value is or spells.

    Raises:
        ValueError: There is none.
    """
    try:
        return kind(str(value))
    except ValueError:
        refuse(thing, f"{value!r} is none of {', '.join(kind)}", "use one of them")


def names(value: object, thing: str) -> tuple[str, ...]:
    """A list of names as a tuple; one text alone would be read letter by letter.

    Raises:
        ValueError: It is something else, empty, or has a name twice.
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        refuse(thing, f"{value!r} is no tuple of names", f"write ({value!r},)")
    listed = tuple(value)
    if not listed:
        refuse(thing, "is empty", "name at least one")
    for name in listed:
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            refuse(thing, f"{name!r} is no name", "use lower case letters, digits and underscores")
    for name, count in Counter(listed).items():
        if count > 1:
            refuse(thing, f"{name!r} is there {count} times", "name it once")
    return listed


def whole(value: object, low: int, high: int, thing: str) -> None:
    """Checks a whole number in [low, high].

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        refuse(thing, f"{value!r} is no whole number from {low} to {high}", "give one")


def check_statistic(statistic: Statistic) -> None:
    """Checks a statistic by itself.

    Raises:
        ValueError: A field is wrong, or two contradict each other.
    """
    thing = f"statistic {statistic.measure} by {' and '.join(statistic.keys)}"
    whole(statistic.days, 0, MAX_DAYS, f"{thing}, days")
    if statistic.measure.is_of_action != bool(statistic.action):
        problem = f"action is {statistic.action!r}"
        if statistic.action:
            refuse(thing, problem, "leave it out, or count `actions` or `days_since`")
        refuse(thing, problem, "name the action that is counted")
    if statistic.measure.is_recency and not statistic.days:
        refuse(thing, "days is 0", "days since the last are counted over 1 day or more before the day")


def check_feature(feature: FeatureSpec) -> None:
    """Checks a feature by itself.

    Raises:
        ValueError: A field is wrong, or two contradict each other.
    """
    thing = f"feature {feature.name!r}"
    if not isinstance(feature.name, str) or not re.fullmatch(NAME, feature.name):
        refuse(
            f"feature name {feature.name!r}", "is no name", "use lower case letters, digits and underscores"
        )
    owner = KEY_FEATURES.get(feature.name)
    if feature.name in RESERVED or (owner and owner != feature.owner):
        refuse(
            thing,
            f"{feature.name!r} of {feature.owner} is a column that every dataset has",
            "call it otherwise",
        )
    if (feature.name in CLOCK_VALUES) and feature.owner != "context":
        refuse(
            thing,
            f"owner is {feature.owner}",
            "hour and weekday are read off the clock: declare them as context",
        )
    if feature.table and not re.fullmatch(NAME, feature.table):
        refuse(thing, f"table {feature.table!r} is no name", "use lower case letters, digits and underscores")
    if feature.kind == "category":
        whole(feature.cardinality, 2, 2**31 - 1, f"{thing}, cardinality (a category's number of values)")
        values = CLOCK_VALUES.get(feature.name, feature.cardinality)
        if feature.cardinality != values:
            refuse(thing, f"cardinality is {feature.cardinality}", f"the clock has {values} values of it")
    elif feature.cardinality:
        refuse(
            thing,
            f"cardinality is {feature.cardinality}, but kind {feature.kind} has none",
            "leave it out (an id's hash buckets are the model's: model/embeddings/sizes.py)",
        )
    if feature.name in KEY_FEATURES and feature.kind != ("category" if feature.name == "action" else "id"):
        refuse(thing, f"kind is {feature.kind}", "user_id and item_id are ids, action is a category")
    if feature.name in CLOCK_VALUES and feature.kind != "category":
        refuse(thing, f"kind is {feature.kind}", "declare hour and weekday as categories")
    if feature.owner == "action" and feature.name != "action":
        refuse(
            thing,
            "owner is action",
            "a behaviour says `action` alone of what was done: declare it as context",
        )
    if feature.kind == "number":
        _check_range(feature, thing)
    _check_statistic_of(feature, thing)


def _check_range(feature: FeatureSpec, thing: str) -> None:
    bounds = (feature.low, feature.high)
    is_real = all(isinstance(bound, int | float) and abs(bound) <= _GREATEST_FLOAT32 for bound in bounds)
    if not is_real or not feature.low < feature.high:
        refuse(thing, f"low, high is {bounds}", "give two finite numbers with low < high")


def _check_statistic_of(feature: FeatureSpec, thing: str) -> None:
    """A statistic belongs to an owner that is computed, and its window and keys to that owner."""
    statistic, owner = feature.statistic, feature.owner
    if statistic is None:
        if owner.is_computed:
            refuse(thing, f"owner is {owner} without a statistic", "no table brings it: give `statistic`")
        return
    if not owner.is_computed and owner != "profile":
        refuse(
            thing, f"a statistic of owner {owner}", "use profile, item_statistic, cross or realtime_statistic"
        )
    if feature.kind != "number":
        refuse(thing, f"kind is {feature.kind}", "a statistic is a number")
    if owner == "realtime_statistic" and statistic.days:
        refuse(
            thing,
            f"days is {statistic.days}",
            "realtime_statistic is of today, days=0; over days it is cross",
        )
    if owner != "realtime_statistic" and not statistic.days:
        refuse(
            thing,
            f"days is 0 for owner {owner}",
            "give 1 day or more; what is of today is realtime_statistic, hidden while the state is frozen",
        )
    wanted = {
        "profile": (statistic.keys == ("user_id",), "is by ('user_id',) alone"),
        "item_statistic": (not statistic.is_by_user, "is not by user_id: that is cross"),
        "cross": (
            statistic.is_by_user and len(statistic.keys) > 1,
            "is by user_id and something of the item",
        ),
        "realtime_statistic": (statistic.is_by_user, "is by user_id, alone or with something of the item"),
    }
    fits, text = wanted[owner]
    if not fits:
        refuse(thing, f"keys are {statistic.keys}", f"a statistic of owner {owner} {text}")
    least = statistic.greatest
    if feature.low > 0 or feature.high < least:
        refuse(thing, f"low, high is {(feature.low, feature.high)}", f"allow 0 to {least:g}")


def check_dataset(dataset: Dataset) -> None:
    """Checks a dataset.

    Raises:
        ValueError: A field is wrong, or two contradict each other.
    """
    thing = f"dataset {dataset.name!r}"
    if not isinstance(dataset.name, str) or not re.fullmatch(NAME, dataset.name):
        refuse(thing, "is no name", "use lower case letters, digits and underscores")
    if dataset.name in SETTINGS:
        refuse(
            thing, f"MTGR_{dataset.name.upper()} is a setting, not a folder of raw logs", "call it otherwise"
        )
    for name, (low, high) in {
        "attribution_ms": (1, DAY_MS),  # outcomes are read of the day and the next
        "history_days": (1, MAX_DAYS),
        "late_days": (0, MAX_DAYS),
        "max_impressions_a_day": (1, 2**31 - 1),
    }.items():
        whole(getattr(dataset, name), low, high, f"{thing}, {name}")
    _check_offset(dataset.utc_offset_hours, f"{thing}, utc_offset_hours")
    for name in ("has_requests", "has_weights"):
        if not isinstance(getattr(dataset, name), bool):
            refuse(thing, f"{name} is {getattr(dataset, name)!r}", "give True or False")
    _check_names(dataset, thing)
    for feature in dataset.features:
        if feature.owner == "action" and feature.cardinality != len(dataset.actions) + 1:
            refuse(
                f"{thing}, feature 'action'",
                f"cardinality is {feature.cardinality} for {len(dataset.actions)} actions",
                f"give {len(dataset.actions) + 1}: each action, and 0 for unknown",
            )
        if feature.statistic:
            _check_columns_of(dataset, feature, feature.statistic, f"{thing}, feature {feature.name!r}")


def _check_offset(hours: float, thing: str) -> None:
    is_number = isinstance(hours, int | float) and not isinstance(hours, bool)
    if not (is_number and -12 <= hours <= 14 and hours * 4 % 1 == 0):
        refuse(thing, f"{hours!r} is no offset from -12 to 14 in quarters of an hour", "give one, e.g. 5.5")


def _check_names(dataset: Dataset, thing: str) -> None:
    owners: dict[str, str] = {}
    if dataset.has_weights and any(feature.name == "weight" for feature in dataset.features):
        refuse(thing, "feature 'weight' beside has_weights=True, whose column that is", "call it otherwise")
    sizes: dict[str, int] = {}
    for feature in dataset.features:
        if feature.name in owners:
            twice = f"{feature.name!r} is declared twice ({owners[feature.name]}, {feature.owner})"
            refuse(thing, twice, "call one of them otherwise")
        owners[feature.name] = feature.owner
        if (
            feature.kind != "number"
            and sizes.setdefault(feature.table, feature.cardinality) != feature.cardinality
        ):
            refuse(
                thing,
                f"embedding table {feature.table!r} is shared by features of cardinality"
                f" {sizes[feature.table]} and {feature.cardinality}",
                "make them equal, or name two tables",
            )
    for name, owner in (("user_id", "profile"), ("item_id", "item")):
        if name not in owners:
            refuse(thing, f"has no feature {name!r}", f"declare it as an id of owner {owner}")


def _check_columns_of(dataset: Dataset, feature: FeatureSpec, statistic: Statistic, thing: str) -> None:
    """Keys are columns of events or items, and actions are the dataset's."""
    known = [
        other.name
        for other in dataset.features
        if other.owner in ("item", "context") and other.kind != "number" and other.statistic is None
    ]
    known = list(dict.fromkeys(["user_id", *known, *CLOCK_VALUES]))
    for key in statistic.keys:
        if key not in known:
            refuse(
                thing, f"key {key!r} is no id or category of events or items", f"use of {', '.join(known)}"
            )
    if statistic.action and statistic.action not in dataset.actions:
        refuse(
            thing, f"action {statistic.action!r} is not declared", f"use one of {', '.join(dataset.actions)}"
        )

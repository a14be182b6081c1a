"""A declaration that means something else than it says is refused when it is made."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest

from spark_jobs.contract import checks, datasets
from spark_jobs.contract.declare import action_counts, category, days_since, id_feature, number, statistics
from spark_jobs.contract.features import Dataset, FeatureSpec, Kind, Measure, Owner, Statistic

FEATURES = (
    id_feature("user_id", Owner.PROFILE, "the user"),
    id_feature("item_id", Owner.ITEM, "the item"),
    category("kind", Owner.ITEM, 9, "its kind"),
    number("price", Owner.ITEM, 0, 100, "its price"),
    category("hour", Owner.CONTEXT, 24, "hour"),
    category("action", Owner.ACTION, 4, "what was done"),
)


def shop(*more: FeatureSpec, without: tuple[str, ...] = (), **fields: Any) -> Dataset:
    features = tuple(feature for feature in (*FEATURES, *more) if feature.name not in without)
    return Dataset(
        **{
            "name": "shop",
            "features": features,
            "actions": ("view", "tap", "buy"),
            "conversion": "a purchase",
            **fields,
        }
    )


def counted(owner: Any = Owner.CROSS, keys: Any = ("user_id", "kind"), **fields: Any) -> FeatureSpec:
    statistic = Statistic(**{"keys": keys, "measure": Measure.CLICKS, "days": 30, **fields})
    return FeatureSpec(name="counted", owner=owner, kind=Kind.NUMBER, description="", statistic=statistic)


def feature(**fields: Any) -> FeatureSpec:
    return FeatureSpec(
        **{"name": "size", "owner": Owner.ITEM, "kind": Kind.NUMBER, "description": "", **fields}
    )


def test_a_whole_declaration_is_taken() -> None:
    dataset = shop(
        *statistics(Owner.CROSS, ("user_id", "kind"), (1, 365), Measure.CLICKS, Measure.CTR),
        *statistics(Owner.ITEM_STATISTIC, ("kind", "hour"), (7,), Measure.CTCVR),
        *statistics(Owner.REALTIME_STATISTIC, ("user_id",), (0,), Measure.IMPRESSIONS),
        *action_counts(Owner.CROSS, ("user_id", "item_id"), (30, 365), "buy"),
        *action_counts(Owner.REALTIME_STATISTIC, ("user_id", "kind"), (0,), "tap"),
        *days_since(Owner.PROFILE, ("user_id",), (365,), "buy"),
    )
    assert dataset.reach_days == 365
    assert dataset.history_days == 90
    assert shop(*statistics(Owner.CROSS, ("user_id", "kind"), (30,), Measure.CTR)).reach_days == 90
    assert [f.name for f in dataset.features[-4:]] == [
        "user_item_buy_30d",
        "user_item_buy_365d",
        "user_kind_tap_today",
        "user_days_since_buy_365d",
    ]


def test_text_that_spells_an_enumeration_is_taken_as_its_member() -> None:
    made = feature(owner="item", kind="category", cardinality=3)
    assert (made.owner, made.kind) == (Owner.ITEM, Kind.CATEGORY)
    assert made.owner.groups == Owner.ITEM.groups
    assert made.kind is Kind.CATEGORY
    assert Statistic(keys=["user_id"], measure="ctr", days=1).measure is Measure.CTR
    assert Statistic(keys=["user_id"], measure="ctr", days=1).keys == ("user_id",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"owner": "itm"}, "feature 'size', owner: 'itm' is none of profile, item, .*; use one of them"),
        ({"owner": None}, "owner: None is none of"),
        ({"kind": "float"}, "feature 'size', kind: 'float' is none of id, category, number; use one"),
        ({"name": "Size"}, "feature name 'Size': is no name; use lower case"),
        ({"name": ""}, "feature name '': is no name"),
        ({"name": "9th"}, "feature name '9th': is no name"),
        ({"name": "ds"}, "feature 'ds': 'ds' of item is a column that every dataset has; call it otherwise"),
        ({"name": "time_ms"}, "'time_ms' of item is a column that every dataset has"),
        ({"name": "delivery_ds", "owner": Owner.PROFILE}, "'delivery_ds' of profile is a column"),
        ({"name": "event_type", "owner": Owner.CONTEXT}, "'event_type' of context is a column"),
        ({"name": "visible"}, "'visible' of item is a column"),
        ({"name": "known"}, "'known' of item is a column"),
        ({"name": "user_id", "kind": Kind.ID}, "'user_id' of item is a column"),
        ({"name": "item_id", "kind": Kind.ID, "owner": Owner.PROFILE}, "'item_id' of profile is a column"),
        ({"name": "action", "owner": Owner.CONTEXT}, "'action' of context is a column"),
        ({"name": "item_id"}, "feature 'item_id': kind is number; user_id and item_id are ids"),
        ({"name": "hour"}, "feature 'hour': owner is item; hour and weekday are read off the clock"),
        ({"name": "hour", "owner": Owner.CONTEXT}, "feature 'hour': kind is number; declare hour"),
        (
            {"name": "hour", "owner": Owner.CONTEXT, "kind": Kind.CATEGORY, "cardinality": 12},
            "feature 'hour': cardinality is 12; the clock has 24 values of it",
        ),
        (
            {"name": "weekday", "owner": Owner.CONTEXT, "kind": Kind.CATEGORY, "cardinality": 8},
            "feature 'weekday': cardinality is 8; the clock has 7",
        ),
        (
            {"owner": Owner.ACTION, "kind": Kind.CATEGORY, "cardinality": 3},
            "owner is action; a behaviour says",
        ),
        ({"kind": Kind.CATEGORY}, "cardinality .*: 0 is no whole number from 2"),
        ({"kind": Kind.CATEGORY, "cardinality": 1}, "1 is no whole number from 2"),
        ({"kind": Kind.CATEGORY, "cardinality": -3}, "-3 is no whole number from 2"),
        ({"kind": Kind.CATEGORY, "cardinality": 2.5}, "2.5 is no whole number from 2"),
        ({"kind": Kind.CATEGORY, "cardinality": True}, "True is no whole number from 2"),
        ({"kind": Kind.CATEGORY, "cardinality": 2**31}, "2147483648 is no whole number"),
        ({"kind": Kind.ID, "cardinality": 9}, "cardinality is 9, but kind id has none; leave it out"),
        ({"cardinality": 9}, "cardinality is 9, but kind number has none"),
        ({"kind": Kind.ID, "table": "Shop Table"}, "table 'Shop Table' is no name"),
        ({"low": 1.0, "high": 1.0}, r"low, high is \(1.0, 1.0\); give two finite numbers with low < high"),
        ({"low": 2.0, "high": 1.0}, "give two finite numbers with low < high"),
        ({"low": math.nan}, "low, high is .*nan.*; give two finite numbers"),
        ({"high": math.nan}, "give two finite numbers"),
        ({"high": math.inf}, "give two finite numbers"),
        ({"low": -math.inf}, "give two finite numbers"),
        ({"high": 1e300}, "give two finite numbers"),
        ({"high": "9"}, "give two finite numbers"),
        ({"owner": Owner.CROSS}, "feature 'size': owner is cross without a statistic; no table brings it"),
        ({"owner": Owner.ITEM_STATISTIC}, "owner is item_statistic without a statistic"),
        ({"owner": Owner.REALTIME_STATISTIC}, "owner is realtime_statistic without a statistic"),
    ],
)
def test_a_feature_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        feature(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"days": 0}, "days is 0 for owner cross; give 1 day or more"),
        ({"owner": Owner.PROFILE, "keys": ("user_id",), "days": 0}, "days is 0 for owner profile"),
        ({"owner": Owner.ITEM_STATISTIC, "keys": ("kind",), "days": 0}, "days is 0 for owner item_statistic"),
        ({"owner": Owner.REALTIME_STATISTIC}, "days is 30; realtime_statistic is of today, days=0"),
        ({"days": 366}, "statistic clicks by user_id and kind, days: 366 is no whole number from 0 to 365"),
        ({"days": -1}, "days: -1 is no whole number"),
        ({"days": 1.5}, "days: 1.5 is no whole number"),
        ({"days": "7"}, "days: '7' is no whole number"),
        ({"days": True}, "days: True is no whole number"),
        ({"keys": "user_id"}, r"keys of a statistic: 'user_id' is no tuple of names; write \('user_id',\)"),
        ({"keys": ()}, "keys of a statistic: is empty; name at least one"),
        ({"keys": ("user_id", "user_id")}, "keys of a statistic: 'user_id' is there 2 times"),
        ({"keys": ("user_id", 3)}, "keys of a statistic: 3 is no name"),
        ({"keys": ("user_id",)}, r"keys are \('user_id',\); a statistic of owner cross is by user_id and"),
        ({"keys": ("item_id",)}, r"keys are \('item_id',\); a statistic of owner cross is by user_id and"),
        ({"owner": Owner.PROFILE}, "a statistic of owner profile is by .'user_id',. alone"),
        ({"owner": Owner.ITEM_STATISTIC}, "a statistic of owner item_statistic is not by user_id"),
        ({"owner": Owner.REALTIME_STATISTIC, "keys": ("kind",), "days": 0}, "is by user_id, alone or with"),
        ({"owner": Owner.ITEM}, "a statistic of owner item; use profile, item_statistic, cross or"),
        ({"owner": Owner.CONTEXT}, "a statistic of owner context"),
        ({"measure": "views"}, "measure by .*: 'views' is none of impressions, clicks"),
        ({"action": "buy"}, "action is 'buy'; leave it out, or count `actions` or `days_since`"),
        ({"measure": Measure.ACTIONS}, "action is ''; name the action that is counted"),
        (
            {"measure": Measure.DAYS_SINCE, "action": "buy", "days": 0, "owner": Owner.REALTIME_STATISTIC},
            "days is 0; days since the last are counted over 1 day or more",
        ),
    ],
)
def test_a_statistic_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counted(**fields)


def test_a_range_that_a_statistic_leaves_is_refused() -> None:
    rate = counted(measure=Measure.CTR)
    for fields in ({"high": 0.5}, {"low": 0.1}):
        with pytest.raises(ValueError, match=r"feature 'counted': low, high is .*; allow 0 to 1"):
            dataclasses.replace(rate, **fields)
    with pytest.raises(ValueError, match="allow 0 to 31"):
        dataclasses.replace(counted(measure=Measure.DAYS_SINCE, action="buy"), high=30)
    with pytest.raises(ValueError, match="kind is category; a statistic is a number"):
        dataclasses.replace(rate, kind=Kind.CATEGORY, cardinality=3)
    assert dataclasses.replace(counted(), high=3.0).high == 3.0  # a count may end where the declaration says


@pytest.mark.parametrize(
    ("more", "fields", "message"),
    [
        (
            (),
            {"without": ("user_id",)},
            "dataset 'shop': has no feature 'user_id'; declare it as an id of owner",
        ),
        ((), {"without": ("item_id",)}, "has no feature 'item_id'; declare it as an id of owner item"),
        ((), {"actions": ("view", "buy")}, "'action': cardinality is 4 for 2 actions; give 3"),
        ((), {"actions": ()}, "dataset 'shop', actions: is empty; name at least one"),
        ((), {"actions": ("view", "buy", "buy")}, "actions: 'buy' is there 2 times; name it once"),
        ((), {"actions": "buy"}, r"actions: 'buy' is no tuple of names; write \('buy',\)"),
        ((), {"actions": ("view", "tap", "Buy It")}, "actions: 'Buy It' is no name"),
        ((), {"name": "my-shop"}, "dataset 'my-shop': is no name"),
        (
            (),
            {"name": "lake"},
            "dataset 'lake': MTGR_LAKE is a setting, not a folder of raw logs; call it otherwise",
        ),
        (
            (),
            {"utc_offset_hours": 5.4},
            "utc_offset_hours: 5.4 is no offset from -12 to 14 in quarters of an",
        ),
        ((), {"utc_offset_hours": 330}, "utc_offset_hours: 330 is no offset from -12 to 14"),
        ((), {"utc_offset_hours": True}, "utc_offset_hours: True is no offset"),
        ((), {"utc_offset_hours": float("nan")}, "utc_offset_hours: nan is no offset"),
        (
            (),
            {"attribution_ms": 25 * 3_600_000},
            "attribution_ms: 90000000 is no whole number from 1 to 86400000",
        ),
        ((), {"attribution_ms": 0}, "attribution_ms: 0 is no whole number"),
        ((), {"attribution_ms": 3.6e6}, "attribution_ms: 3600000.0 is no whole number"),
        ((), {"history_days": 0}, "history_days: 0 is no whole number from 1 to 365"),
        ((), {"history_days": 1000}, "history_days: 1000 is no whole number from 1 to 365"),
        ((), {"snapshot": "at noon"}, "dataset 'shop', snapshot: 'at noon' is none of before_day, after_day"),
        ((), {"has_weights": 1}, "has_weights is 1; give True or False"),
        (
            (number("weight", Owner.ITEM, 0, 9, ""),),
            {"has_weights": True},
            "feature 'weight' beside has_weights=True, whose column that is; call it otherwise",
        ),
        ((), {"has_requests": "no"}, "has_requests is 'no'; give True or False"),
        ((), {"late_days": -1}, "late_days: -1 is no whole number"),
        ((), {"max_impressions_a_day": 0}, "max_impressions_a_day: 0 is no whole number"),
        ((number("price", Owner.CONTEXT, 0, 9, ""),), {}, r"'price' is declared twice \(item, context\)"),
        ((number("kind", Owner.PROFILE, 0, 9, ""),), {}, r"'kind' is declared twice \(item, profile\)"),
        (
            (dataclasses.replace(category("mood", Owner.CONTEXT, 3, ""), table="kind"),),
            {},
            "embedding table 'kind' is shared by features of cardinality 9 and 3; make them equal",
        ),
        (
            (id_feature("brand", Owner.ITEM, "", table="kind"),),
            {},
            "embedding table 'kind' is shared by features of cardinality 9 and 0",
        ),
        (
            (counted(keys=("user_id", "kinds")),),
            {},
            "feature 'counted': key 'kinds' is no id or category of events or items; use of user_id, "
            "item_id, kind, hour, weekday",
        ),
        ((counted(keys=("user_id", "price")),), {}, "key 'price' is no id or category of events or items"),
        ((counted(keys=("user_id", "action")),), {}, "key 'action' is no id or category"),
        (
            (category("town", Owner.PROFILE, 9, ""), counted(keys=("user_id", "town"))),
            {},
            "key 'town' is no id or category of events or items",
        ),
        (
            (counted(measure=Measure.ACTIONS, action="order"),),
            {},
            "action 'order' is not declared; use one of view, tap, buy",
        ),
    ],
)
def test_a_dataset_that_contradicts_itself_is_refused(
    more: tuple[FeatureSpec, ...], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shop(*more, **fields)


def test_a_dataset_is_a_file_and_no_entry_in_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declaration = (
        "import dataclasses\n"
        "from spark_jobs.contract.foodlog import FOODLOG\n"
        "OWN = dataclasses.replace(FOODLOG, name={name!r}{more})\n"
    )
    folder = tmp_path / "some" / "declared"
    folder.mkdir(parents=True)
    for file, text in {
        "grocery": declaration.format(name="grocery", more=""),
        "bakery": declaration.format(name="bread", more=""),
        "kiosk": declaration.format(name="kiosk", more=", utc_offset_hours=5.4"),
        "stall": "import no_such_module\n",
        "helpers": "NUMBER = 1\n",
    }.items():
        (folder / f"{file}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    declared, refused = datasets.discovered(folder, "some.declared")
    assert {name: dataset.name for name, dataset in declared.items()} == {"grocery": "grocery"}
    assert set(refused) == {"bakery", "kiosk", "stall"}
    assert refused["bakery"] == (
        "some/declared/bakery.py declares dataset 'bread'; call the file bread.py, or the dataset bakery"
    )
    assert refused["kiosk"].startswith("some/declared/kiosk.py: dataset 'kiosk', utc_offset_hours: 5.4 is no")
    monkeypatch.setattr(datasets, "_REFUSED", refused)
    with pytest.raises(ValueError, match=r"some/declared/kiosk\.py: dataset 'kiosk', utc_offset_hours: 5\.4"):
        datasets.dataset_named("kiosk")
    with pytest.raises(
        ValueError, match=r"unknown dataset 'x'; known: foodlog, journey, kuairand.*bakery\.py declares"
    ):
        datasets.dataset_named("x")
    assert set(datasets.DATASETS) >= {"foodlog", "kuairand"}


def test_a_dataset_without_a_module_is_named_before_spark_starts(tmp_path: Path) -> None:
    (tmp_path / "shop.py").touch()
    datasets.require_source(shop(), tmp_path)
    with pytest.raises(
        ValueError, match=r"dataset 'stall' has no source: write spark_jobs/sources/stall\.py"
    ):
        datasets.require_source(dataclasses.replace(shop(), name="stall"), tmp_path)


def test_no_setting_is_left_out_of_the_names_that_a_dataset_cannot_have() -> None:
    root = Path(__file__).resolve().parents[2]
    folders = ("spark_jobs", "model", "expectations", "scripts", "dags")
    texts = [path.read_text() for folder in folders for path in (root / folder).rglob("*.py")]
    named = {name.lower() for text in texts for name in re.findall(r"MTGR_([A-Z_]+[A-Z])", text)}
    assert named - set(datasets.DATASETS) <= checks.SETTINGS

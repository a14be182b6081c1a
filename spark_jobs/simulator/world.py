"""The lasting part of a district: its people with their tastes, its merchants with their dishes, its weather.

`build_world` draws it, `next_day` changes the little that changes overnight: a price, a profile, what has
opened. A snapshot of a day is taken as the day begins, after that.

Shapes: U users, M merchants, P dishes a merchant, C cuisines, A age groups, K meals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_jobs.simulator.phenomena import Habits, draw_habits, tastes_on
from spark_jobs.simulator.settings import MAX_CANDIDATES, SimulationSettings
from spark_jobs.sources.foodlog_names import AGES, BUDGETS, CITIES, CUISINES, WEATHERS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MEAL_HOURS = np.array([8.0, 12.0, 15.5, 18.5, 21.5])  # breakfast, lunch, afternoon, dinner, night
MEAL_SHARES = np.array([0.12, 0.34, 0.12, 0.32, 0.10])
_MEAL_CUISINES = (
    ("congee", "bakery", "coffee", "dumplings"),
    ("rice bowls", "noodles", "curry", "salad", "burgers"),
    ("bubble tea", "coffee", "fruit", "bakery"),
    ("hotpot", "rice bowls", "sushi", "pizza", "noodles"),
    ("barbecue", "fried chicken", "bubble tea", "burgers"),
)
_BASE_PRICE = np.array([22, 25, 60, 48, 18, 30, 45, 55, 32, 28, 14, 27, 16, 15, 20, 24], dtype=float)
_GRID = 8  # a district is 8 x 8 cells of one square kilometre
_WEATHER_SHARES = (0.36, 0.28, 0.18, 0.05, 0.03, 0.10)
WET = np.array([0.0, 0.0, 1.0, 1.6, 1.3, 0.2])  # how much weather slows couriers and keeps people at home
_SPEND = np.log(np.array([14.0, 20.0, 28.0, 40.0, 60.0]))  # log of the price that a budget likes
_NEWCOMERS_DAYS = 60


@dataclass(frozen=True)
class World:
    """A district. Ids are unique over all districts; 0 is no id."""

    district: int
    city: int  # index in CITIES
    user_id: Ints  # U
    age: Ints
    budget: Ints
    is_member: NDArray[np.bool_]
    home_cell: Ints
    registered_day: Ints  # day number; negative before the first day
    activity: Floats  # propensity to open the app, mean 1
    meal_share_uk: Floats
    taste_uc: Floats
    spend_u: Floats  # log of the price that the user likes
    merchant_id: Ints  # M
    cuisine: Ints
    quality: Floats
    prep_minutes: Floats
    merchant_cell: Ints
    item_id_mp: Ints
    opens_day_mp: Ints  # day number from which on the dish is sold; negative before the first day
    is_sold_mp: NDArray[np.bool_]  # on the day that the world is of
    price_mp: Floats
    dish_quality_mp: Floats
    home_km_um: Floats
    work_km_um: Floats
    meal_match_kc: Floats
    habits: Habits


def build_world(settings: SimulationSettings, district: int) -> World:
    """Draws the district; the same for equal settings."""
    rng = settings.rng("world", district)
    first = district * settings.users_a_district
    num_users = min(settings.users_a_district, settings.users - first)
    num_merchants, num_dishes = settings.merchants_a_district, settings.dishes_a_merchant
    common = settings.rng("common")
    city_taste, age_taste = _common_tastes(common)
    city = district % len(CITIES)
    age = rng.choice(len(AGES), num_users, p=(0.08, 0.22, 0.24, 0.26, 0.12, 0.08))
    budget = rng.choice(len(BUDGETS), num_users, p=(0.15, 0.25, 0.3, 0.2, 0.1))
    home, work = rng.integers(0, _GRID, (2, num_users, 2))
    place = rng.integers(0, _GRID, (num_merchants, 2))
    cuisine = rng.permutation(np.arange(num_merchants) % len(CUISINES))
    level = np.log(_BASE_PRICE[cuisine]) + rng.normal(0, 0.3, num_merchants)
    price = np.exp(level[:, None] + rng.normal(0, 0.2, (num_merchants, num_dishes)))
    merchants = district * num_merchants + 1 + np.arange(num_merchants)
    dishes = (merchants[:, None] - 1) * num_dishes + 1 + np.arange(num_dishes)
    opens = _opening_days(settings, district)
    activity = rng.gamma(4.0, 0.25, num_users)
    late_comer = rng.random(num_users) < settings.newcomer_share
    registered = np.where(
        late_comer, rng.integers(0, _NEWCOMERS_DAYS, num_users), -rng.integers(1, 1500, num_users)
    )
    return World(
        district=district,
        city=city,
        user_id=first + 1 + np.arange(num_users),
        age=age,
        budget=budget,
        is_member=rng.random(num_users) < 0.3,
        home_cell=_cell_id(district, home),
        registered_day=registered,
        activity=activity / activity.mean(),
        meal_share_uk=rng.dirichlet(8 * MEAL_SHARES, num_users),
        taste_uc=_tastes(rng, city_taste[city] + age_taste[age]),
        spend_u=_SPEND[budget] + rng.normal(0, 0.2, num_users),
        merchant_id=merchants,
        cuisine=cuisine,
        quality=rng.normal(0, 1, num_merchants),
        prep_minutes=rng.uniform(6, 22, num_merchants),
        merchant_cell=_cell_id(district, place),
        item_id_mp=dishes,
        opens_day_mp=opens,
        is_sold_mp=opens < 0,
        price_mp=np.round(np.clip(price, 5, 300), 1),
        dish_quality_mp=rng.normal(0, 1, (num_merchants, num_dishes)),
        home_km_um=_distance_km(rng, home, place),
        work_km_um=_distance_km(rng, work, place),
        meal_match_kc=_meal_match(),
        habits=draw_habits(settings, district, num_users, len(CUISINES)),
    )


def weather_of(settings: SimulationSettings, city: int, day_number: int) -> int:
    """Index in WEATHERS of a city's weather on a day."""
    return int(settings.rng("weather", city, day_number).choice(len(WEATHERS), p=_WEATHER_SHARES))


def next_day(settings: SimulationSettings, world: World, day_number: int) -> World:
    """The district as a day begins, from the district of the day before.

    Args:
        settings: Rates.
        world: The district; on the first day as it was built.
        day_number: Days since the first day of the world.
    """
    rng = settings.rng("change", world.district, day_number)
    num_users, shape = len(world.user_id), world.price_mp.shape
    is_priced = rng.random(shape) < settings.price_change_rate
    price = world.price_mp * np.where(is_priced, np.exp(rng.normal(0, 0.15, shape)), 1.0)
    kind = np.where(
        rng.random(num_users) < settings.profile_change_rate, rng.integers(0, 3, num_users), -1
    )  # 0 moves, 1 changes the budget, 2 the membership
    home = rng.integers(0, _GRID, (num_users, 2))
    home_km = _distance_km(rng, home, _place(world))
    budget = np.clip(world.budget + rng.choice([-1, 1], num_users), 0, len(BUDGETS) - 1)
    budget = np.where(kind == 1, budget, world.budget)
    return replace(
        tastes_on(settings, world, day_number),
        price_mp=np.round(np.clip(price, 5, 300), 1),
        is_sold_mp=world.opens_day_mp <= day_number,
        home_cell=np.where(kind == 0, _cell_id(world.district, home), world.home_cell),
        home_km_um=np.where((kind == 0)[:, None], home_km, world.home_km_um),
        budget=budget,
        spend_u=world.spend_u + _SPEND[budget] - _SPEND[world.budget],
        is_member=world.is_member ^ (kind == 2),
    )


def users_on(world: World, day_number: int, registered_on: list[str]) -> dict[str, Any]:
    """Columns of the `users` snapshot, taken as a day begins: who has registered on a day before.

    Args:
        world: The district on the day.
        day_number: Days since the first day of the world.
        registered_on: U days of registration, YYYY-MM-DD.
    """
    known = np.flatnonzero(world.registered_day < day_number)
    return {
        "user_id": world.user_id[known],
        "city": [CITIES[world.city]] * len(known),
        "age": [AGES[i] for i in world.age[known]],
        "budget": [BUDGETS[i] for i in world.budget[known]],
        "is_member": world.is_member[known],
        "home_cell": world.home_cell[known],
        "registered_on": [registered_on[i] for i in known],
    }


def items_of(world: World) -> dict[str, Any]:
    """Columns of the `items` snapshot, taken as a day begins: every dish that is sold, with its merchant."""
    merchant, dish = np.nonzero(world.is_sold_mp)
    return {
        "item_id": world.item_id_mp[merchant, dish],
        "merchant_id": world.merchant_id[merchant],
        "cuisine": [CUISINES[i] for i in world.cuisine[merchant]],
        "price": world.price_mp[merchant, dish],
        "merchant_cell": world.merchant_cell[merchant],
    }


def _opening_days(settings: SimulationSettings, district: int) -> Ints:
    """(M, P) days on which dishes appear: a merchant's first dish with the merchant, others then or later.

    As many merchants as a page shows are there from the start.
    """
    rng = settings.rng("opening", district)
    shape = (settings.merchants_a_district, settings.dishes_a_merchant)
    is_new = rng.random(shape) < settings.newcomer_share
    is_new[:MAX_CANDIDATES, 0] = False
    day = np.where(is_new, rng.integers(0, _NEWCOMERS_DAYS, shape), -1)
    return np.maximum(day, day[:, :1])


def _common_tastes(common: np.random.Generator) -> tuple[Floats, Floats]:
    """What people of a city, and of an age, like: (cities, C) and (A, C)."""
    return common.normal(0, 0.5, (len(CITIES), len(CUISINES))), common.normal(
        0, 0.5, (len(AGES), len(CUISINES))
    )


def _tastes(rng: np.random.Generator, shared_uc: Floats) -> Floats:
    """Tastes over cuisines, mean 0 a user: what is shared, what is one's own, and three favourites."""
    own = rng.normal(0, 0.5, shared_uc.shape)
    rank = np.argsort(np.argsort(-(shared_uc + own + rng.gumbel(0, 0.7, shared_uc.shape)), axis=1), axis=1)
    taste = shared_uc + own + np.array([1.8, 1.4, 1.0])[np.minimum(rank, 2)] * (rank < 3)
    return _centred(taste)


def _centred(x: Floats) -> Floats:
    centred: Floats = x - x.mean(axis=1, keepdims=True)
    return centred


def _meal_match() -> Floats:
    match = np.full((len(MEAL_HOURS), len(CUISINES)), -0.25)
    for meal, names in enumerate(_MEAL_CUISINES):
        match[meal, [CUISINES.index(name) for name in names]] = 0.75
    return match


def _cell_id(district: int, xy: Ints) -> Ints:
    return np.asarray(district * _GRID * _GRID + 1 + xy[..., 0] * _GRID + xy[..., 1])


def _place(world: World) -> Ints:
    """(M, 2) places of the merchants."""
    cell = world.merchant_cell - 1 - world.district * _GRID * _GRID
    return np.stack([cell // _GRID, cell % _GRID], axis=1)


def _distance_km(rng: np.random.Generator, from_xy: Ints, to_xy: Ints) -> Floats:
    gap = np.hypot(from_xy[:, None, 0] - to_xy[None, :, 0], from_xy[:, None, 1] - to_xy[None, :, 1])
    km = 0.3 + 0.7 * gap + rng.uniform(0, 0.4, gap.shape)
    return np.asarray(np.round(km, 2), dtype=np.float64)

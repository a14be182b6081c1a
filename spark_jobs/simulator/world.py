"""The lasting part of a district: its people with their tastes, its merchants with their dishes, its weather.

Shapes: U users, M merchants, P dishes a merchant, C cuisines, A age groups, K meals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_jobs.simulator.settings import SimulationSettings
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
    price_mp: Floats
    dish_quality_mp: Floats
    home_km_um: Floats
    work_km_um: Floats
    meal_match_kc: Floats


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
    activity = rng.gamma(4.0, 0.25, num_users)
    late_comer = rng.random(num_users) < 0.06
    return World(
        district=district,
        city=city,
        user_id=first + 1 + np.arange(num_users),
        age=age,
        budget=budget,
        is_member=rng.random(num_users) < 0.3,
        home_cell=_cell_id(district, home),
        registered_day=np.where(
            late_comer, rng.integers(0, 60, num_users), -rng.integers(1, 1500, num_users)
        ),
        activity=activity / activity.mean(),
        meal_share_uk=rng.dirichlet(8 * MEAL_SHARES, num_users),
        taste_uc=_tastes(rng, city_taste[city] + age_taste[age]),
        spend_u=np.log(np.array([14.0, 20.0, 28.0, 40.0, 60.0]))[budget] + rng.normal(0, 0.2, num_users),
        merchant_id=merchants,
        cuisine=cuisine,
        quality=rng.normal(0, 1, num_merchants),
        prep_minutes=rng.uniform(6, 22, num_merchants),
        merchant_cell=_cell_id(district, place),
        item_id_mp=dishes,
        price_mp=np.round(np.clip(price, 5, 300), 1),
        dish_quality_mp=rng.normal(0, 1, (num_merchants, num_dishes)),
        home_km_um=_distance_km(rng, home, place),
        work_km_um=_distance_km(rng, work, place),
        meal_match_kc=_meal_match(),
    )


def weather_of(settings: SimulationSettings, city: int, day_number: int) -> int:
    """Index in WEATHERS of a city's weather on a day."""
    return int(settings.rng("weather", city, day_number).choice(len(WEATHERS), p=_WEATHER_SHARES))


def users_on(world: World, day_number: int, registered_on: list[str]) -> dict[str, Any]:
    """Columns of the `users` snapshot at the start of a day: who had registered before it.

    Args:
        world: The district.
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
    """Columns of the `items` snapshot: every dish with its merchant."""
    num_dishes = world.item_id_mp.shape[1]
    return {
        "item_id": world.item_id_mp.ravel(),
        "merchant_id": np.repeat(world.merchant_id, num_dishes),
        "cuisine": np.repeat([CUISINES[i] for i in world.cuisine], num_dishes),
        "price": world.price_mp.ravel(),
        "merchant_cell": np.repeat(world.merchant_cell, num_dishes),
    }


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


def _distance_km(rng: np.random.Generator, from_xy: Ints, to_xy: Ints) -> Floats:
    gap = np.hypot(from_xy[:, None, 0] - to_xy[None, :, 0], from_xy[:, None, 1] - to_xy[None, :, 1])
    km = 0.3 + 0.7 * gap + rng.uniform(0, 0.4, gap.shape)
    return np.asarray(np.round(km, 2), dtype=np.float64)

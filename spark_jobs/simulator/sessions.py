"""When people open the app: the day's sessions, and their requests.

A session may begin about midnight and go on after it: its requests from midnight on belong to the next day,
which finds them in what the day before has left. Shapes as in `world`; R requests and S sessions of the day.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_jobs.contract.clock import DAY_MS
from spark_jobs.simulator.settings import SimulationSettings
from spark_jobs.simulator.world import MEAL_HOURS, WET, Floats, Ints, World

HOUR_MS = 3_600_000
_NIGHT = len(MEAL_HOURS) - 1
_LONGEST = 1.25 * HOUR_MS  # from a session's start to its last request


@dataclass(frozen=True)
class Requests:
    """Requests, R rows sorted by user and time."""

    user: Ints  # index of the user in the district
    time_ms: Ints  # since the start of the day
    session: Ints  # index of the session


@dataclass(frozen=True)
class Sessions:
    """The sessions of a day, S rows."""

    meal: Ints
    craving: Ints  # the cuisine that the session is about
    craving_logit_sc: Floats  # what is known of the craving as the day begins: softmax is its probability


def plan_day(
    settings: SimulationSettings,
    world: World,
    left: tuple[Requests, Sessions],
    rng: np.random.Generator,
    day_number: int,
    weather: int,
) -> tuple[Requests, Sessions]:
    """Who opens the app when: one or two meals a user, several requests a session, minutes apart.

    Args:
        settings: Shares.
        world: The district on the day.
        left: What midnight has left of the day before's sessions.
        rng: The day's stream.
        day_number: Days since the first day of the world.
        weather: Index in WEATHERS.

    Returns:
        Requests and sessions, those that are left first; requests may lie after the day's end.
    """
    user, meal, start = _meals(settings, world, rng, day_number, weather)
    mean = max(1.0, settings.requests_a_user / 1.4 * 1.38)  # sessions a user; orders end sessions early
    count = 1 + np.minimum(rng.poisson(mean - 1, len(user)), 15)
    session = np.repeat(np.arange(len(user)), count)
    gap = 60_000 + rng.exponential(90_000, len(session))
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(int)
    run = np.cumsum(gap)
    offset = run - np.repeat(run[first], count) if len(session) else run
    time_ms = (start[session] + np.minimum(offset, _LONGEST)).astype(np.int64)
    likely = craving_logits(world, user, meal)
    craving = np.asarray(np.argmax(likely + rng.gumbel(size=likely.shape), axis=1))
    waiting, going_on = left
    sessions = Sessions(
        np.concatenate([going_on.meal, meal]),
        np.concatenate([going_on.craving, craving]),
        np.concatenate([going_on.craving_logit_sc, likely]),
    )
    requests = Requests(
        np.concatenate([waiting.user, user[session]]),
        np.concatenate([waiting.time_ms, time_ms]),
        np.concatenate([waiting.session, len(going_on.meal) + session]),
    )
    return rows_of(requests, np.lexsort((requests.session, requests.time_ms, requests.user))), sessions


def _meals(
    settings: SimulationSettings, world: World, rng: np.random.Generator, day_number: int, weather: int
) -> tuple[Ints, Ints, Floats]:
    """User, meal and start of the day's sessions; `night_share` of the first ones begin about midnight."""
    weekend = 1.12 if day_number % 7 >= 5 else 1.0
    appetite = settings.active_share * world.activity**0.5 * weekend * (1 + 0.1 * WET[weather])
    active = (rng.random(len(world.user_id)) < appetite) & (world.registered_day <= day_number)
    user = np.flatnonzero(active)
    liked = np.log(world.meal_share_uk[user]) + rng.gumbel(size=(len(user), len(MEAL_HOURS)))
    meals = np.argsort(liked, axis=1)[:, ::-1][:, :2]
    two = rng.random(len(user)) < 0.4
    at_night = rng.random(len(user)) < settings.night_share
    meal = np.concatenate([np.where(at_night, _NIGHT, meals[:, 0]), meals[two, 1]])
    start = np.clip(rng.normal(MEAL_HOURS[meal], 0.6) * HOUR_MS, 6 * HOUR_MS, DAY_MS - HOUR_MS)
    about_midnight = np.clip(rng.normal(23.6, 0.5, len(user)), 22, 25.5) * HOUR_MS
    start[: len(user)] = np.where(at_night, about_midnight, start[: len(user)])
    return np.concatenate([user, user[two]]), meal, start


def rows_of(requests: Requests, rows: NDArray[Any]) -> Requests:
    """The requests at `rows`, indices or a mask."""
    return Requests(requests.user[rows], requests.time_ms[rows], requests.session[rows])


def rounds_of(requests: Requests) -> Ints:
    """How many requests the user made before each one on the day."""
    starts = np.flatnonzero(np.diff(requests.user, prepend=-1))
    lengths = np.diff(np.append(starts, len(requests.user)))
    return np.asarray(np.arange(len(requests.user)) - np.repeat(starts, lengths))


def craving_logits(world: World, user: Ints, meal: Ints) -> Floats:
    """(S, C) how likely a session is about each cuisine, from tastes and meal: softmax is its probability."""
    return np.asarray(1.1 * world.taste_uc[user] + world.meal_match_kc[meal])

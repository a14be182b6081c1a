"""What people do that counts by user and merchant do not carry, each thing switched on by its name.

| name | what | where a model could see it |
|---|---|---|
| `weekly` | each person has a cuisine for each day of the week | the history with its times |
| `following` | what was eaten last calls for some cuisines, puts off others, for all alike | the last order |
| `payday` | money runs short until the person's day of the month | the prices of the last weeks |
| `changing` | one person in 28 a day takes over another's tastes | old behaviours mislead |
| `exploring` | weeks of new merchants, weeks of the known ones | what the last orders were to the history |

By default none is on, and the world is what it is without this file. All are known as a day begins, so that
the oracle stays exact; `p_*_plain` are the frozen probabilities of somebody who does not know of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spark_jobs.simulator.settings import SimulationSettings

if TYPE_CHECKING:
    from spark_jobs.simulator.world import World

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_WEEKLY, _FOLLOWING, _EXPLORING = 1.2, 0.8, 1.0  # what they add to a click's logit
ORDER_SHARE = 0.5  # of it is added to an order's
_SHORT = 0.6  # by how much the log of the liked price falls from one payday to the next
_MONTH = 30
_CHANGE_RATE = 1 / 28
_NEW = 0.05  # a merchant with less loyalty is new to the person


@dataclass(frozen=True)
class Habits:
    """What the phenomena are of each person of a district, and of all: U users, C cuisines."""

    weekday_uw: Ints  # (U, 7) cuisine of a weekday
    payday_u: Ints  # day of the month
    phase_u: Ints  # day at which the person's first weeks of exploring begin
    weeks_u: Ints  # days of exploring, and as many of settling
    follows_cc: Floats  # how much the second cuisine is wanted after the first


def draw_habits(settings: SimulationSettings, district: int, num_users: int, num_cuisines: int) -> Habits:
    """Draws them; the random stream is their own, so that nothing else depends on it."""
    rng, common = settings.rng("phenomena", 0, district), settings.rng("phenomena", 1)
    return Habits(
        weekday_uw=rng.integers(0, num_cuisines, (num_users, 7)),
        payday_u=rng.integers(0, _MONTH, num_users),
        phase_u=rng.integers(0, 28, num_users),
        weeks_u=rng.integers(7, 15, num_users),
        follows_cc=common.normal(0, 1, (num_cuisines, num_cuisines)),
    )


def spend_on(settings: SimulationSettings, world: World, day_number: int) -> Floats:
    """U logs of the prices that people like on the day."""
    if not settings.has("payday"):
        return world.spend_u
    since = (day_number - world.habits.payday_u) % _MONTH
    return world.spend_u + _SHORT * (0.5 - since / (_MONTH - 1))


def tastes_on(settings: SimulationSettings, world: World, day_number: int) -> World:
    """The district with the tastes that have changed overnight: a person takes over those of another."""
    if not settings.has("changing"):
        return world
    rng = settings.rng("phenomena", 2, world.district, day_number)
    num_users = len(world.taste_uc)
    changes = rng.random(num_users) < _CHANGE_RATE
    other = rng.integers(0, num_users, num_users)
    return replace(world, taste_uc=np.where(changes[:, None], world.taste_uc[other], world.taste_uc))


def lift(
    settings: SimulationSettings,
    world: World,
    day_number: int,
    user: Ints,
    cuisine: Ints,
    loyalty: Floats,
    last_cuisine_u: Ints,
) -> Floats:
    """(N, W) what the day's phenomena add to the logit of a click.

    Args:
        settings: Which are on.
        world: The district on the day.
        day_number: Days since the first day of the world.
        user: N users.
        cuisine: (N, W) of the candidates.
        loyalty: (N, W) of the users to the candidates' merchants, as the day begins.
        last_cuisine_u: U cuisines of the last orders before the day, -1 without one.
    """
    habits, added = world.habits, np.zeros(cuisine.shape)
    if settings.has("weekly"):
        added += _WEEKLY * (cuisine == habits.weekday_uw[user, day_number % 7][:, None])
    if settings.has("following"):
        last = last_cuisine_u[user][:, None]
        added += _FOLLOWING * np.where(last >= 0, habits.follows_cc[last, cuisine], 0.0)
    if settings.has("exploring"):
        explores = (day_number + habits.phase_u[user]) // habits.weeks_u[user] % 2 == 0
        added += _EXPLORING * (explores[:, None] & (loyalty < _NEW))
    return added

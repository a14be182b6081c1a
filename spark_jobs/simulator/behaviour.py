"""What the people of a district do on a day: requests, what is shown, what they click and order, and why.

A click follows from tastes, price, distance, delivery time, weather, the meal, quality, position, the craving
of the session, loyalty (decayed orders at a merchant), fatigue (decayed impressions without a click) and
satiation (decayed orders of a cuisine). An order follows a click. State changes within the day, too: what was
shown wears out at once, a click makes the merchant likelier until the order, an order ends the appetite.

Requests of a user depend on the ones before, so a day is computed in rounds: the first request of every user
at once, then the second, and so on. Shapes as in `world`; N rows of a round, W slots of a request (the most
candidates), R requests of the day.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spark_jobs.contract.clock import DAY_MS
from spark_jobs.simulator.settings import MAX_CANDIDATES, MIN_CANDIDATES, SimulationSettings
from spark_jobs.simulator.world import MEAL_HOURS, WET, Floats, Ints, World

HOUR_MS = 3_600_000
CRAVING = 1.7  # added to the click's logit for the cuisine that the session is about
_CLICK_BASE, _ORDER_BASE = -2.75, -2.15
_LOYALTY_KEPT, _FATIGUE_KEPT, _SATIATION_KEPT = 0.94, 0.6, 0.55  # from one day to the next


@dataclass
class State:
    """What earlier days left behind."""

    loyalty_um: Floats
    fatigue_um: Floats
    satiation_uc: Floats

    @staticmethod
    def fresh(world: World) -> State:
        """Nobody has eaten anywhere yet."""
        shape = world.home_km_um.shape
        return State(np.zeros(shape), np.zeros(shape), np.zeros(world.taste_uc.shape))

    def overnight(self, shown_um: Floats, ordered_um: Floats, ordered_uc: Floats) -> None:
        """Takes the day in, then forgets a part of everything."""
        self.loyalty_um = _LOYALTY_KEPT * (self.loyalty_um + ordered_um)
        self.fatigue_um = _FATIGUE_KEPT * (self.fatigue_um + shown_um)
        self.satiation_uc = _SATIATION_KEPT * (self.satiation_uc + ordered_uc)


@dataclass(frozen=True)
class Requests:
    """The day's requests, R rows sorted by user and time."""

    user: Ints  # index of the user in the district
    time_ms: Ints  # since the start of the day
    meal: Ints
    session: Ints  # number of the session in the district's day
    round: Ints  # how many requests the user made before on the day


@dataclass
class Shown:
    """The day's impressions in the order in which they were computed; all arrays have one entry each.

    Probabilities: `p_click` and `p_conversion` know all that moved the simulated user, the craving included;
    the `_frozen` ones know the user as the day began, average over the craving and over the positions of the
    request.
    """

    request: Ints
    user: Ints
    merchant: Ints
    dish: Ints
    position: Ints
    time_ms: Ints  # since the start of the day; all candidates of a request share it
    distance_km: Floats
    delivery_minutes: Floats
    p_click: Floats
    p_conversion: Floats
    p_click_frozen: Floats
    p_conversion_frozen: Floats
    click_ms: Ints  # since the start of the day; -1 without a click
    order_ms: Ints


@dataclass
class _Today:
    """What the day has done to its users so far."""

    order_ms_u: Ints
    shown_um: Floats
    clicked_um: Floats  # and not followed by an order yet
    ordered_um: Floats
    ordered_uc: Floats
    hungry_s: NDArray[np.bool_]  # sessions that no order has ended
    craving_s: Ints
    parts: list[dict[str, NDArray[np.generic]]] = field(default_factory=list)


def simulate_day(
    settings: SimulationSettings, world: World, state: State, day_number: int, weather: int
) -> Shown:
    """Simulates the day and changes `state` to what the next day finds."""
    rng = settings.rng("day", world.district, day_number)
    requests = _requests(settings, world, rng, day_number, weather)
    num_users = len(world.user_id)
    today = _Today(
        order_ms_u=np.full(num_users, -DAY_MS),
        shown_um=np.zeros_like(state.fatigue_um),
        clicked_um=np.zeros_like(state.fatigue_um),
        ordered_um=np.zeros_like(state.loyalty_um),
        ordered_uc=np.zeros_like(state.satiation_uc),
        hungry_s=np.ones(int(requests.session.max(initial=-1)) + 1, dtype=bool),
        craving_s=_cravings(world, requests, rng),
    )
    for number in range(int(requests.round.max(initial=-1)) + 1):
        rows = np.flatnonzero((requests.round == number) & today.hungry_s[requests.session])
        if len(rows):
            today.parts.append(_round(world, state, today, requests, rows, rng, weather))
    state.overnight(today.shown_um, today.ordered_um, today.ordered_uc)
    names = Shown.__dataclass_fields__
    if not today.parts:
        return Shown(**{name: np.zeros(0, _dtype(name)) for name in names})
    return Shown(**{name: np.concatenate([part[name] for part in today.parts]) for name in names})


def _dtype(name: str) -> type:
    return np.float64 if name.startswith(("p_", "distance", "delivery")) else np.int64


def _requests(
    settings: SimulationSettings, world: World, rng: np.random.Generator, day_number: int, weather: int
) -> Requests:
    """Who opens the app when: one or two meals a user, several requests a session, minutes apart."""
    num_users = len(world.user_id)
    weekend = 1.12 if day_number % 7 >= 5 else 1.0
    appetite = settings.active_share * world.activity**0.5 * weekend * (1 + 0.1 * WET[weather])
    active = (rng.random(num_users) < appetite) & (world.registered_day <= day_number)
    user = np.flatnonzero(active)
    meals = np.argsort(np.log(world.meal_share_uk[user]) + rng.gumbel(size=(len(user), 5)), axis=1)[:, ::-1][
        :, :2
    ]
    two = rng.random(len(user)) < 0.4
    session_user = np.concatenate([user, user[two]])
    session_meal = np.concatenate([meals[:, 0], meals[two, 1]])
    mean = max(1.0, settings.requests_a_user / 1.4 * 1.38)  # sessions a user; orders end sessions early
    count = 1 + np.minimum(rng.poisson(mean - 1, len(session_user)), 15)
    session = np.repeat(np.arange(len(session_user)), count)
    start = rng.normal(MEAL_HOURS[session_meal], 0.6) * HOUR_MS
    gap = 60_000 + rng.exponential(90_000, len(session))
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(int)
    run = np.cumsum(gap)
    offset = run - np.repeat(run[first], count) if len(session) else run
    latest = DAY_MS - 1 - HOUR_MS / 4
    time_ms = np.clip(start, 6 * HOUR_MS, latest - HOUR_MS)[session] + np.minimum(offset, 1.25 * HOUR_MS)
    time_ms = np.minimum(time_ms, DAY_MS - 1).astype(np.int64)
    owner = session_user[session]
    order = np.lexsort((session, time_ms, owner))
    owner, time_ms, session = owner[order], time_ms[order], session[order]
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    lengths = np.diff(np.append(starts, len(owner)))
    number = np.arange(len(owner)) - np.repeat(starts, lengths)
    return Requests(owner, time_ms, session_meal[session], session, number)


def _cravings(world: World, requests: Requests, rng: np.random.Generator) -> Ints:
    """The cuisine that each session is about."""
    _, first = np.unique(requests.session, return_index=True)
    likely = _craving_logits(world, requests.user[first], requests.meal[first])
    return np.asarray(np.argmax(likely + rng.gumbel(size=likely.shape), axis=1))


def _craving_logits(world: World, user: Ints, meal: Ints) -> Floats:
    return np.asarray(1.1 * world.taste_uc[user] + world.meal_match_kc[meal])


def _round(
    world: World,
    state: State,
    today: _Today,
    requests: Requests,
    rows: Ints,
    rng: np.random.Generator,
    weather: int,
) -> dict[str, NDArray[np.generic]]:
    """One request of each of N users: shows, clicks, orders; changes `today`."""
    user, time_ms, meal = requests.user[rows], requests.time_ms[rows], requests.meal[rows]
    at_work = (meal == 1) | (meal == 2)
    km_nm = np.where(at_work[:, None], world.work_km_um[user], world.home_km_um[user])
    merchant = _candidates(world, user, km_nm, rng)
    num_rows, width = merchant.shape
    used = np.arange(width) < rng.integers(MIN_CANDIDATES, MAX_CANDIDATES + 1, num_rows)[:, None]
    dish = _dishes(world, merchant, rng)
    km = np.take_along_axis(km_nm, merchant, axis=1)
    minutes = world.prep_minutes[merchant] + 8 + 3.5 * km + 7 * WET[weather]
    minutes = np.round(np.clip(minutes + rng.normal(0, 2.5, km.shape), 10, 120))
    click0, order0 = _logits(world, state, user, merchant, dish, km, minutes, meal, weather)
    fed = np.exp(-(time_ms - today.order_ms_u[user]) / (4 * HOUR_MS))[:, None]
    at = (user[:, None], merchant)
    worn = 0.3 * np.log1p(state.fatigue_um[at] + today.shown_um[at]) - 0.3 * np.log1p(state.fatigue_um[at])
    now = 0.9 * today.clicked_um[at] - worn - 2.5 * fed
    craved = world.cuisine[merchant] == today.craving_s[requests.session[rows]][:, None]
    seen = 1 / (1 + 0.11 * np.arange(width))
    p_click = seen * _sigmoid(click0 + now + CRAVING * craved)
    p_order = _sigmoid(order0 + 0.8 * craved + 0.5 * today.clicked_um[at] - 2.5 * fed)
    clicked = used & (rng.random(km.shape) < p_click)
    ordered = clicked & (rng.random(km.shape) < p_order)
    delay = 3_000 + 1_500 * np.arange(width) + np.minimum(rng.exponential(8_000, km.shape), 30_000)
    click_ms = np.where(clicked, time_ms[:, None] + delay.astype(np.int64), -1)
    decision = 40_000 + np.minimum(rng.exponential(240_000, km.shape), 5_000_000)
    order_ms = np.where(ordered, click_ms + decision.astype(np.int64), -1)
    _learn(world, today, requests.session[rows], user, merchant, used, clicked, order_ms)
    seen_mean = (seen * used).sum(axis=1, keepdims=True) / used.sum(axis=1, keepdims=True)
    prior = _softmax(_craving_logits(world, user, meal))
    wanted = np.take_along_axis(prior, world.cuisine[merchant], axis=1)
    p_click_frozen, p_conversion_frozen = _frozen(click0, order0, wanted, seen_mean)
    values = {
        "request": np.broadcast_to(rows[:, None], km.shape),
        "user": np.broadcast_to(user[:, None], km.shape),
        "merchant": merchant,
        "dish": dish,
        "position": np.broadcast_to(np.arange(width), km.shape),
        "time_ms": np.broadcast_to(time_ms[:, None], km.shape),
        "distance_km": km,
        "delivery_minutes": minutes,
        "p_click": p_click,
        "p_conversion": p_click * p_order,
        "p_click_frozen": p_click_frozen,
        "p_conversion_frozen": p_conversion_frozen,
        "click_ms": click_ms,
        "order_ms": order_ms,
    }
    return {name: value[used] for name, value in values.items()}


def _candidates(world: World, user: Ints, km_nm: Floats, rng: np.random.Generator) -> Ints:
    """(N, W) merchants as the app in production shows them: near, good, somewhat to taste, with chance."""
    score = -0.35 * km_nm + 0.3 * world.quality + 0.35 * world.taste_uc[user][:, world.cuisine]
    noisy = score + rng.gumbel(size=score.shape)
    top = np.argpartition(-noisy, MAX_CANDIDATES - 1, axis=1)[:, :MAX_CANDIDATES]
    # The page is ordered by a score of its own noise: position says something about the dish, not everything.
    page = np.take_along_axis(score, top, axis=1) + rng.gumbel(0, 2.0, top.shape)
    return np.take_along_axis(top, np.argsort(-page, axis=1), axis=1)


def _dishes(world: World, merchant: Ints, rng: np.random.Generator) -> Ints:
    liked = 0.5 * world.dish_quality_mp[merchant]
    return np.asarray(np.argmax(liked + rng.gumbel(size=liked.shape), axis=2))


def _logits(
    world: World,
    state: State,
    user: Ints,
    merchant: Ints,
    dish: Ints,
    km: Floats,
    minutes: Floats,
    meal: Ints,
    weather: int,
) -> tuple[Floats, Floats]:
    """Logits of a click, and of an order after it: without position, craving and what the day has done."""
    at = (user[:, None], merchant)
    cuisine = world.cuisine[merchant]
    taste = world.taste_uc[user[:, None], cuisine]
    dear = np.log(world.price_mp[merchant, dish]) - world.spend_u[user][:, None]
    pain = np.where(dear > 0, 1.5 * dear, -0.5 * dear)
    dish_quality = world.dish_quality_mp[merchant, dish]
    loyal = np.log1p(state.loyalty_um[at])
    worn = 0.3 * np.log1p(state.fatigue_um[at]) + 0.9 * state.satiation_uc[user[:, None], cuisine]
    far = 0.2 * (1 + 0.5 * WET[weather]) * (km - 2.5)
    match = world.meal_match_kc[meal[:, None], cuisine]
    click = (
        _CLICK_BASE
        + 0.65 * taste
        + 0.35 * world.quality[merchant]
        + 0.35 * dish_quality
        - 0.6 * pain
        - far
        - 0.02 * (minutes - 35)
        + 0.6 * match
        + 0.75 * loyal
        - worn
    )
    order = (
        _ORDER_BASE
        + 0.25 * taste
        + 0.3 * world.quality[merchant]
        + 0.2 * dish_quality
        - 0.6 * pain
        - 0.03 * (minutes - 35)
        + 0.5 * loyal
        + 0.4 * world.is_member[user][:, None]
        - 0.5 * worn
    )
    return click, order


def _frozen(click0: Floats, order0: Floats, wanted: Floats, seen_mean: Floats) -> tuple[Floats, Floats]:
    """Probabilities with the craving averaged out and the mean position of the request."""
    with_craving, without = _sigmoid(click0 + CRAVING), _sigmoid(click0)
    click = wanted * with_craving + (1 - wanted) * without
    order = wanted * with_craving * _sigmoid(order0 + 0.8) + (1 - wanted) * without * _sigmoid(order0)
    return seen_mean * click, seen_mean * order


def _learn(
    world: World,
    today: _Today,
    session: Ints,
    user: Ints,
    merchant: Ints,
    used: NDArray[np.bool_],
    clicked: NDArray[np.bool_],
    order_ms: Ints,
) -> None:
    """Keeps what the rest of the day, and the next days, need to know of a round."""
    at = (user[:, None], merchant)
    today.shown_um[at] += used & ~clicked
    today.clicked_um[at] = np.maximum(today.clicked_um[at], clicked)
    ordered = order_ms >= 0
    row, slot = np.nonzero(ordered)
    np.add.at(today.ordered_um, (user[row], merchant[row, slot]), 1.0)
    np.add.at(today.ordered_uc, (user[row], world.cuisine[merchant[row, slot]]), 1.0)
    sated = np.flatnonzero(ordered.any(axis=1))
    today.order_ms_u[user[sated]] = order_ms[sated].max(axis=1)
    today.clicked_um[user[sated]] = 0.0
    today.hungry_s[session[sated]] = False


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def _softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))

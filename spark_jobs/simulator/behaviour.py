"""What the people of a district do on a day: requests, what is shown, what they click and order, and why.

A click follows from tastes, price, distance, delivery time, weather, the meal, quality, position, the craving
of the session, loyalty (decayed orders at a merchant), fatigue (decayed impressions without a click) and
satiation (decayed orders of a cuisine). An order follows a click. State changes within the day, too: what was
shown wears out at once, a click makes the merchant likelier until the order, an order ends the appetite.

A day ends at midnight, a session need not: what is left of it is carried into the next day with its craving,
the clicked merchants and what its clicks have told of the craving so far.

Requests of a user depend on the ones before, so a day is computed in rounds: the first request of every user
at once, then the second, and so on. Shapes as in `world`; N rows of a round, W slots of a request (the most
candidates), R requests and S sessions of the day.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spark_jobs.contract.clock import DAY_MS
from spark_jobs.simulator.phenomena import ORDER_SHARE, lift, spend_on
from spark_jobs.simulator.sessions import HOUR_MS, Requests, Sessions, plan_day, rounds_of, rows_of
from spark_jobs.simulator.settings import MAX_CANDIDATES, MIN_CANDIDATES, SimulationSettings
from spark_jobs.simulator.world import WET, Floats, Ints, World

CRAVING = 1.7  # added to the click's logit for the cuisine that the session is about
_CLICK_BASE, _ORDER_BASE = -2.75, -2.15
CRAVING_ORDER = 0.8  # added to the order's
_LOYALTY_KEPT, _FATIGUE_KEPT, _SATIATION_KEPT = 0.94, 0.6, 0.55  # from one day to the next


@dataclass
class State:
    """What earlier days left behind: lasting habits, and what midnight has interrupted."""

    loyalty_um: Floats
    fatigue_um: Floats
    satiation_uc: Floats
    order_ms_u: Ints  # the user's last order, since the start of the day that begins
    last_cuisine_u: Ints  # of that order, -1 without one
    clicked_um: Floats  # clicked in a session that goes on, and not followed by an order
    requests: Requests  # what is left of sessions that go on
    sessions: Sessions

    @staticmethod
    def fresh(world: World) -> State:
        """Nobody has eaten anywhere yet."""
        shape, nobody = world.home_km_um.shape, np.zeros(0, np.int64)
        num_cuisines = world.taste_uc.shape[1]
        return State(
            loyalty_um=np.zeros(shape),
            fatigue_um=np.zeros(shape),
            satiation_uc=np.zeros(world.taste_uc.shape),
            order_ms_u=np.full(shape[0], -DAY_MS),
            last_cuisine_u=np.full(shape[0], -1),
            clicked_um=np.zeros(shape),
            requests=Requests(nobody, nobody, nobody),
            sessions=Sessions(nobody, nobody, np.zeros((0, num_cuisines))),
        )

    def overnight(self, today: _Today, later: Requests) -> None:
        """Takes the day in, forgets a part of everything, and keeps the sessions that go on.

        Args:
            today: What the day has done.
            later: The requests of its sessions after midnight.
        """
        self.loyalty_um = _LOYALTY_KEPT * (self.loyalty_um + today.ordered_um)
        self.fatigue_um = _FATIGUE_KEPT * (self.fatigue_um + today.shown_um)
        self.satiation_uc = _SATIATION_KEPT * (self.satiation_uc + today.ordered_uc)
        self.last_cuisine_u = today.last_cuisine_u
        self.order_ms_u = np.maximum(today.order_ms_u - DAY_MS, -DAY_MS)
        rows = today.hungry_s[later.session]
        going_on, session = np.unique(later.session[rows], return_inverse=True)
        self.requests = Requests(later.user[rows], later.time_ms[rows] - DAY_MS, session)
        self.sessions = Sessions(
            today.sessions.meal[going_on],
            today.sessions.craving[going_on],
            (today.sessions.craving_logit_sc + today.told_sc)[going_on],
        )
        awake = np.zeros((len(self.clicked_um), 1))
        awake[self.requests.user] = 1
        self.clicked_um = today.clicked_um * awake


@dataclass
class Shown:
    """The day's impressions in the order in which they were computed; all arrays have one entry each.

    Probabilities: `p_click` and `p_conversion` know all that moved the simulated user, the craving included;
    the `_session` ones average over the positions of the request and over the craving, by what the session's
    clicks have told of it until then; the `_frozen` ones know the user as the day began, and of the craving
    what was likely then, or what the session did before midnight has interrupted it. The `_plain` ones are
    frozen, too, and do not know of `phenomena`.
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
    p_click_session: Floats
    p_conversion_session: Floats
    p_click_frozen: Floats
    p_conversion_frozen: Floats
    p_click_plain: Floats
    p_conversion_plain: Floats
    click_ms: Ints  # since the start of the day, may lie after its end; -1 without a click
    order_ms: Ints


@dataclass
class _Today:
    """What the day has done to its users so far."""

    sessions: Sessions
    order_ms_u: Ints
    last_cuisine_u: Ints
    shown_um: Floats
    clicked_um: Floats  # and not followed by an order yet
    ordered_um: Floats
    ordered_uc: Floats
    hungry_s: NDArray[np.bool_]  # sessions that no order has ended
    told_sc: Floats  # log likelihood of the day's clicks in the session for each craving, up to a constant
    parts: list[dict[str, NDArray[np.generic]]] = field(default_factory=list)


def simulate_day(
    settings: SimulationSettings, world: World, state: State, day_number: int, weather: int
) -> Shown:
    """Simulates the day and changes `state` to what the next day finds."""
    rng = settings.rng("day", world.district, day_number)
    left = (state.requests, state.sessions)
    planned, sessions = plan_day(settings, world, left, rng, day_number, weather)
    is_later = planned.time_ms >= DAY_MS
    requests, later = rows_of(planned, ~is_later), rows_of(planned, is_later)
    today = _Today(
        sessions=sessions,
        order_ms_u=state.order_ms_u.copy(),
        last_cuisine_u=state.last_cuisine_u.copy(),
        shown_um=np.zeros_like(state.fatigue_um),
        clicked_um=state.clicked_um.copy(),
        ordered_um=np.zeros_like(state.loyalty_um),
        ordered_uc=np.zeros_like(state.satiation_uc),
        hungry_s=np.ones(len(sessions.meal), dtype=bool),
        told_sc=np.zeros_like(sessions.craving_logit_sc),
    )
    rounds = rounds_of(requests)
    for number in range(int(rounds.max(initial=-1)) + 1):
        rows = np.flatnonzero((rounds == number) & today.hungry_s[requests.session])
        if len(rows):
            today.parts.append(
                _round(settings, world, state, today, requests, rows, rng, (day_number, weather))
            )
    state.overnight(today, later)
    names = Shown.__dataclass_fields__
    if not today.parts:
        return Shown(**{name: np.zeros(0, _dtype(name)) for name in names})
    return Shown(**{name: np.concatenate([part[name] for part in today.parts]) for name in names})


def _dtype(name: str) -> type:
    return np.float64 if name.startswith(("p_", "distance", "delivery")) else np.int64


def _round(
    settings: SimulationSettings,
    world: World,
    state: State,
    today: _Today,
    requests: Requests,
    rows: Ints,
    rng: np.random.Generator,
    day: tuple[int, int],
) -> dict[str, NDArray[np.generic]]:
    """One request of each of N users, on a day (number, weather): shows, clicks, orders; changes `today`."""
    day_number, weather = day
    user, time_ms, session = requests.user[rows], requests.time_ms[rows], requests.session[rows]
    meal = today.sessions.meal[session]
    at_work = (meal == 1) | (meal == 2)
    km_nm = np.where(at_work[:, None], world.work_km_um[user], world.home_km_um[user])
    merchant = _candidates(world, user, km_nm, rng)
    num_rows, width = merchant.shape
    used = np.arange(width) < rng.integers(MIN_CANDIDATES, MAX_CANDIDATES + 1, num_rows)[:, None]
    dish = _dishes(world, merchant, rng)
    km = np.take_along_axis(km_nm, merchant, axis=1)
    minutes = world.prep_minutes[merchant] + 8 + 3.5 * km + 7 * WET[weather]
    minutes = np.round(np.clip(minutes + rng.normal(0, 2.5, km.shape), 10, 120))
    at = (user[:, None], merchant)
    cuisine = world.cuisine[merchant]
    logits = plain = _logits(world, state, world.spend_u, user, merchant, dish, km, minutes, meal, weather)
    if settings.phenomena:
        spend_u = spend_on(settings, world, day_number)
        click, order = _logits(world, state, spend_u, user, merchant, dish, km, minutes, meal, weather)
        added = lift(settings, world, day_number, user, cuisine, state.loyalty_um[at], state.last_cuisine_u)
        logits = click + added, order + ORDER_SHARE * added
    worn = 0.3 * np.log1p(state.fatigue_um[at] + today.shown_um[at]) - 0.3 * np.log1p(state.fatigue_um[at])
    click, order = _lately(logits, today.clicked_um[at], time_ms, today.order_ms_u[user])
    click = click - worn
    craved = cuisine == today.sessions.craving[session][:, None]
    seen = 1 / (1 + 0.11 * np.arange(width))
    p_click = seen * _sigmoid(click + CRAVING * craved)
    p_order = _sigmoid(order + CRAVING_ORDER * craved)
    clicked = used & (rng.random(km.shape) < p_click)
    ordered = clicked & (rng.random(km.shape) < p_order)
    delay = 3_000 + 1_500 * np.arange(width) + np.minimum(rng.exponential(8_000, km.shape), 30_000)
    click_ms = np.where(clicked, time_ms[:, None] + delay.astype(np.int64), -1)
    order_ms = np.where(ordered, click_ms + _decision_ms(settings, rng, km.shape), -1)
    known = today.sessions.craving_logit_sc[session] + today.told_sc[session]
    told = used * _told(clicked, seen, click, order)
    np.add.at(today.told_sc, (session[:, None], cuisine), told)
    _learn(world, today, session, user, merchant, used, clicked, order_ms)
    seen_mean = (seen * used).sum(axis=1, keepdims=True) / used.sum(axis=1, keepdims=True)
    wanted = np.take_along_axis(_softmax(today.sessions.craving_logit_sc[session]), cuisine, axis=1)
    wanted_now = np.take_along_axis(_softmax(known), cuisine, axis=1)
    morning = _lately(logits, state.clicked_um[at], time_ms, state.order_ms_u[user])
    frozen = _averaged(*morning, wanted, seen_mean)
    steps = {"session": _averaged(click, order, wanted_now, seen_mean), "frozen": frozen, "plain": frozen}
    if settings.phenomena:
        morning = _lately(plain, state.clicked_um[at], time_ms, state.order_ms_u[user])
        steps["plain"] = _averaged(*morning, wanted, seen_mean)
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
        **{f"p_click_{step}": of_step[0] for step, of_step in steps.items()},
        **{f"p_conversion_{step}": of_step[1] for step, of_step in steps.items()},
        "click_ms": click_ms,
        "order_ms": order_ms,
    }
    return {name: value[used] for name, value in values.items()}


def _lately(
    logits: tuple[Floats, Floats], clicked: Floats, time_ms: Ints, order_ms: Ints
) -> tuple[Floats, Floats]:
    """Logits with the merchants that the session has clicked already, and the appetite since an order."""
    since_ms = np.maximum(time_ms - order_ms, 0)
    fed = np.exp(-since_ms / (4 * HOUR_MS))[:, None]
    return logits[0] + 0.9 * clicked - 2.5 * fed, logits[1] + 0.5 * clicked - 2.5 * fed


def _decision_ms(settings: SimulationSettings, rng: np.random.Generator, shape: tuple[int, ...]) -> Ints:
    """From a click to its order: minutes, or, `slow_order_rate` of them, an hour to just within the two."""
    quick = 40_000 + np.minimum(rng.exponential(240_000, shape), 5_000_000)
    slow = rng.uniform(1.0, 1.98, shape) * HOUR_MS
    is_slow = rng.random(shape) < settings.slow_order_rate
    return np.asarray(np.where(is_slow, slow, quick).astype(np.int64))


def _told(clicked: NDArray[np.bool_], seen: Floats, click: Floats, order: Floats) -> Floats:
    """Log likelihood ratio of what followed an impression: its cuisine is craved, or is not.

    Counts a click as one without an order: sessions with an order end, and tell nobody anything any more.
    """
    craved, not_craved = seen * _sigmoid(click + CRAVING), seen * _sigmoid(click)
    nothing = np.log1p(-craved) - np.log1p(-not_craved)
    left = np.log(_sigmoid(-order - CRAVING_ORDER)) - np.log(_sigmoid(-order))
    return np.asarray(np.where(clicked, np.log(craved) - np.log(not_craved) + left, nothing))


def _candidates(world: World, user: Ints, km_nm: Floats, rng: np.random.Generator) -> Ints:
    """(N, W) merchants as the app in production shows them: near, good, somewhat to taste, with chance."""
    score = -0.35 * km_nm + 0.3 * world.quality + 0.35 * world.taste_uc[user][:, world.cuisine]
    noisy = np.where(world.is_sold_mp.any(axis=1), score + rng.gumbel(size=score.shape), -np.inf)
    top = np.argpartition(-noisy, MAX_CANDIDATES - 1, axis=1)[:, :MAX_CANDIDATES]
    # The page is ordered by a score of its own noise: position says something about the dish, not everything.
    page = np.take_along_axis(score, top, axis=1) + rng.gumbel(0, 2.0, top.shape)
    return np.take_along_axis(top, np.argsort(-page, axis=1), axis=1)


def _dishes(world: World, merchant: Ints, rng: np.random.Generator) -> Ints:
    liked = 0.5 * world.dish_quality_mp[merchant]
    noisy = np.where(world.is_sold_mp[merchant], liked + rng.gumbel(size=liked.shape), -np.inf)
    return np.asarray(np.argmax(noisy, axis=2))


def _logits(
    world: World,
    state: State,
    spend_u: Floats,
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
    dear = np.log(world.price_mp[merchant, dish]) - spend_u[user][:, None]
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


def _averaged(click0: Floats, order0: Floats, wanted: Floats, seen_mean: Floats) -> tuple[Floats, Floats]:
    """Probabilities with the craving averaged out and the mean position of the request."""
    with_craving, without = _sigmoid(click0 + CRAVING), _sigmoid(click0)
    click = wanted * with_craving + (1 - wanted) * without
    order = wanted * with_craving * _sigmoid(order0 + CRAVING_ORDER) + (1 - wanted) * without * _sigmoid(
        order0
    )
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
    last = merchant[sated, order_ms[sated].argmax(axis=1)]
    today.last_cuisine_u[user[sated]] = world.cuisine[last]
    today.clicked_um[user[sated]] = 0.0
    today.hungry_s[session[sated]] = False


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def _softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))

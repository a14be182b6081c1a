"""What can be set about the simulated world; two equal settings give the same world, byte for byte.

The world is cut into districts, each with its own users, merchants and random streams. Nothing crosses a
district's border, so that districts can be simulated in any order and on any machine. Within a district a
day follows from the state that the days before it left (loyalty, fatigue, satiation); the state is a pure
function of settings, district and day, replayed from `first_day` when a day is asked for alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from spark_jobs.contract.clock import parse_day

# Append only: the position seeds the stream.
STREAMS = ("world", "day", "mess", "weather", "common", "bots", "change", "opening", "phenomena")
PHENOMENA = ("weekly", "following", "payday", "changing", "exploring")


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """Settings of a simulated world.

    Args:
        seed: Everything random follows from it.
        first_day: The day on which the world begins; earlier days do not exist.
        users: How many people use the app, bots not counted.
        impressions_a_day: About how many dishes are shown to them a day.
        users_a_district: Size of a district, the unit of work.
        merchants_a_district: Merchants in a district; each sells `dishes_a_merchant` dishes.
        dishes_a_merchant: Dishes of a merchant.
        active_share: Share of the users who open the app on a day.
        night_share: Share of a day's users who eat about midnight: a session begins at 23:36, give or take
            half an hour, and goes on after it.
        slow_order_rate: Share of orders that come an hour to 119 minutes after the click.
        newcomer_share: Share of users, merchants and dishes that appear during the first 60 days.
        price_change_rate: Share of dishes whose price changes from one day to the next.
        profile_change_rate: Share of users who move, change their budget or their membership.
        bots: Users that are programs.
        bot_impressions: Dishes shown to each bot a day.
        duplicate_rate: Share of log lines that a producer sends again.
        late_rate: Share of log lines that come one or two days late.
        null_rate: Share of log lines without a user id or a time; ten times as many have no weather.
        unknown_item_rate: Share of impressions of a dish that the catalogue does not have.
        malformed_rate: Share of log lines that are cut off or not JSON.
        phenomena: Names of `PHENOMENA` that are on, with commas between them; see `phenomena.py`.

    Raises:
        ValueError: A setting is out of range.
    """

    seed: int = 7
    first_day: str = "2026-02-16"
    users: int = 800
    impressions_a_day: int = 16_000
    users_a_district: int = 200
    merchants_a_district: int = 48
    dishes_a_merchant: int = 6
    active_share: float = 0.75
    night_share: float = 0.12
    slow_order_rate: float = 0.12
    newcomer_share: float = 0.06
    price_change_rate: float = 0.01
    profile_change_rate: float = 0.005
    bots: int = 1
    bot_impressions: int = 2_500
    duplicate_rate: float = 0.01
    late_rate: float = 0.01
    null_rate: float = 0.0005
    unknown_item_rate: float = 0.001
    malformed_rate: float = 0.0005
    phenomena: str = ""

    def __post_init__(self) -> None:
        parse_day(self.first_day)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_rate") and not 0 <= value <= 0.5:
                raise ValueError(f"{field.name} is {value}; a rate lies in [0, 0.5]")
        for name in ("users", "users_a_district", "dishes_a_merchant"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        for name in ("seed", "bots", "bot_impressions"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it cannot be negative")
        for name in self.phenomena.split(",") if self.phenomena else ():
            if name not in PHENOMENA:
                raise ValueError(f"phenomena has {name!r}; known are {', '.join(PHENOMENA)}")
        if self.merchants_a_district < MAX_CANDIDATES:
            raise ValueError(
                f"merchants_a_district is {self.merchants_a_district}; {MAX_CANDIDATES} is the least"
            )
        for name, low in (("active_share", 0.05), ("night_share", 0.0), ("newcomer_share", 0.0)):
            if not low <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it lies in [{low:g}, 1]")
        if not 1 <= self.requests_a_user <= 12:
            raise ValueError(
                f"{self.impressions_a_day} impressions a day and {self.users} users make "
                f"{self.requests_a_user:.2f} requests an active user; between 1 and 12 are "
                "possible: change users or impressions_a_day"
            )

    @property
    def requests_a_user(self) -> float:
        """Mean number of requests of an active user on a day, before orders end sessions early."""
        mean_candidates = (MIN_CANDIDATES + MAX_CANDIDATES) / 2
        return self.impressions_a_day / (self.users * self.active_share * mean_candidates)

    @property
    def districts(self) -> int:
        """Number of districts."""
        return -(-self.users // self.users_a_district)

    def has(self, phenomenon: str) -> bool:
        """Whether one of `PHENOMENA` is on."""
        return phenomenon in self.phenomena.split(",")

    def day_number(self, ds: str) -> int:
        """Days from the first day to `ds`.

        Raises:
            ValueError: `ds` lies before the first day.
        """
        number = (parse_day(ds) - parse_day(self.first_day)).days
        if number < 0:
            raise ValueError(f"{ds} lies before {self.first_day}, the first day of the simulated world")
        return number

    def rng(self, stream: str, *key: int) -> np.random.Generator:
        """The random stream of that name and key; independent of all others."""
        return np.random.default_rng([self.seed, STREAMS.index(stream), *key])


MIN_CANDIDATES = 4
MAX_CANDIDATES = 12

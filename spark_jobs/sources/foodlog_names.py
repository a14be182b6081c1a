"""The names that foodlog's raw logs use; the code of a name is 1 + its index, and 0 is "unknown".

Standard library only: the simulator writes these names, the reader maps them. Append, never reorder: a
trained model knows the codes.
"""

from __future__ import annotations

CITIES = (
    "harbour",
    "hillside",
    "old town",
    "river bend",
    "south gate",
    "west lake",
    "north field",
    "east bank",
)
AGES = ("under 20", "20-24", "25-29", "30-39", "40-49", "50 and over")
BUDGETS = ("thrifty", "low", "middle", "high", "lavish")
CUISINES = (
    "noodles",
    "rice bowls",
    "hotpot",
    "barbecue",
    "dumplings",
    "burgers",
    "pizza",
    "sushi",
    "curry",
    "salad",
    "congee",
    "fried chicken",
    "bakery",
    "bubble tea",
    "coffee",
    "fruit",
)
WEATHERS = ("clear", "cloudy", "rain", "storm", "snow", "heat")
PRICE_LIMITS = (12.0, 20.0, 30.0, 45.0, 70.0)  # yuan; band 1 is below the first, band 6 from the last on

"""Charts as SVG: values in, text out; each point says its value when the mouse rests on it.

Nothing here reads a file or a store. SVG needs neither a display nor a library to draw it, stands in a page
and in an image alike, and loads nothing. Axes have a label and numbers at both ends; names stand beside or
above what they name, never on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = {
    "candidate": "#1f6fb4",
    "champion": "#d9730d",
    "item_mean": "#777777",
    "oracle": "#2f8f4e",
    "best": "#8a5bb5",
}
_GRID, _INK = "#d9dde3", "#24292f"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A value with its interval, as one row of a chart.

    Args:
        name: What stands left of it.
        value: The value; None where there is none.
        low: Lower end of its interval, if any.
        high: Upper end of its interval, if any.
        colour: Of dot and interval.
        note: What stands right of it, such as the users it counts.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    colour: str = COLOURS["candidate"]
    note: str = ""


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers, about `most`, that cover a range: the first is not above it, the last not below."""
    span = max(high - low, 1e-6)
    raw = span / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _text(x: float, y: float, words: str, anchor: str = "start", colour: str = _INK, size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">'
        f"{escape(words)}</text>"
    )


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(label)}" font-family="sans-serif">'
        f"<title>{escape(label)}</title>{''.join(parts)}</svg>"
    )


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if value else "0"


def bars(rows: Sequence[Bar], title: str, axis: str, reference: float | None = None, row: int = 20) -> str:
    """Values with their intervals, one below the other on one axis.

    Args:
        rows: From the top.
        title: What it shows; read out by screen readers, and shown above the axis.
        axis: Label of the axis.
        reference: A value that the axis includes, drawn as a dashed line, such as chance.
        row: Height of a row, in pixels.
    """
    width, left, right, top = 860, 190, 130, 38
    held = [number for one in rows for number in (one.value, one.low, one.high) if number is not None]
    marks = ticks(min([*held, *([] if reference is None else [reference])], default=0.0),
                  max([*held, *([] if reference is None else [reference])], default=1.0))  # fmt: skip
    bottom = top + row * len(rows)

    def x(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (width - left - right)

    parts = [_text(left, 13, title, size=13), _text(width - right, 13, axis, "end", "#57606a")]
    for mark in marks:
        parts.append(f'<path d="M{x(mark):.1f} {top - 6}V{bottom}" stroke="{_GRID}"/>')
        parts.append(_text(x(mark), top - 10, _number(mark), "middle", "#57606a", 11))
    if reference is not None:
        parts.append(f'<path d="M{x(reference):.1f} {top - 6}V{bottom}" stroke="{_INK}" '
                     'stroke-dasharray="4 3"/>')  # fmt: skip
    for place, one in enumerate(rows):
        parts.append(_bar(one, x, top + row * (place + 0.5), left, width - right))
    return _svg(width, bottom + 6, title, parts)


def _bar(one: Bar, x: Callable[[float], float], y: float, left: int, right: int) -> str:
    parts = [_text(left - 8, y + 4, one.name, "end")]
    if one.value is None:
        return "".join([*parts, _text(left + 4, y + 4, "no value", colour="#57606a")])
    told = f"{one.name}: {one.value:.4f}"
    if one.low is not None and one.high is not None:
        told += f" [{one.low:.4f}, {one.high:.4f}]"
        parts.append(f'<path d="M{x(one.low):.1f} {y:.1f}H{x(one.high):.1f}" stroke="{one.colour}" '
                     'stroke-width="3" stroke-opacity=".45"/>')  # fmt: skip
    parts.append(f'<circle cx="{x(one.value):.1f}" cy="{y:.1f}" r="4.5" fill="{one.colour}"/>')
    parts.append(_text(right + 10, y + 4, f"{one.value:.4f}  {one.note}".rstrip()))
    return f'<g class="point"><title>{escape(told)} {escape(one.note)}</title>{"".join(parts)}</g>'


def lines(
    series: Mapping[str, Sequence[tuple[str, float]]], names: Mapping[str, str], title: str, axis: str
) -> str:
    """Values by day, a line each; what they are called stands above the chart.

    Args:
        series: By contender: (day, value), ascending.
        names: What contenders are called, where not as they are.
        title: What it shows.
        axis: Label of the vertical axis.
    """
    width, height, left, right = 860, 250, 60, 20
    days = sorted({day for points in series.values() for day, _ in points})
    held = [value for points in series.values() for _, value in points]
    marks = ticks(min(held, default=0.0), max(held, default=1.0), 5)
    top, bottom = 44, height - 34
    room = max(1, len(days) - 1)

    def x(day: str) -> float:
        return left + 30 + days.index(day) / room * (width - left - right - 60)

    def y(value: float) -> float:
        return bottom - (value - marks[0]) / (marks[-1] - marks[0]) * (bottom - top)

    parts = [_text(left, 13, title, size=13), _text(left, 30, axis, colour="#57606a")]
    for mark in marks:
        parts.append(f'<path d="M{left} {y(mark):.1f}H{width - right}" stroke="{_GRID}"/>')
        parts.append(_text(left - 6, y(mark) + 4, _number(mark), "end", "#57606a", 11))
    every = max(1, math.ceil(len(days) / 9))
    parts += [_text(x(day), height - 14, day, "middle", "#57606a", 11) for day in days[::every]]
    at = float(width - right)
    for who, points in reversed(list(series.items())):
        name, colour = names.get(who, who), COLOURS[who]
        at -= 7.2 * len(name) + 34
        parts.append(f'<path d="M{at:.1f} 26h18" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(_text(at + 23, 30, name))
        path = " ".join(f"{x(day):.1f},{y(value):.1f}" for day, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle class="point" cx="{x(day):.1f}" cy="{y(value):.1f}" r="4" fill="{colour}">'
            f"<title>{escape(name)}, {day}: {value:.4f}</title></circle>"
            for day, value in points
        ]
    return _svg(width, height, title, parts)


@dataclass(frozen=True, kw_only=True)
class Bin:
    """A bin of a calibration chart.

    Args:
        score: Its mean score.
        rate: The rate that was observed in it.
        error: Half of the rate's 95 % interval.
        rows: How many candidates it holds.
    """

    score: float
    rate: float
    error: float
    rows: int


def calibration(bins: Sequence[Bin], title: str, colour: str = COLOURS["candidate"]) -> str:
    """Observed rate against mean score, both axes from zero, with the diagonal of a calibrated model."""
    side, left, top = 260, 52, 40
    marks = ticks(0.0, max([one.score for one in bins] + [one.rate + one.error for one in bins],
                           default=1.0) or 1.0, 4)  # fmt: skip

    def x(value: float) -> float:
        return left + value / marks[-1] * side

    def y(value: float) -> float:
        return top + side - value / marks[-1] * side

    parts = [_text(left, 13, title, size=13), _text(left, 30, "observed rate (up), mean score (right)",
             colour="#57606a", size=11)]  # fmt: skip
    for mark in marks:
        parts.append(f'<path d="M{left} {y(mark):.1f}h{side}M{x(mark):.1f} {top}v{side}" stroke="{_GRID}"/>')
        parts.append(_text(left - 6, y(mark) + 4, _number(mark), "end", "#57606a", 11))
        parts.append(_text(x(mark), top + side + 16, _number(mark), "middle", "#57606a", 11))
    parts.append(f'<path d="M{x(0):.1f} {y(0):.1f}L{x(marks[-1]):.1f} {y(marks[-1]):.1f}" stroke="{_INK}" '
                 'stroke-dasharray="4 3"/>')  # fmt: skip
    for one in bins:
        low = max(0.0, one.rate - one.error)
        parts.append(
            f'<g class="point"><title>mean score {one.score:.4f}, observed {one.rate:.4f} '
            f'+- {one.error:.4f}, {one.rows} candidates</title><path d="M{x(one.score):.1f} {y(low):.1f}'
            f'V{y(one.rate + one.error):.1f}" stroke="{colour}" stroke-width="2" stroke-opacity=".5"/>'
            f'<circle cx="{x(one.score):.1f}" cy="{y(one.rate):.1f}" r="4.5" fill="{colour}"/></g>'
        )
    return _svg(left + side + 26, top + side + 24, title, parts)

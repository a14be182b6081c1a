"""The figures of a run in MLflow: loss, GAUC by day, calibration, GAUC by segment, sequence lengths.

Each function takes plain values and returns a figure; nothing here reads a file or a store. Drawn without a
display (`Figure` alone, no pyplot), so that figures neither pile up nor depend on a backend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Array = npt.NDArray[Any]

_TASKS = {"ctr": "CTR", "ctcvr": "CTCVR"}
_COLOURS = {"candidate": "#1f77b4", "champion": "#ff7f0e", "ctr": "#1f77b4", "ctcvr": "#2ca02c"}
_GREY = "#888888"
_NUM_BINS = 10


def _axes(title: str, num: int = 1, width: float = 6.4, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, num)))
    figure.suptitle(title, fontsize=11)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    return figure, axes


def loss(losses: Sequence[tuple[str, float]], title: str) -> Figure:
    """Training loss by step, with its running mean and a line where a day begins.

    Args:
        losses: (`<ds>/<pass>/<step>`, loss) in order.
        title: Names the run.
    """
    figure, (axes,) = _axes(f"Training loss, {title}", width=8.0)
    values = np.array([value for _, value in losses])
    days = [name.split("/")[0] for name, _ in losses]
    window = max(1, len(values) // 50)
    pale = 0.3 if window > 1 else 1.0
    axes.plot(values, color=_COLOURS["candidate"], alpha=pale, linewidth=0.8, label="step")
    if len(values) >= window > 1:
        mean = np.convolve(values, np.ones(window) / window, "valid")
        axes.plot(
            np.arange(window - 1, len(values)),
            mean,
            color=_COLOURS["candidate"],
            label=f"mean of {window} steps",
        )
    for place, day in enumerate(days):
        if place == 0 or day != days[place - 1]:
            axes.axvline(place, color=_GREY, linewidth=0.6)
            axes.text(place, 1.0, f" {day}", transform=axes.get_xaxis_transform(), fontsize=7, va="top",
                      rotation=90)  # fmt: skip
    axes.set(xlabel="step", ylabel="binary cross entropy, both tasks")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, loc="upper right")
    return figure


def gauc_by_day(days: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """GAUC of the versions by the day that they were judged on.

    Args:
        days: One a version: `ds`, `version`, `ctr_gauc`, `ctcvr_gauc`, and whether it was `promoted`.
        title: Names the dataset and preset.
    """
    figure, panels = _axes(f"GAUC by day, {title}", num=2, width=9.0)
    names = sorted({str(day["ds"]) for day in days})
    for axes, (task, label) in zip(panels, _TASKS.items(), strict=True):
        points = [day for day in days if day.get(f"{task}_gauc") is not None]
        x = [names.index(str(day["ds"])) for day in points]
        y = [float(day[f"{task}_gauc"]) for day in points]
        axes.plot(x, y, color=_COLOURS[task], marker="o", markersize=4, linewidth=1.2, label="candidate")
        promoted = [place for place, day in enumerate(points) if day["promoted"]]
        axes.scatter([x[p] for p in promoted], [y[p] for p in promoted], s=90, facecolors="none",
                     edgecolors="black", label="promoted", zorder=3)  # fmt: skip
        axes.set(title=f"{label} GAUC", xticks=range(len(names)))
        axes.set_xticklabels(names, rotation=45, ha="right", fontsize=7)
        axes.margins(x=0.1, y=0.25)
        axes.legend(fontsize=8)
    return figure


def calibration(
    labels: Mapping[str, Array], scores: Mapping[str, Array], title: str, weight: Array | None = None
) -> Figure:
    """Observed rate against mean score in bins of equal size, with 95 % intervals.

    Args:
        labels: 0 or 1 by task (`ctr`, `ctcvr`), `[N]` each.
        scores: Probabilities by task, `[N]` each.
        title: Names the run.
        weight: How many candidates each stands for, `[N]`; one each by default.
    """
    figure, panels = _axes(f"Calibration, {title}", num=2, width=9.0)
    for axes, (task, label) in zip(panels, _TASKS.items(), strict=True):
        order = np.argsort(scores[task], kind="stable")
        parts = [part for part in np.array_split(order, _NUM_BINS) if len(part)]
        weights = [None if weight is None else weight[part] for part in parts]
        pairs = list(zip(parts, weights, strict=True))
        mean = np.array([np.average(scores[task][part], weights=of) for part, of in pairs])
        rate = np.array([np.average(labels[task][part], weights=of) for part, of in pairs])
        error = np.array([1.96 * np.sqrt(max(r * (1 - r), 1e-9) / len(p)) for r, p in zip(rate, parts,
                          strict=True)])  # fmt: skip
        top = max(float(mean.max(initial=0)), float((rate + error).max(initial=0))) * 1.05 or 1.0
        axes.plot([0, top], [0, top], color=_GREY, linestyle="--", linewidth=1, label="calibrated")
        axes.errorbar(mean, rate, yerr=error, color=_COLOURS[task], marker="o", markersize=4, capsize=2,
                      linewidth=1.2, label=f"{len(parts)} bins of equal size")  # fmt: skip
        axes.set(title=label, xlabel="mean score", ylabel="observed rate", xlim=(0, top), ylim=(0, top))
        axes.legend(fontsize=8, loc="upper left")
    return figure


def gauc_by_segment(segments: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> Figure:
    """GAUC of candidate and champion in each segment of users, with the users it counts.

    Args:
        segments: By `candidate` and `champion`, by segment: metrics (`ctr_gauc`, `ctr_gauc_users`, ...).
        title: Names the run and the champion.
    """
    figure, panels = _axes(f"GAUC by segment, {title}", num=2, width=10.0)
    names = sorted(segments.get("candidate", {}), key=_place_of)
    bars = [who for who in ("candidate", "champion") if segments.get(who)]
    for axes, (task, label) in zip(panels, _TASKS.items(), strict=True):
        for place, who in enumerate(bars):
            values = [_or_nan(segments[who].get(name, {}).get(f"{task}_gauc")) for name in names]
            shift = (place - (len(bars) - 1) / 2) * 0.38
            axes.bar(np.arange(len(names)) + shift, values, 0.36, color=_COLOURS[who], label=who)
        users = [_or_nan(segments["candidate"][name].get(f"{task}_gauc_users")) for name in names]
        axes.axhline(0.5, color=_GREY, linestyle="--", linewidth=1)
        axes.set(title=f"{label} GAUC", xticks=range(len(names)), ylim=(0.4, None))
        counted = ["no users" if np.isnan(u) else f"{u:.0f} users" for u in users]
        ticks = [f"{n.replace('_', chr(10), 1).replace('_', ' ')}\n{c}" for n, c in zip(names, counted,
                 strict=True)]  # fmt: skip
        axes.set_xticklabels(ticks, fontsize=8)
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.15)
        axes.legend(fontsize=8, loc="upper left", ncols=2)
    return figure


def sequence_lengths(lengths: Mapping[str, Array], title: str) -> Figure:
    """Distribution of the lengths of the token groups over the day's rows.

    Args:
        lengths: By group (`static`, `realtime`, `candidate`), `[rows]` each.
        title: Names dataset and day.
    """
    figure, panels = _axes(f"Sequence lengths, {title}", num=len(lengths), width=3.4 * len(lengths))
    for axes, (group, values) in zip(panels, lengths.items(), strict=True):
        greatest = int(values.max(initial=1))
        step = -(-(greatest + 1) // 40)  # whole lengths a bin, so that bins hold equally many
        bins = np.arange(0, greatest + step + 1, step) - 0.5
        axes.hist(values, bins=bins.tolist(), color=_COLOURS["candidate"])
        if len(values):
            half, most = np.percentile(values, (50, 99))
            for value, name in ((half, "median"), (most, "99 %")):
                style = "-" if name == "median" else "--"
                axes.axvline(value, color="black", linestyle=style, linewidth=1, label=f"{name} {value:.0f}")
            axes.legend(fontsize=8)
        axes.set(title=f"{group} (greatest {greatest})", xlabel="tokens", ylabel="rows")
        axes.margins(y=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _place_of(segment: str) -> tuple[int, str]:
    """Segments in the order of the first number in their names; those without one come first."""
    numbers = re.findall(r"\d+", segment)
    return (int(numbers[0]) if numbers else -1, segment)


def _or_nan(value: Any) -> float:
    return float("nan") if value is None else float(value)

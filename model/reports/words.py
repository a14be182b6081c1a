"""What a day came to, in words: one sentence for the whole day, one for each of its presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.reports.records import Day, Judged


def headline(day: Day) -> str:
    """The day in one sentence: who was promoted, or why nobody was."""
    promoted = [one for one in day.runs if (one.decision or {}).get("promoted")]
    if promoted:
        return f"{_named(promoted[0])} was promoted to champion."
    alarms = [one for one in day.runs if (one.decision or {}).get("alarm")]
    if alarms:
        return f"Alarm: {', '.join(map(_named, alarms))} not promoted; somebody has to look."
    if failed := failed_gates(day):
        return f"Stopped by a gate: {', '.join(failed)}."
    champion = next((d["champion"] for one in day.runs if (d := one.decision) and d.get("champion")), None)
    if champion:
        return f"The champion stayed: version {champion['version']} ({champion['preset']})."
    if day.runs:
        return "Not decided yet." if any(one.decision is None for one in day.runs) else "Nobody was promoted."
    return "No model was trained for this day."


def failed_gates(day: Day) -> list[str]:
    """Gates of the day that did not pass and that nobody allowed, by name."""
    named = {f"gate_{suite}": of.get(day.ds) for suite, of in day.verdicts.items()}
    named |= {f"gate_evaluation of {one.preset}": one.verdict for one in day.runs}
    return [name for name, verdict in named.items() if verdict and standing(verdict) == "failed"]


def standing(verdict: Mapping[str, Any] | None) -> str:
    """`passed`, `allowed`, `failed`, or `not judged` where there is no verdict."""
    if verdict is None:
        return "not judged"
    if verdict["success"]:
        return "passed"
    return "allowed" if verdict.get("allowed") else "failed"


def decision(one: Judged) -> str:
    """`promoted`, `not promoted`, with the alarm, or `not decided`."""
    if one.decision is None:
        return "not evaluated" if one.evaluation is None else "not decided"
    verdict = "promoted" if one.decision["promoted"] else "not promoted"
    return f"{verdict}, alarm" if one.decision["alarm"] else verdict


def reasons(one: Judged) -> str:
    """Why, as the decision's record says it."""
    return "; ".join((one.decision or {}).get("reasons") or ())


def _named(one: Judged) -> str:
    version = ((one.decision or {}).get("candidate") or {}).get("version")
    return one.preset if version is None else f"{one.preset} (version {version})"

"""What a candidate must be beside others: the champion, the best of the last days, the day's other presets.

The rule for daily retraining: a candidate with newer data and the champion's preset replaces the champion
unless it is worse by more than the noise of a seed. So models do not age. Small losses do not add up: the
same bounds hold against the best version of the last days, scored on the same day. Frozen GAUC decides, since
it alone compares rankings fairly; what is served are live scores, so their AUC, log loss, calibration and
GAUC by request may not fall either. Of the same preset a fall that is larger than any believable gain is an
alarm: such a model is not a little worse, something is broken.

Another preset has to win: by a paired bootstrap over users, against the champion and against the champion's
own preset trained on the same days. Else a preset that is no better would win for being a day newer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from model.judging.decision import TASKS, Case, RuleOutcome, deciding, judgement, number


def _name(who: str, name: str) -> str:
    return name if who == "champion" else f"{who}_{name}"


def _is_broken(case: Case, who: str, is_fall: bool) -> bool:
    """Whether a fall is an alarm: of another preset it only says that the preset is not good."""
    return is_fall and (case.evaluation[who].get("preset") or case.candidate.preset) == case.candidate.preset


def not_worse(case: Case) -> Iterator[RuleOutcome]:
    """Primary and secondary metric do not fall by more than the noise of a seed."""
    settings = case.settings
    bounds = {settings.primary: settings.max_loss, settings.secondary: settings.max_loss_secondary}
    for who, words in case.measures.items():
        for name, most in bounds.items():
            outcome = _no_fall(case, who, words, name, most, _name(who, name))
            yield replace(outcome, is_deciding=who == "champion")


def _no_fall(case: Case, who: str, words: str, name: str, most: float, rule: str) -> RuleOutcome:
    value, other = case.metric("candidate", name), case.metric(who, name)
    change = value - other
    return RuleOutcome(
        rule=rule,
        holds=change >= -most,
        is_alarm=_is_broken(case, who, change < -case.settings.max_auc_gain),
        reason=f"{name} {value:.4f} against {other:.4f} of {words} ({change:+.4f}, least {-most:+})",
    )


def as_served(case: Case) -> Iterator[RuleOutcome]:
    """Live scores, as serving gives them, rank and predict no worse than those of what serves."""
    settings = case.settings
    bounds = {"auc": settings.max_loss_auc, "gauc_request": settings.max_loss_request}
    for who, words in case.measures.items():
        for task in TASKS:
            for kind, most in bounds.items():
                name = f"{task}_{kind}"
                value, other = case.metric("candidate", name), case.metric(who, name)
                if kind == "gauc_request" and math.isnan(value) and math.isnan(other):
                    continue  # requests of one candidate, or none with both labels
                yield _no_fall(case, who, words, name, most, f"{_name(who, name)}_served")
            yield _log_loss(case, who, words, f"{task}_log_loss")
            yield _calibration(case, who, words, task)


def _log_loss(case: Case, who: str, words: str, name: str) -> RuleOutcome:
    value, other = case.metric("candidate", name), case.metric(who, name)
    most = case.settings.max_log_loss_rise
    return RuleOutcome(
        rule=f"{_name(who, name)}_served",
        holds=value <= other * (1 + most),
        is_alarm=_is_broken(case, who, value > other * (1 + case.settings.broken_log_loss_rise)),
        reason=f"{name} {value:.4f} against {other:.4f} of {words}, up to {most:.0%} more",
    )


def _calibration(case: Case, who: str, words: str, task: str) -> RuleOutcome:
    name, rate = f"{task}_calibration_error", number(case.evaluation.get(_RATES[task]))
    value, other = case.metric("candidate", name), case.metric(who, name)
    most = case.settings.max_calibration_loss * rate
    reason = f"{name} {value:.4f} against {other:.4f} of {words}, up to {most:.4f} more"
    return judgement(f"{_name(who, name)}_served", value - other <= most, reason)


_RATES = {"ctr": "click_rate", "ctcvr": "conversion_rate"}


def another_preset(case: Case) -> Iterator[RuleOutcome]:
    """A preset other than the champion's wins by a paired bootstrap over users, on equal terms."""
    if case.champion is None or case.champion.preset == case.candidate.preset:
        return
    own = case.champion.preset
    if "champion" in case.measures:
        yield _win(case, "wins_over_champion", case.evaluation["champion"], case.measures["champion"])
    beside: Mapping[str, Any] = (case.evaluation.get("beside") or {}).get(own) or {}
    if not beside:
        reason = (
            f"{own}, the champion's preset, was not judged beside it: --preset {own} {case.candidate.preset}"
        )
        yield judgement("beside_champions_preset", False, reason)
        return
    theirs, ours = frozenset(beside.get("seen_days") or ()), case.candidate.seen_days
    reason = f"{case.candidate.preset} has seen {len(ours)} days, {own} {len(theirs)}"
    yield judgement("same_seen_days", ours == theirs, reason + ("" if ours == theirs else ": not the same"))
    yield _win(case, "wins_over_champions_preset", beside, f"{own} of the same days")


def _win(case: Case, rule: str, other: Mapping[str, Any], words: str) -> RuleOutcome:
    name = case.settings.primary
    gain = (other.get("paired") or {}).get(name) or {}
    low, middle, high = (number(gain.get(key)) for key in ("low", "gain", "high"))
    reason = f"{name} {middle:+.4f} [{low:+.4f}, {high:+.4f}] against {words}: a win is wholly above 0"
    return deciding(rule, low > 0, reason)


def no_segment_down(case: Case) -> Iterator[RuleOutcome]:
    """No segment of users pays for the rest."""
    segments = case.evaluation.get("segments") or {}
    ours, theirs = segments.get("candidate") or {}, segments.get("champion") or {}
    settings = case.settings
    for segment in sorted(theirs) if "champion" in case.measures else ():
        for name in (settings.primary, settings.secondary):
            users = number(theirs[segment].get(f"{name}_users"))
            if not users >= settings.min_segment_users:
                continue
            change = number((ours.get(segment) or {}).get(name)) - number(theirs[segment].get(name))
            yield judgement(
                f"segment_{segment}_{name}",
                change >= -settings.max_segment_loss,
                f"{name} of {segment} {change:+.4f}, least {-settings.max_segment_loss:+}",
            )

"""Whether a candidate becomes the champion: rules as values, default deny, one reason for each rule.

`decide_day` is a pure function of evaluations and of who candidates and champion are; it needs neither MLflow
nor the lake. A rule that finds its number missing or not finite does not hold. Rules are of two kinds: a
*judgement* leaves the champion in place and is a normal day; an *alarm* (a leak, a broken file, numbers of
the wrong objects) also ends the command with exit code 1, so that somebody looks.

Here is what a model must be by itself; `comparison.py` has what it must be beside others. The presets of a
day are decided together: one that is not the champion's and holds every rule has beaten the champion's own,
trained on the same days, and goes before it; of several, and where there is no champion yet, the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from model.judging.comparison import another_preset, as_served, no_segment_down, not_worse
from model.judging.decision import TASKS, Case, Decision, RuleOutcome, alarm, deciding, judgement

_SAME = 1e-12
FLOOR = "item_mean"
CHAMPION_RULE = "champion_digest"  # broken, nothing was decided: the champion changed in between


def decide_day(cases: Mapping[str, Case]) -> dict[str, Decision]:
    """Decides on the presets of a day together; at most one is promoted.

    Args:
        cases: By preset; all of one day, dataset and champion.
    """
    decisions = {preset: decide(case) for preset, case in cases.items()}
    versions = {str(case.evaluation.get("day_version")) for case in cases.values()}
    if len(versions) > 1:
        reason = f"judged on versions {', '.join(sorted(versions))} of the day: evaluate the presets together"
        return {p: _with(decision, alarm("same_samples", False, reason)) for p, decision in decisions.items()}
    sound = {preset: cases[preset] for preset, decision in decisions.items() if decision.promoted}
    others = {p: case for p, case in sound.items() if case.champion is None or case.champion.preset != p}
    if not sound:
        return decisions
    field = others or sound
    primary = next(iter(field.values())).settings.primary
    chosen = max(field, key=lambda preset: field[preset].metric("candidate", primary))
    for preset, case in sound.items():
        ours, best = case.metric("candidate", primary), sound[chosen].metric("candidate", primary)
        reason = f"{primary} {ours:.4f}, that of {chosen}, the day's choice, {best:.4f}"
        outcome = deciding("choice_of_the_day", preset == chosen, reason)
        if len(sound) > 1:
            decisions[preset] = _with(decisions[preset], outcome)
    return decisions


def _with(decision: Decision, outcome: RuleOutcome) -> Decision:
    return Decision(promoted=decision.promoted and outcome.holds, findings=(*decision.findings, outcome))


def decide(case: Case) -> Decision:
    """Applies every rule; all must hold."""
    findings = tuple(finding for rule in RULES for finding in rule(case))
    return Decision(promoted=bool(findings) and all(f.holds for f in findings), findings=findings)


def right_objects(case: Case) -> Iterator[RuleOutcome]:
    """The evaluation is of this day, this candidate and this champion, which are two models."""
    evaluation = case.evaluation
    evaluated = evaluation.get("candidate") or {}
    scored, version = evaluation.get("ds"), evaluation.get("samples_version")
    yield alarm("same_day", scored == case.ds, f"evaluated on {scored}, asked for {case.ds}")
    is_known = isinstance(version, int)
    yield alarm("samples_version", is_known, f"both scored on samples version {version}")
    yield alarm(
        "candidate_digest",
        bool(case.candidate.digest) and evaluated.get("digest") == case.candidate.digest,
        f"evaluated {str(evaluated.get('digest'))[:12]}, registered {case.candidate.digest[:12]}",
    )
    yield alarm("ready", case.candidate.status == "READY", f"the version's status is {case.candidate.status}")
    other = evaluation.get("champion") or {}
    if case.champion is None or case.ds not in case.champion.seen_days:
        present = "" if case.champion is None else case.champion.digest
        number = "none" if case.champion is None else f"version {case.champion.version}"
        yield alarm(
            CHAMPION_RULE,
            (other.get("digest") or "") == present,
            f"compared with {str(other.get('digest') or 'none')[:12]}, "
            f"the champion is {number} ({present[:12]}): evaluate again, then promote",
        )
    if not other:
        return
    names = [f"{task}_{name}" for task in TASKS for name in ("auc", "gauc", "log_loss")]
    pairs = [(case.metric("candidate", name), case.metric("champion", name)) for name in names]
    differs = any(abs(a - b) > _SAME for a, b in pairs) and case.candidate.digest != other.get("digest")
    yield alarm(
        "two_models",
        differs,
        "candidate and champion are two models with different scores"
        if differs
        else "candidate and champion have the very same numbers: one was compared with itself",
    )


def newer_data(case: Case) -> Iterator[RuleOutcome]:
    """The candidate has not seen the day it is judged on, nor older or fewer days than the champion.

    A backfill trains models of older days: each would be judged on a day that the champion may know, and
    could only take the present back to the past.
    """
    seen = case.candidate.seen_days
    unseen = bool(seen) and max(seen) < case.ds
    yield alarm("unseen_day", unseen, f"the candidate has seen {_days(seen)}, judged on {case.ds}")
    if case.champion is not None:
        known = case.champion.seen_days
        is_newer = bool(seen) and (not known or (max(seen) >= max(known) and len(seen) >= len(known)))
        yield deciding(
            "newer_data", is_newer, f"the candidate has seen {_days(seen)}, the champion {_days(known)}"
        )
        yield judgement(
            "fair_day",
            case.ds not in known,
            f"the champion has {'' if case.ds in known else 'not '}seen {case.ds}"
            + ("" if case.ds not in known else ", so that it is no measure of this day"),
        )


def _days(days: frozenset[str]) -> str:
    return f"{len(days)} days up to {max(days)}" if days else "no day"


def enough_users(case: Case) -> Iterator[RuleOutcome]:
    """GAUC counts enough users to mean something."""
    for task in TASKS:
        users = case.metric("candidate", f"{task}_gauc_users")
        least = case.settings.min_users
        yield judgement(f"{task}_users", users >= least, f"{task}_gauc counts {users:g} users, least {least}")


def calibrated(case: Case) -> Iterator[RuleOutcome]:
    """Scores are probabilities: labels over predicted labels (COPC) is near 1."""
    low, high = case.settings.copc
    for task in TASKS:
        copc = case.metric("candidate", f"{task}_copc")
        yield judgement(f"{task}_copc", low <= copc <= high, f"{task}_copc {copc:.3f}, in [{low}, {high}]")


def defined(case: Case) -> Iterator[RuleOutcome]:
    """Every metric that a rule reads is a finite number; none is undefined for want of users to count."""
    names = {case.settings.primary, case.settings.secondary}
    kinds = ("auc", "gauc", "log_loss", "copc", "calibration_error", "gauc_users")
    names |= {f"{task}_{kind}" for task in TASKS for kind in kinds}
    for who in ("candidate", *case.measures):
        for name in sorted(names):
            value = case.metric(who, name)
            users = case.metric(who, f"{name.split('_')[0]}_gauc_users")
            if not math.isfinite(value):
                reason = f"{name} of the {who} is {value}"
                yield RuleOutcome(rule=f"{who}_{name}", holds=False, is_alarm=users != 0, reason=reason)


def believable(case: Case) -> Iterator[RuleOutcome]:
    """Better than chance, and no better than can be, which is a leak; `defined` has stopped a NaN."""
    settings = case.settings
    for task in TASKS:
        auc = case.metric("candidate", f"{task}_auc")
        reason = f"{task}_auc {auc:.4f}, over {settings.min_auc}"
        yield judgement(f"{task}_chance", auc > settings.min_auc, reason)
        oracle = case.baseline("oracle", f"{task}_auc")
        if not math.isnan(oracle):
            text = f"{task}_auc {auc:.4f}, that of the true probabilities {oracle:.4f}"
            yield alarm(f"{task}_oracle", not auc > oracle + settings.max_over_oracle, text)
    for name, ceiling in settings.ceilings.items():
        value = case.metric("candidate", name)
        reason = f"{name} {value:.4f}, believable up to {ceiling}"
        yield alarm(f"{name}_ceiling", not value > ceiling, reason)
    if "champion" in case.measures:
        for name in (f"{task}_{kind}" for task in TASKS for kind in ("auc", "gauc")):
            gain = case.metric("candidate", name) - case.metric("champion", name)
            reason = f"{name} {gain:+.4f} against the champion, believable up to {settings.max_auc_gain:+}"
            if case.metric("champion", "days_seen") < settings.settled_days:
                reason += f", but for a champion that has seen fewer than {settings.settled_days} days"
                yield alarm(f"{name}_gain", True, reason)
            else:
                yield alarm(f"{name}_gain", not gain > settings.max_auc_gain, reason)


def above_the_floor(case: Case) -> Iterator[RuleOutcome]:
    """No model serves that the item's mean beats, the first one neither: ranking by it needs no model."""
    if not (case.evaluation.get("baselines") or {}).get(FLOOR):
        yield judgement(FLOOR, True, "the dataset declares no rate by item: there is no floor")
        return
    names = dict.fromkeys((case.settings.primary, case.settings.secondary))
    names |= dict.fromkeys(f"{task}_{kind}" for kind in ("auc", "gauc_request", "log_loss") for task in TASKS)
    for name in names:
        value, floor = case.metric("candidate", name), case.baseline(FLOOR, name)
        if math.isnan(floor):
            continue  # nothing to count, e.g. no request with several candidates
        holds = value <= floor if name.endswith("log_loss") else value >= floor
        yield judgement(f"{FLOOR}_{name}", holds, f"{name} {value:.4f}, the item mean's {floor:.4f}")


def first_of_all(case: Case) -> Iterator[RuleOutcome]:
    """Without a champion the rules above and the choice among the day's presets are all there is."""
    if case.champion is None:
        for name in (case.settings.primary, case.settings.secondary):
            value = case.metric("candidate", name)
            yield deciding(name, math.isfinite(value), f"{name} {value:.4f}, with no champion to beat")


RULES: tuple[Callable[[Case], Iterator[RuleOutcome]], ...] = (
    right_objects,
    defined,
    newer_data,
    enough_users,
    calibrated,
    believable,
    above_the_floor,
    first_of_all,
    not_worse,
    as_served,
    another_preset,
    no_segment_down,
)

"""Whether a candidate becomes the champion: rules as values, default deny, one reason for each rule.

`decide` is a pure function of an evaluation and of who candidate and champion are; it needs neither MLflow
nor the lake. A rule that finds its number missing or not finite does not hold. Rules are of two kinds: a
*judgement* leaves the champion in place and is a normal day; an *alarm* (a leak, a broken file, numbers of
the wrong objects) also ends the command with exit code 1, so that somebody looks.

The rule for daily retraining: a candidate with newer data and the same preset replaces the champion unless
it is worse by more than the noise of a seed (`max_loss`); another preset has to be at least as good
(`min_gain_of_new_preset`). So models do not age, and a new architecture has to earn its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from model.judging.decision import TASKS, Case, Decision, RuleOutcome, number

_SAME = 1e-12


def decide(case: Case) -> Decision:
    """Applies every rule; all must hold."""
    findings = tuple(finding for rule in RULES for finding in rule(case))
    return Decision(promoted=bool(findings) and all(f.holds for f in findings), findings=findings)


def _alarm(rule: str, holds: bool, reason: str) -> RuleOutcome:
    return RuleOutcome(rule=rule, holds=holds, is_alarm=True, reason=reason)


def _judgement(rule: str, holds: bool, reason: str) -> RuleOutcome:
    return RuleOutcome(rule=rule, holds=holds, is_alarm=False, reason=reason)


def _deciding(rule: str, holds: bool, reason: str) -> RuleOutcome:
    return RuleOutcome(rule=rule, holds=holds, is_alarm=False, reason=reason, is_deciding=True)


def right_objects(case: Case) -> Iterator[RuleOutcome]:
    """The evaluation is of this day, this candidate and this champion, which are two models."""
    found = case.evaluation
    evaluated = found.get("candidate") or {}
    yield _alarm(
        "same_day", found.get("ds") == case.ds, f"evaluated on {found.get('ds')}, asked for {case.ds}"
    )
    is_known = isinstance(found.get("samples_version"), int)
    yield _alarm(
        "samples_version", is_known, f"both scored on samples version {found.get('samples_version')}"
    )
    yield _alarm(
        "candidate_digest",
        bool(case.candidate.digest) and evaluated.get("digest") == case.candidate.digest,
        f"evaluated {str(evaluated.get('digest'))[:12]}, registered {case.candidate.digest[:12]}",
    )
    yield _alarm(
        "ready", case.candidate.status == "READY", f"the version's status is {case.candidate.status}"
    )
    if case.champion is None:
        return
    other = found.get("champion") or {}
    yield _alarm(
        "champion_digest",
        other.get("digest") == case.champion.digest,
        f"compared with {str(other.get('digest'))[:12]}, "
        f"the champion is version {case.champion.version} ({case.champion.digest[:12]})",
    )
    names = [f"{task}_{name}" for task in TASKS for name in ("auc", "gauc", "log_loss")]
    pairs = [(case.metric("candidate", name), case.metric("champion", name)) for name in names]
    differs = any(abs(a - b) > _SAME for a, b in pairs) and case.candidate.digest != case.champion.digest
    yield _alarm(
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
    yield _alarm("unseen_day", unseen, f"the candidate has seen {_days(seen)}, judged on {case.ds}")
    if case.champion is not None:
        known = case.champion.seen_days
        is_newer = bool(seen) and (not known or (max(seen) >= max(known) and len(seen) >= len(known)))
        yield _deciding(
            "newer_data", is_newer, f"the candidate has seen {_days(seen)}, the champion {_days(known)}"
        )
        yield _judgement(
            "fair_day",
            case.ds not in known,
            f"the champion has {'' if case.ds in known else 'not '}seen {case.ds}",
        )


def _days(days: frozenset[str]) -> str:
    return f"{len(days)} days up to {max(days)}" if days else "no day"


def enough_users(case: Case) -> Iterator[RuleOutcome]:
    """GAUC counts enough users to mean something."""
    for task in TASKS:
        users = case.metric("candidate", f"{task}_gauc_users")
        least = case.settings.min_users
        yield _judgement(
            f"{task}_users", users >= least, f"{task}_gauc counts {users:g} users, least {least}"
        )


def calibrated(case: Case) -> Iterator[RuleOutcome]:
    """Scores are probabilities: labels over predicted labels (COPC) is near 1."""
    low, high = case.settings.copc
    for task in TASKS:
        copc = case.metric("candidate", f"{task}_copc")
        yield _judgement(f"{task}_copc", low <= copc <= high, f"{task}_copc {copc:.3f}, in [{low}, {high}]")


def defined(case: Case) -> Iterator[RuleOutcome]:
    """Every metric that a rule reads is a finite number; none is undefined for want of users to count."""
    names = {case.settings.primary, case.settings.secondary}
    names |= {
        f"{task}_{kind}" for task in TASKS for kind in ("auc", "gauc", "log_loss", "copc", "gauc_users")
    }
    for who in ("candidate", "champion") if case.champion is not None else ("candidate",):
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
        yield _judgement(f"{task}_chance", auc > settings.min_auc, reason)
        oracle = number(((case.evaluation.get("baselines") or {}).get("oracle") or {}).get(f"{task}_auc"))
        if not math.isnan(oracle):
            text = f"{task}_auc {auc:.4f}, that of the true probabilities {oracle:.4f}"
            yield _alarm(f"{task}_oracle", not auc > oracle + settings.max_over_oracle, text)
    for name, ceiling in settings.ceilings.items():
        value = case.metric("candidate", name)
        reason = f"{name} {value:.4f}, believable up to {ceiling}"
        yield _alarm(f"{name}_ceiling", not value > ceiling, reason)
    if case.champion is not None:
        for name in (f"{task}_{kind}" for task in TASKS for kind in ("auc", "gauc")):
            gain = case.metric("candidate", name) - case.metric("champion", name)
            reason = f"{name} {gain:+.4f} against the champion, believable up to {settings.max_auc_gain:+}"
            yield _alarm(f"{name}_gain", not gain > settings.max_auc_gain, reason)


def better(case: Case) -> Iterator[RuleOutcome]:
    """The primary metric decides; the secondary must not fall much."""
    settings = case.settings
    if case.champion is None:
        for name in (settings.primary, settings.secondary):
            value = case.metric("candidate", name)
            yield _deciding(name, math.isfinite(value), f"{name} {value:.4f}, with no champion to beat")
        return
    same = case.candidate.preset == case.champion.preset
    least = -settings.max_loss if same else settings.min_gain_of_new_preset
    for name, bound in ((settings.primary, least), (settings.secondary, -settings.max_loss_secondary)):
        value, other = case.metric("candidate", name), case.metric("champion", name)
        yield _deciding(
            name,
            value - other >= bound,
            f"{name} {value:.4f} against {other:.4f} of version {case.champion.version} "
            f"({value - other:+.4f}, least {bound:+})",
        )


def no_segment_down(case: Case) -> Iterator[RuleOutcome]:
    """No segment of users pays for the rest."""
    if case.champion is None:
        return
    segments = case.evaluation.get("segments") or {}
    ours, theirs = segments.get("candidate") or {}, segments.get("champion") or {}
    settings = case.settings
    for segment in sorted(theirs):
        for name in (settings.primary, settings.secondary):
            users = number(theirs[segment].get(f"{name}_users"))
            if not users >= settings.min_segment_users:
                continue
            change = number((ours.get(segment) or {}).get(name)) - number(theirs[segment].get(name))
            yield _judgement(
                f"segment_{segment}_{name}",
                change >= -settings.max_segment_loss,
                f"{name} of {segment} {change:+.4f}, least {-settings.max_segment_loss:+}",
            )


RULES: tuple[Callable[[Case], Iterator[RuleOutcome]], ...] = (
    right_objects,
    defined,
    newer_data,
    enough_users,
    calibrated,
    believable,
    better,
    no_segment_down,
)

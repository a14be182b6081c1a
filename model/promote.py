"""Decides which of a day's candidates becomes the champion, if any.

    python -m model.promote --dataset foodlog --ds 2026-03-03 --preset tiny user_tower

Default deny: every rule of `model/judging/rules.py` has to hold; the presets of a day are decided together. A
decision is taken once: it goes to `promotion.json` beside the run, to the version's tags and, in words, to
its description, before the alias moves; so a rerun finds what was decided, finishes it if it was interrupted,
and decides nothing twice. A run that was evaluated again after its decision gets a further record,
`promotion-2.json`, which says what the rules would say now and moves nothing. One command at a time changes a
dataset's registry; the champion is read again under that lease, and where it is another than the candidates
were compared with, nothing is decided: of two promotions at once, one wins. At the end the
report of the day is written (`model/reports/page.py`).

Exit code 0: decided, promoted or not (a champion that stays is a normal day). 1: an alarm, such as a leak or
numbers of the wrong model, or no decision could be made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.judging.decision import Case, Contender, Decision
from model.judging.records import PROMOTION, as_json, newest, path_of, records, write_record
from model.judging.rules import CHAMPION_RULE, FLOOR, decide_day
from model.registry import pages, tracking
from model.registry import versions as registry
from model.registry.measures import LEVEL
from model.registry.record import read_evaluation, require_passed
from model.registry.versions import RegistryError, Version
from model.reports import page
from model.runs.files import write_text
from model.runs.store import Run, load_run
from spark_jobs.contract import command
from spark_jobs.contract.command import RefusedError
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.phases import reach
from spark_jobs.lake.lease import Lease

logger = logging.getLogger(__name__)

PROMOTED, REJECTED = "promoted", "rejected"


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A run with its evaluation and its version."""

    run: Run
    evaluation: Mapping[str, Any]
    version: Version

    @property
    def judged(self) -> str:
        """Digest of its evaluation."""
        return evaluation_digest(self.evaluation)


def promote(dataset: Dataset, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Decides on the versions of a day's runs, or finishes and repeats what was decided.

    Returns:
        By preset: `promoted`, `alarm`, `version`, `champion` (its number now), `reasons`, `changed`, and
        `report`, the page of the day, which also goes with the MLflow run of each.

    Raises:
        RunError: A run is damaged or not evaluated.
        NotPassedError: The gate of its evaluation has not passed it.
        RegistryError: A run is not registered, or the champion's alias has vanished.
        TrackingError: MLflow is not reachable or refuses.
        LakeError: Another command is changing the registry and does not end.
    """
    evaluations = []
    for run in runs:
        run.verify()
        evaluations.append(read_evaluation(run))
        require_passed(dataset, run)
    with registry.exclusive(dataset.name, "promote") as lease:
        candidates = [
            _Candidate(run=run, evaluation=evaluation, version=_registered(dataset, run))
            for run, evaluation in zip(runs, evaluations, strict=True)
        ]
        champion = registry.aliased(dataset.name, registry.CHAMPION)
        changed = {c.run.digest for c in candidates if _repeat(dataset, c)}
        undecided = _decide(dataset, candidates, champion)
        decided = [
            _Candidate(
                run=c.run, evaluation=c.evaluation, version=registry.numbered(dataset.name, c.version.version)
            )
            for c in candidates
        ]
        for before, after in zip(candidates, decided, strict=True):
            if before.version.tags != after.version.tags:
                changed.add(after.run.digest)
            if _finish(dataset, after.version, champion, lease):
                changed.add(after.run.digest)
        present = registry.aliased(dataset.name, registry.CHAMPION)
        pages.refresh(dataset.name)
    report = page.write(dataset.name, runs[0].ds)
    for c in decided:
        _show(dataset.name, c, report.read_text(encoding="utf-8"))
    return {
        c.version.preset: {
            **_result(dataset, c, present, undecided.get(c.version.preset), c.run.digest in changed),
            "report": str(report),
        }
        for c in decided
    }


def _show(dataset: str, candidate: _Candidate, report: str) -> None:
    """Puts the decision and the day's report where a person looks first: on the page of the run."""
    version = candidate.version
    tracking.log_text(version.run_id, page.REPORT, report)
    text = pages.run_page(
        tracking.experiment_id(dataset),
        version.run_id,
        candidate.evaluation,
        registry.why(version),
        version,
    )
    decision = {registry.DECISION: version.tags.get(registry.DECISION, "")}
    tracking.describe_run(version.run_id, text, decision)


def _registered(dataset: Dataset, run: Run) -> Version:
    version = registry.with_digest(dataset.name, run.digest)
    if version is None:
        raise RegistryError(
            f"{run.path} is not registered: python -m model.register --dataset {dataset.name} "
            f"--preset {run.record['preset']} --ds {run.ds}"
        )
    return version


def evaluation_digest(evaluation: Mapping[str, Any]) -> str:
    """SHA-256 of an evaluation but for how long it took."""
    values = {key: value for key, value in evaluation.items() if key != "seconds"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _is_settled(version: Version, champion: Version | None) -> bool:
    """Whether a decision stands, or history has gone on from it."""
    is_champion = champion is not None and champion.version == version.version
    return is_champion or registry.DECISION in version.tags or registry.ROLLED_BACK in version.tags


def _decide(
    dataset: Dataset, candidates: Sequence[_Candidate], champion: Version | None
) -> dict[str, Decision]:
    """Decides on those that are not settled and writes the decisions down; the alias is not touched yet.

    Returns:
        By preset, what was not decided, because the champion is not who the candidate was compared with.
    """
    opened = [c for c in candidates if not _is_settled(c.version, champion)]
    against = "" if champion is None else str(champion.version)
    # Those that a killed command has decided in the same contest take part again: the choice is the same.
    same = [c for c in candidates if c not in opened and c.version.tags.get(registry.PREVIOUS) == against]
    cases = {c.version.preset: _case(dataset, c, champion) for c in (*opened, *same)} if opened else {}
    decisions = decide_day(cases)
    reach("promote:decided")
    undecided: dict[str, Decision] = {}
    # The one that is promoted comes last: until its tags are whole, nothing has happened.
    for candidate in sorted(opened, key=lambda c: decisions[c.version.preset].promoted):
        preset = candidate.version.preset
        if any(f.rule == CHAMPION_RULE and not f.holds for f in decisions[preset].findings):
            undecided[preset] = decisions[preset]
        else:
            _write_down(candidate, cases[preset], decisions[preset], champion)
    return undecided


def _case(dataset: Dataset, candidate: _Candidate, champion: Version | None) -> Case:
    left_out = candidate.evaluation.get("left_out") or {}
    # A champion that cannot score the day's rows cannot serve them either: it is no one to be compared with.
    is_left_out = champion is not None and left_out.get("digest") == champion.digest
    return Case(
        evaluation=candidate.evaluation,
        ds=candidate.run.ds,
        candidate=contender(candidate.version),
        champion=None if champion is None or is_left_out else contender(champion),
        settings=dataset.limits,
    )


def _write_down(candidate: _Candidate, case: Case, decision: Decision, champion: Version | None) -> None:
    run, version = candidate.run, candidate.version
    record = _record(candidate, case, decision, champion)
    path = path_of(run.path, PROMOTION)
    write_text(path, as_json(record))  # of a command that was killed before the tags there may be one
    reach("promote:file_written")
    tracking.log_json(version.run_id, "promotion", record)
    floor = case.baseline(FLOOR, case.settings.primary)  # none where no rate by item is declared
    level = case.metric("candidate", case.settings.primary) - (0.0 if math.isnan(floor) else floor)
    tags = {
        registry.EVALUATION: candidate.judged,
        registry.PREVIOUS: "" if champion is None else str(champion.version),
        "alarm": str(decision.is_alarm).lower(),
        **({LEVEL: f"{level:.6f}"} if math.isfinite(level) else {}),
        # Last, as the others belong to it.
        registry.DECISION: PROMOTED if decision.promoted else REJECTED,
    }
    registry.annotate(version, tags, describe(case, version, decision))
    reach("promote:annotated")


def _record(
    candidate: _Candidate, case: Case, decision: Decision, champion: Version | None
) -> dict[str, Any]:
    version = candidate.version
    record = {
        "promoted": decision.promoted,
        "alarm": decision.is_alarm,
        "ds": case.ds,
        "samples_version": case.evaluation.get("samples_version"),
        "candidate": {"version": version.version, "preset": version.preset, "digest": version.digest},
        "champion": None
        if champion is None
        else {"version": champion.version, "preset": champion.preset, "digest": champion.digest},
        "reasons": decision.reasons(),
        "note": case.evaluation.get("note") or "",
        "left_out": case.evaluation.get("left_out"),
        "findings": [asdict(finding) for finding in decision.findings],
        "settings": asdict(case.settings),
        "evaluation_digest": candidate.judged,
    }
    written: dict[str, Any] = finite(record)
    return written


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _repeat(dataset: Dataset, candidate: _Candidate) -> bool:
    """Writes what the rules would say of an evaluation that was made after the decision; moves nothing."""
    version, folder = candidate.version, candidate.run.path
    if registry.DECISION not in version.tags or version.tags.get(registry.EVALUATION) == candidate.judged:
        return False
    last = newest(folder, PROMOTION)
    if last.exists() and json.loads(last.read_text()).get("evaluation_digest") == candidate.judged:
        return False
    other = (candidate.evaluation.get("champion") or {}).get("digest")
    champion = registry.with_digest(dataset.name, other) if other else None
    case = _case(dataset, candidate, champion)
    record = _record(candidate, case, decide_day({version.preset: case})[version.preset], champion)
    number = len(records(folder, PROMOTION)) + 1
    counts = f"{path_of(folder, PROMOTION).name}: {version.tags[registry.DECISION]}"
    write_record(path_of(folder, PROMOTION, number), {**record, "repeat": number, "counts": counts})
    logger.warning("%s was evaluated again; its decision stands (%s)", version, counts)
    return True


def _finish(dataset: Dataset, version: Version, champion: Version | None, lease: Lease) -> bool:
    """Moves the alias where the decision says so and it has not moved; returns whether it did."""
    if version.tags.get(registry.DECISION) != PROMOTED or registry.ROLLED_BACK in version.tags:
        return False
    if champion is not None and champion.version == version.version:
        registry.set_champion(dataset.name, version)  # completes what a kill may have left half done
        return False
    before = version.tags.get(registry.PREVIOUS, "")
    if before != ("" if champion is None else str(champion.version)):
        logger.info("%s was promoted before; the champion is now %s and stays", version, champion)
        return False
    reach("promote:before_alias")
    lease.check()
    registry.set_champion(dataset.name, version)
    reach("promote:after_alias")
    return True


def contender(version: Version) -> Contender:
    """What the rules need to know of a version."""
    return Contender(
        version=version.version,
        preset=version.preset,
        digest=version.digest,
        seen_days=frozenset(version.seen_days),
        status=version.status,
    )


def describe(case: Case, version: Version, decision: Decision) -> str:
    """The decision in words, as Markdown, for the version's page."""
    left_out = case.evaluation.get("left_out")
    if case.champion is not None:
        against = f"The champion was version {case.champion.version} ({case.champion.preset})"
    elif left_out:
        against = f"The champion, version {left_out['version']}, cannot score this day ({left_out['reason']})"
    else:
        against = "There was no champion"
    note = f" {case.evaluation['note']}." if case.evaluation.get("note") else ""
    verdict = "Promoted to champion" if decision.promoted else "Not promoted"
    why = "; ".join([*decision.reasons(), *(["every rule holds"] if decision.promoted else [])])
    lines = [
        f"**{verdict}**: {why}." + (" **Alarm: somebody has to look.**" if decision.is_alarm else ""),
        "",
        f"{case.candidate.preset} of {case.ds}, trained on {len(version.seen_days)} days up to "
        f"{max(version.seen_days, default='none')}, judged on {case.ds} "
        f"(samples version {case.evaluation.get('samples_version')}). {against}.{note}",
        "",
        "| rule | holds | |",
        "|---|---|---|",
        *(f"| {f.rule} | {'yes' if f.holds else 'NO'} | {f.reason} |" for f in decision.findings),
    ]
    return "\n".join(lines)


def _result(
    dataset: Dataset,
    candidate: _Candidate,
    champion: Version | None,
    undecided: Decision | None,
    changed: bool,
) -> dict[str, Any]:
    version = candidate.version
    path = path_of(candidate.run.path, PROMOTION)
    reasons = json.loads(path.read_text())["reasons"] if path.exists() else []
    if undecided is not None:
        reasons = undecided.reasons()
    if registry.ROLLED_BACK in version.tags:
        reasons = [f"the version was rolled back ({version.tags[registry.ROLLED_BACK]}) and stays so"]
    return {
        "promoted": champion is not None and champion.version == version.version,
        "alarm": undecided is not None or version.tags.get("alarm") == "true",
        "decided": registry.DECISION in version.tags,
        "dataset": dataset.name,
        "preset": version.preset,
        "ds": candidate.run.ds,
        "version": version.version,
        "champion": None if champion is None else champion.version,
        "changed": changed,
        "reasons": reasons,
        "decision": str(path),
    }


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    dataset = arguments.dataset
    runs = [load_run(dataset.name, preset, arguments.ds) for preset in arguments.preset]
    results = promote(dataset, runs)
    texts = {}
    for preset, result in results.items():
        verdict = "is the champion" if result["promoted"] else "is not the champion"
        texts[preset] = f"version {result['version']} ({preset}) {verdict}: {'; '.join(result['reasons'])}"
    first = next((preset for preset in results if results[preset]["promoted"]), arguments.preset[0])
    alarms = [preset for preset, result in results.items() if result["alarm"]]
    answer = {**command.by_preset(results, first), "alarm": bool(alarms)}
    if alarms:
        raise RefusedError("; ".join(texts[preset] for preset in alarms), answer)
    for text in texts.values():
        logger.info("%s", text)
    return answer


def main(argv: Sequence[str] | None = None) -> int:
    """Decides; an alarm ends with 1, see `command.run` for the other exit codes."""
    parser = command.parser("model.promote", __doc__)
    command.add_dataset(parser)
    command.add_day(parser, help="day of the runs, YYYY-MM-DD")
    command.add_presets(parser)
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())

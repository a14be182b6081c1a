"""Decides whether a day's candidate becomes the champion: `python -m model.promote --dataset foodlog --ds D`.

Default deny: every rule of `promotion_rules.py` has to hold. The decision goes to `promotion.json` beside the
run, to the version's tags and, in words, to its description, before the alias moves; so a rerun finds what
was decided, finishes it if it was interrupted, and decides nothing twice. One command at a time changes a
dataset's registry; the champion is read again under that lease, and a candidate that was compared with
another champion than the present one is refused: of two promotions at once, one wins.

Exit code 0: decided, promoted or not (a champion that stays is a normal day). 1: an alarm, such as a leak or
numbers of the wrong model, or no decision could be made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from model.judging.decision import Case, Contender, Decision
from model.judging.rules import decide
from model.registry import tracking
from model.registry import versions as registry
from model.registry.record import read_evaluation, require_passed
from model.registry.versions import RegistryError, Version
from model.runs.files import write_text
from model.runs.store import Run, load_run
from spark_jobs.contract import command
from spark_jobs.contract.command import RefusedError
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.phases import reach
from spark_jobs.lake.lease import Lease

logger = logging.getLogger(__name__)

PROMOTION = "promotion.json"
PROMOTED, REJECTED = "promoted", "rejected"


def promote(dataset: Dataset, run: Run) -> dict[str, Any]:
    """Decides on a run's version, or finishes and repeats what was decided.

    Returns:
        `promoted`, `alarm`, `version`, `champion` (its number now), `reasons`, `changed`.

    Raises:
        RunError: The run is damaged or not evaluated.
        NotPassedError: The gate of its evaluation has not passed it.
        RegistryError: The run is not registered, or the champion's alias has vanished.
        TrackingError: MLflow is not reachable or refuses.
        LakeError: Another command is changing the registry and does not end.
    """
    run.verify()
    evaluation = read_evaluation(run)
    require_passed(dataset, run)
    judged = evaluation_digest(evaluation)
    with registry.exclusive(dataset.name, "promote") as lease:
        version = registry.with_digest(dataset.name, run.digest)
        if version is None:
            raise RegistryError(
                f"{run.path} is not registered: python -m model.register --dataset {dataset.name} "
                f"--preset {run.record['preset']} --ds {run.ds}"
            )
        champion = registry.aliased(dataset.name, registry.CHAMPION)
        if not _is_settled(version, judged, champion):
            _decide(dataset, run, evaluation, version, champion)
            version = registry.numbered(dataset.name, version.version)
            changed = True
        else:
            changed = False
        changed |= _finish(dataset, version, champion, lease)
    return _result(dataset, run, version, changed=changed)


def evaluation_digest(evaluation: Mapping[str, Any]) -> str:
    """SHA-256 of an evaluation but for how long it took."""
    values = {key: value for key, value in evaluation.items() if key != "seconds"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _is_settled(version: Version, judged: str, champion: Version | None) -> bool:
    """Whether a decision stands: the same evaluation was judged, or history has gone on from it."""
    is_champion = champion is not None and champion.version == version.version
    was_judged = registry.DECISION in version.tags and version.tags.get(registry.EVALUATION) == judged
    return is_champion or was_judged or registry.ROLLED_BACK in version.tags


def _decide(
    dataset: Dataset, run: Run, evaluation: Mapping[str, Any], version: Version, champion: Version | None
) -> None:
    """Decides and writes the decision down; the alias is not touched yet."""
    case = Case(
        evaluation=evaluation,
        ds=run.ds,
        candidate=contender(version),
        champion=None if champion is None else contender(champion),
        settings=dataset.limits,
    )
    decision = decide(case)
    reach("promote:decided")
    judged = evaluation_digest(evaluation)
    record = {
        "promoted": decision.promoted,
        "alarm": decision.is_alarm,
        "ds": run.ds,
        "samples_version": evaluation.get("samples_version"),
        "candidate": {"version": version.version, "preset": version.preset, "digest": version.digest},
        "champion": None
        if champion is None
        else {"version": champion.version, "preset": champion.preset, "digest": champion.digest},
        "reasons": decision.reasons(),
        "findings": [asdict(finding) for finding in decision.findings],
        "settings": asdict(case.settings),
        "evaluation_digest": judged,
    }
    write_text(run.path / PROMOTION, json.dumps(record, indent=2, sort_keys=True) + "\n")
    reach("promote:file_written")
    tracking.log_json(version.run_id, "promotion", record)
    tags = {
        registry.EVALUATION: judged,
        registry.PREVIOUS: "" if champion is None else str(champion.version),
        "alarm": str(decision.is_alarm).lower(),
        # Last, as the others belong to it.
        registry.DECISION: PROMOTED if decision.promoted else REJECTED,
    }
    registry.annotate(version, tags, describe(case, version, decision))
    reach("promote:annotated")


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
    against = (
        "There was no champion"
        if case.champion is None
        else f"The champion was version {case.champion.version} ({case.champion.preset})"
    )
    verdict = "Promoted to champion" if decision.promoted else "Not promoted"
    why = "; ".join([*decision.reasons(), *(["every rule holds"] if decision.promoted else [])])
    lines = [
        f"**{verdict}**: {why}." + (" **Alarm: somebody has to look.**" if decision.is_alarm else ""),
        "",
        f"{case.candidate.preset} of {case.ds}, trained on {len(version.seen_days)} days up to "
        f"{max(version.seen_days, default='none')}, judged on {case.ds} "
        f"(samples version {case.evaluation.get('samples_version')}). {against}.",
        "",
        "| rule | holds | |",
        "|---|---|---|",
        *(f"| {f.rule} | {'yes' if f.holds else 'NO'} | {f.reason} |" for f in decision.findings),
    ]
    return "\n".join(lines)


def _result(dataset: Dataset, run: Run, version: Version, *, changed: bool) -> dict[str, Any]:
    champion = registry.aliased(dataset.name, registry.CHAMPION)
    path = run.path / PROMOTION
    reasons = json.loads(path.read_text())["reasons"] if path.exists() else []
    if registry.ROLLED_BACK in version.tags:
        reasons = [f"the version was rolled back ({version.tags[registry.ROLLED_BACK]}) and stays so"]
    return {
        "promoted": champion is not None and champion.version == version.version,
        "alarm": version.tags.get("alarm") == "true",
        "dataset": dataset.name,
        "preset": version.preset,
        "ds": run.ds,
        "version": version.version,
        "champion": None if champion is None else champion.version,
        "changed": changed,
        "reasons": reasons,
        "decision": str(path),
    }


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    dataset = arguments.dataset
    result = promote(dataset, load_run(dataset.name, arguments.preset, arguments.ds))
    verdict = "is the champion" if result["promoted"] else "is not the champion"
    message = f"version {result['version']} {verdict}: {'; '.join(result['reasons'])}"
    if result["alarm"]:
        raise RefusedError(message, result)
    logger.info("%s", message)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Decides; an alarm ends with 1, see `command.run` for the other exit codes."""
    parser = command.parser("model.promote", __doc__)
    command.add_dataset(parser)
    command.add_day(parser, help="day of the run, YYYY-MM-DD")
    parser.add_argument("--preset", default="tiny")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())

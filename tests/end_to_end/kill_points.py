"""Kills every stage at every one of its phases, runs it again, compares the state with an undisturbed run's.

    python -m tests.end_to_end.kill_points [--stages ingest promote] [--out points.json]
    python -m tests.end_to_end.kill_points --drill [SEED]      one stage and one point of it, drawn

The daily chain of commands is run once, undisturbed, with `MTGR_TRACE_PHASES` set: that run says which
phases each stage reaches, how often, and what state each stage leaves. Then, for each phase, the state before
the stage is put back, the stage is killed there by SIGKILL and run again; a phase that is reached several
times (a late day and the day, one table and the next) has a point for the first time and one for the last. A
point holds when the rerun succeeds and the state is the undisturbed one: see `chain.state_of`.

Stages of the data are killed on the second day, whose late records make the first again; those of the model
on the third, when there is a champion and two presets are judged. `--options` go to the simulator.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.embedded.settings import SHORT_LIVED
from tests.end_to_end.chain import (
    BASELINE,
    DATASET,
    PRESET,
    ROOT,
    Chain,
    Step,
    data_steps,
    difference,
    preload,
    simulation,
    training_steps,
)
from tests.spark_servers import spark_connect

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")
STAGES = ("simulate", *(step.stage for step in (*data_steps(DAYS[0]), *training_steps(DAYS[0], PRESET))))
SECONDS = "seconds"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A stage that is to be killed, as its undisturbed run has shown it.

    Args:
        step: Its command.
        saved: Name of the state before it.
        points: `<stage>:<phase>#<n>`, the n-th time that the phase is reached.
        expected: State after it.
    """

    step: Step
    saved: str
    points: list[str]
    expected: dict[str, Any]


def steps_until(stages: set[str], options: Sequence[str]) -> list[tuple[Step, bool]]:
    """The chain up to the last stage that is asked for, and which steps are to be killed.

    What comes after that stage within a day is left out for the days before, too.
    """
    first, second, third = DAYS
    most = max(STAGES.index(stage) for stage in stages)
    chain = [
        (simulation(first, third, *options), "simulate" in stages),
        *((step, False) for step in data_steps(first)),
        *((step, step.stage in stages) for step in data_steps(second, (first,))),
        *((step, False) for step in training_steps(second, PRESET, BASELINE)),
        *((step, False) for step in data_steps(third, (first, second))),
        *((step, step.stage in stages) for step in training_steps(third, PRESET, BASELINE)),
    ]
    last = max(number for number, (_, is_target) in enumerate(chain) if is_target)
    return [(step, is_target) for step, is_target in chain[: last + 1] if STAGES.index(step.stage) <= most]


def targets(chain: Chain, stages: set[str], options: Sequence[str]) -> Iterator[Target]:
    """Runs the chain undisturbed; yields each stage that is to be killed once it has run."""
    chain.var.mkdir()
    for number, (step, is_target) in enumerate(steps_until(stages, options)):
        started = time.monotonic()
        trace, saved = chain.work / f"{number}.phases", f"{number}"
        if is_target:
            chain.save(saved)
        chain.must(step, **({"MTGR_TRACE_PHASES": str(trace)} if is_target else {}))
        say(f"{step!s:28} undisturbed", started)
        if is_target:
            counts = Counter(trace.read_text().split() if trace.exists() else [])
            points = [f"{phase}#{n}" for phase, most in counts.items() for n in sorted({1, most})]
            after = f"{saved}-after"
            chain.save(after)
            yield Target(step=step, saved=saved, points=points, expected=chain.state())
            chain.restore(after)
            shutil.rmtree(chain.work / "saved")


def killed(chain: Chain, target: Target, point: str) -> dict[str, Any]:
    """Kills a stage at a point and runs it again; returns the line of the table."""
    started = time.monotonic()
    chain.restore(target.saved)
    code = chain.run(target.step, MTGR_KILL_AT=point)
    rerun = chain.run(target.step)
    wrong = difference(target.expected, chain.state())
    if code != -signal.SIGKILL:
        wrong.insert(0, f"was not killed but ended with {code}")
    if rerun:
        wrong.insert(0, f"the rerun ended with {rerun}")
    say(f"{target.step!s:28} {point:36} {'BROKEN: ' + '; '.join(wrong) if wrong else 'holds'}", started)
    return {
        "stage": target.step.stage,
        "ds": target.step.ds,
        "point": point,
        "holds": not wrong,
        "difference": wrong,
        "compared": compared(target.expected),
        SECONDS: round(time.monotonic() - started, 1),
    }


def drawn(seed: int, stages: Sequence[str]) -> tuple[str, random.Random]:
    """The stage of a drill, and what draws the point of it: the same of a seed."""
    choice = random.Random(seed)
    return choice.choice(stages), choice


def compared(expected: Mapping[str, Any]) -> str:
    """What a state holds, in numbers: `table: 5, file of runs: 31, version: 4`."""
    kinds = {"raw": "raw file", "mlflow": "MLflow run", "file": "file of runs"}
    counts = Counter(kinds.get(kind := key.split(" ")[0], kind) for key in expected if key != "logged models")
    return ", ".join(f"{kind}: {number}" for kind, number in counts.items())


def say(text: str, started: float) -> None:
    """Prints a line of progress."""
    sys.stdout.write(f"{time.monotonic() - started:5.1f} s  {text}\n")
    sys.stdout.flush()


def merged(path: Path, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points, and those of other stages that the file holds from an earlier run, in the chain's order."""
    done = {point["stage"] for point in points}
    earlier = json.loads(path.read_text())["points"] if path.exists() else []
    kept = [point for point in earlier if point["stage"] not in done]
    return sorted([*kept, *points], key=lambda point: STAGES.index(point["stage"]))


def table(record: dict[str, Any]) -> str:
    """The points as a Markdown table: one line a stage."""
    lines = ["| stage | killed at | points | hold |", "|---|---|---|---|"]
    for stage in dict.fromkeys(point["stage"] for point in record["points"]):
        points = [point for point in record["points"] if point["stage"] == stage]
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(p["point"].split("#")[0] for p in points))
        lines.append(f"| {stage} | {names} | {len(points)} | {sum(p['holds'] for p in points)} |")
    total = f"{len(record['points'])} | {sum(p['holds'] for p in record['points'])}"
    return "\n".join([*lines, f"| all | | {total} |"])


def run(
    work: Path,
    stages: set[str],
    only: set[str] | None,
    options: Sequence[str],
    choice: random.Random | None = None,
) -> list[dict[str, Any]]:
    """Kills at all points of the stages, those of `only` or, with `choice`, one drawn of each.

    Returns:
        The lines of the table.
    """
    points = []
    preload([step for step, _ in steps_until(stages, options)])
    with spark_connect(work / "spark.log", SPARK_CONF=SHORT_LIVED) as remote:
        chain = Chain(work, remote)
        for target in targets(chain, stages, options):
            for point in target.points if choice is None else [choice.choice(target.points)]:
                if only is None or point in only:
                    points.append(killed(chain, target, point))
    return points


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when every point holds, 1 when one does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--points", nargs="+", help="only these, e.g. ingest:before_commit#1")
    parser.add_argument(
        "--drill", type=int, nargs="?", const=time.time_ns() % 10_000, metavar="SEED",
        help="kill one stage at one point; the seed draws both (default: the clock)",
    )  # fmt: skip
    parser.add_argument("--options", nargs="+", default=[], help="of the simulator, e.g. users=200")
    parser.add_argument(
        "--out", type=Path, help="write the points there as JSON, beside those of other stages"
    )
    arguments = parser.parse_args(argv)
    for name in ("MTGR_LAKE", "MTGR_RUNS", "MLFLOW_TRACKING_URI", "SPARK_MASTER"):
        os.environ.pop(name, None)
    started = time.monotonic()
    options = [part for option in arguments.options for part in f"--{option}".split("=")]
    only = set(arguments.points) if arguments.points else None
    stages, choice = set(arguments.stages), None
    if arguments.drill is not None:
        stage, choice = drawn(arguments.drill, [stage for stage in STAGES if stage in stages])
        stages = {stage}
        say(f"drill {arguments.drill}: {stage} is killed, as soon as the chain has come to it", started)
    with tempfile.TemporaryDirectory(prefix="mtgr-kill-") as folder:
        points = run(Path(folder), stages, only, options, choice)
        if any(not point["holds"] for point in points):
            kept = ROOT / "var" / "kill_points.log"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder, "steps.log"), kept)
            sys.stdout.write(f"the output of all steps is kept in {kept}\n")
    record = {"dataset": DATASET, "days": DAYS, "presets": [PRESET, BASELINE], "points": points}
    sys.stdout.write(f"{table(record)}\n{time.monotonic() - started:.0f} s\n")
    if choice is not None and all(point["holds"] for point in points):
        (point,) = points
        sys.stdout.write(
            f"{point['stage']} of {point['ds']} was killed at {point['point']} and run again: nothing was "
            f"lost, all is as after an undisturbed run ({point['compared']})\n"
        )
    if arguments.out:
        record["points"] = merged(arguments.out, points)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if points and all(point["holds"] for point in points) else 1


if __name__ == "__main__":
    # Before numpy and torch are imported: a process that forks must not have started threads.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    sys.exit(main())

r"""Trains rankers on journey's days in order and scores weeks 49 to 52, each model and seed once.

    python -m benchmarks.evidence.journey_samples --from 2017-03-20 --to 2017-12-24
    python -m benchmarks.evidence.journey --models tiny user_tower small,train.dense_lr=1e-3 --seeds 1 2 \
        --from 2017-03-20 --out var/journey --together 3

A model is a preset with changed fields, if any. It learns the days of `--from` up to the first test day and
scores the test days (weeks 49 to 52) as it is then, so that all models, and LightGBM beside them, know the
same. What a model has scored is written when it is done (`<model>/<seed>.json`, `.npz`), and a training that
is cut off goes on from its last checkpoint when the command is run again with the same `--out`; what is done
is not done again. `--together` models train side by side, each in a process of its own, its words in
`<seed>.log`; of several GPUs (`--gpus`) each takes the next.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.evidence.scored import TEST_DAYS, measured, save_frame
from model.config.environment import device
from model.config.presets import config_of
from model.config.run import Config
from model.data.reader import SamplesTable
from model.judging.evaluation import score_day
from model.judging.scoring import Scorer
from model.runs.files import write_text
from model.runs.store import load_run
from model.training.loop import train
from model.training.plan import Plan
from spark_jobs.contract import command, environment
from spark_jobs.contract.clock import days_between
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.journey import JOURNEY
from spark_jobs.lake.log import git_sha

logger = logging.getLogger(__name__)


def train_and_score(
    config: Config, first: str, test_days: Sequence[str], out: Path, name: str
) -> dict[str, Any]:
    r"""Trains on the days from `first` to the first test day, scores the test days, writes both.

    Args:
        config: Model and training.
        first: First day of training.
        test_days: Days to score, in order.
        out: Folder of the results.
        name: Of the model.

    Returns:
        What `<seed>.json` says.
    """
    where = device()
    samples = SamplesTable(JOURNEY)
    days = [ds for ds in samples.days() if first <= ds < test_days[0]]
    environment.override({"MTGR_RUNS": str(out / "runs" / name / str(config.train.seed))})
    plan = Plan(days=dict.fromkeys(days, samples.version), version=samples.version)
    train(JOURNEY, config, test_days[0], where, lambda *_: "", plan)
    run = load_run(JOURNEY.name, config.preset, test_days[0])
    scorer, start = Scorer.load(run.path, where), time.monotonic()
    parts = [score_day(samples, ds, {"model": scorer}) for ds in test_days if ds in samples.days()]
    frame = {key: np.concatenate([frame[key] for frame, _ in parts]) for key in parts[0][0]}
    scores = {key: np.concatenate([made["model"][key] for _, made in parts]) for key in parts[0][1]["model"]}
    save_frame(out, frame)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{config.train.seed}.npz", **scores)  # type: ignore[arg-type]
    report = {
        "model": name,
        "seed": config.train.seed,
        "metrics": measured(frame, scores),
        "config": asdict(config.sized(JOURNEY)),
        "days": [days[0], days[-1], len(days)],
        "test_days": [test_days[0], test_days[-1]],
        "tokens": run.record["tokens"],
        "rows": sum(run.record["rows"].values()) * config.train.passes,
        "steps": run.record["num_steps"],
        "train_seconds": run.record["seconds"],
        "score_seconds": round(time.monotonic() - start, 1),
        "losses": [loss for _, loss in run.record["losses"]][:: max(1, len(run.record["losses"]) // 200)],
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "commit": git_sha("model", "spark_jobs", "cuda_ext", "benchmarks"),
    }
    write_text(folder / f"{config.train.seed}.json", json.dumps(report, indent=1, sort_keys=True) + "\n")
    return report


def side_by_side(jobs: Sequence[tuple[str, int]], arguments: argparse.Namespace) -> list[str]:
    """Runs a process for each model and seed, some at a time.

    Returns:
        Models and seeds that failed.
    """
    waiting, failed = list(jobs), []
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    while waiting or running:
        while waiting and len(running) < arguments.together:
            model, seed = waiting.pop(0)
            gpu = (len(jobs) - len(waiting)) % arguments.gpus
            changes = {"CUDA_VISIBLE_DEVICES": str(gpu)} if arguments.gpus > 1 else {}
            folder = arguments.out / model
            folder.mkdir(parents=True, exist_ok=True)
            options = ["--models", model, "--seeds", str(seed), "--from", arguments.first]
            options += ["--test-from", arguments.test_first, "--test-to", arguments.test_last]
            call = [
                sys.executable,
                "-m",
                "benchmarks.evidence.journey",
                *options,
                "--out",
                str(arguments.out),
            ]
            with (folder / f"{seed}.log").open("a") as log:
                running[model, seed] = subprocess.Popen(
                    call, stdout=log, stderr=log, env=environment.child(changes)
                )
        time.sleep(0.5)
        for job in [job for job, process in running.items() if process.poll() is not None]:
            code = running.pop(job).returncode
            logger.info("%s seed %d: ended with %d", *job, code)
            if code:
                failed.append(f"{job[0]} seed {job[1]}")
    return failed


def add_together(parser: argparse.ArgumentParser) -> None:
    """Adds what `side_by_side` asks."""
    parser.add_argument("--together", type=int, default=1, help="models that train side by side")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that they share")


def main(argv: Sequence[str] | None = None) -> int:
    r"""Trains and scores; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.evidence.journey", __doc__)
    parser.add_argument("--models", nargs="+", required=True, help="preset[,train.field=value]...")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    command.add_day(parser, "--from", dest="first", help="first day of training")
    command.add_day(
        parser,
        "--test-from",
        dest="test_first",
        required=False,
        default=TEST_DAYS[0],
        help="first day that is scored; training ends before it",
    )
    command.add_day(
        parser,
        "--test-to",
        dest="test_last",
        required=False,
        default=TEST_DAYS[-1],
        help="last day that is scored",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of results and runs")
    add_together(parser)
    return command.run(parser, _run, argv)


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    configs = {model: config_of(model) for model in arguments.models}
    jobs = [(model, seed) for seed in arguments.seeds for model in configs]
    todo = [(model, seed) for model, seed in jobs if not (arguments.out / model / f"{seed}.json").exists()]
    test_days = days_between(arguments.test_first, arguments.test_last)
    if len(jobs) == 1:
        for model, seed in todo:
            config = replace(configs[model], train=replace(configs[model].train, seed=seed))
            train_and_score(config, arguments.first, test_days, arguments.out, model)
    elif failed := side_by_side(todo, arguments):
        raise CommandError(f"{', '.join(failed)} failed: see the logs below {arguments.out}")
    done = [json.loads((arguments.out / model / f"{seed}.json").read_text()) for model, seed in jobs]
    shown = ("ctr_gauc_request", "ctcvr_gauc_request", "ctcvr_gauc", "ctcvr_auc")
    return {
        f"{one['model']} {one['seed']}": {key: round(one["metrics"][key], 4) for key in shown} for one in done
    }


if __name__ == "__main__":
    sys.exit(main())

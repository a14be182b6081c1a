"""Trains on the days not yet seen before a day: `python -m model.train --dataset foodlog --ds 2026-03-05`.

Continues from the newest fitting run (see `model.runs`), reads the unseen days in order from one pinned
version of the samples table, and writes a new run whole or not at all. Run again, it changes nothing;
killed and run again, it goes on from its last checkpoint with the same losses, bit for bit. `torchrun
--nproc-per-node N -m model.train ...` trains on N ranks. `MTGR_DEVICE` (`auto`, `cpu`, `cuda`) says where.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from model import tracking
from model.config import Config, preset_named
from model.features import SampleEncoder
from model.mlflow_store import TrackingError
from model.reader import SamplesTable, SamplesUnavailableError, steps_of
from model.runs import (
    CHECKPOINT,
    CONFIG,
    RECORD,
    WEIGHTS,
    Run,
    RunError,
    base_of,
    complete_runs,
    digest_of,
    finish,
    partial_path,
    publish,
    read_state,
    run_path,
    write_file,
    write_text,
)
from model.settings import configure_logging, device_of
from model.trainer import NonFiniteLossError, Trainer, process_group
from spark_jobs.contract import Dataset, parse_day
from spark_jobs.datasets import dataset_named
from spark_jobs.phases import reach

logger = logging.getLogger(__name__)

_PROGRESS = "progress.pt"
_FIT_ROWS = 8192  # rows of a day's first chunk from which numbers are standardised
_FLUSH_STEPS = 20  # steps between two looks at the losses, each of which waits for the device


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will train on.

    Attributes:
        days: Days to train on, in order.
        version: Version of the samples table.
        base: Folder of the run to continue from, or None.
        base_digest: Its digest, or None.
        seen_days: Days the base has seen, with their versions.
    """

    days: tuple[str, ...]
    version: int
    base: str | None
    base_digest: str | None
    seen_days: dict[str, int]

    def key(self, config: Config) -> str:
        """What must be equal for a checkpoint to be continued: all but the table's version."""
        return json.dumps([self.days, self.base_digest, self.seen_days, asdict(config)], sort_keys=True)


def plan_of(dataset: Dataset, config: Config, ds: str) -> Plan:
    """Plans the run of day `ds`.

    Raises:
        RunError: There are no samples before `ds`, or the base has another model.
    """
    table = SamplesTable(dataset)
    days = [day for day in table.days() if day < ds]
    if not days:
        raise RunError(f"{table.uri} has no samples of a day before {ds}; build some, or ask for a later day")
    base = base_of(complete_runs(dataset.name, config.preset), days)
    seen = base.seen_days if base else {}
    if base is not None:
        base.verify()
    if base is not None and base.config()[1].model != config.model:
        raise RunError(
            f"{base.path} has another model than preset {config.preset} has now; move it away to start over"
        )
    return Plan(
        days=tuple(day for day in days if day not in seen),
        version=table.version,
        base=str(base.path) if base else None,
        base_digest=base.digest if base else None,
        seen_days=seen,
    )


def train(dataset: Dataset, config: Config, ds: str, device: torch.device) -> dict[str, Any]:
    """Makes the run of day `ds`, or finds it made.

    Returns:
        What happened: run, days trained, base, loss, digest, whether anything changed.

    Raises:
        RunError: There is nothing to train on, a run is damaged or another process is making it.
        SamplesUnavailableError: Samples cannot be read.
        NonFiniteLossError: Training diverged; no run is made.
    """
    path = run_path(dataset.name, config.preset, ds)
    with process_group(device):
        is_first = dist.get_rank() == 0
        with _exclusively(path) if is_first else _nothing():
            done = _done_or_plan(dataset, config, ds, path) if is_first else None
            shared = [done]
            dist.broadcast_object_list(shared)
            if isinstance(shared[0], Exception):
                raise shared[0]
            if isinstance(shared[0], Run):
                return _result(shared[0], changed=False)
            assert isinstance(shared[0], Plan)
            run = _make(dataset, config, ds, device, shared[0], partial_path(path))
            shared = [run]
            dist.broadcast_object_list(shared)
            assert isinstance(shared[0], Run)
            return _result(shared[0], changed=True)


def _done_or_plan(dataset: Dataset, config: Config, ds: str, path: Path) -> Run | Plan | Exception:
    """The run if it is made, else the plan; an error is returned, so that every rank can raise it."""
    try:
        partial = partial_path(path)
        plan = plan_of(dataset, config, ds)
        wanted = {*plan.days, *plan.seen_days}
        run = finish(partial, wanted)
        if run is not None:
            (run.path / _PROGRESS).unlink(missing_ok=True)
            return run
        existing = next((r for r in complete_runs(dataset.name, config.preset) if r.path == path), None)
        if existing is not None and set(existing.seen_days) == wanted:
            existing.verify()
            (existing.path / _PROGRESS).unlink(missing_ok=True)
            return existing
        partial.mkdir(parents=True, exist_ok=True)
        (partial / RECORD).unlink(missing_ok=True)
        return plan
    except (RunError, SamplesUnavailableError, ValueError, OSError) as error:
        return error


def _make(
    dataset: Dataset, config: Config, ds: str, device: torch.device, plan: Plan, partial: Path
) -> Run | None:
    start = time.monotonic()
    trainer = Trainer(dataset, config, device)
    progress = _progress(trainer, plan, config, partial)
    table = SamplesTable(dataset, int(progress["version"]))
    table.require(plan.days)
    samples_code = table.code_versions(plan.days)
    if len(set(samples_code.values())) > 1:
        logger.warning("the days were built by different versions of the code: %s", samples_code)
    if progress["state"] is not None:
        trainer.load(progress["state"])
    elif plan.base is not None:
        trainer.load(read_state(Path(plan.base) / CHECKPOINT))
    done_steps, losses = progress["done_steps"], progress["losses"]
    encoder = SampleEncoder(dataset, config.model.max_static)
    tokens = 0
    for day in plan.days:
        _fit(trainer, table, encoder, day)
        for step in _steps(table, encoder, config, day):
            if done_steps:
                done_steps -= 1
                continue
            trainer.step(step)
            tokens += step.num_tokens
            taken = len(losses) + trainer.num_pending
            if trainer.num_pending >= _FLUSH_STEPS or taken % config.train.checkpoint_steps == 0:
                losses += trainer.losses()
            if taken % config.train.checkpoint_steps == 0:
                _save_progress(trainer, plan, config, partial, losses, table.version)
                reach("train:checkpoint_saved")
        losses += trainer.losses()
        logger.info("trained on %s: loss %.5f", day, _mean_loss(losses, day))
        reach("train:day_trained")
    state = trainer.state()
    if state is None:
        return None
    write_text(partial / CONFIG, config.to_json(dataset=dataset.name))
    published = trainer.published(state)
    write_file(partial / WEIGHTS, lambda path: save_file(published, path))
    write_file(partial / CHECKPOINT, lambda path: torch.save(state, path))
    reach("train:weights_saved")
    record = {
        "ds": ds,
        "dataset": dataset.name,
        "preset": config.preset,
        "seen_days": plan.seen_days | dict.fromkeys(plan.days, table.version),
        "trained_days": list(plan.days),
        "samples_version": table.version,
        "samples_code": samples_code,
        "base": Path(plan.base).name if plan.base else None,
        "base_digest": plan.base_digest,
        "num_steps": trainer.num_steps,
        "losses": losses,
        "loss_by_day": {day: _mean_loss(losses, day) for day in plan.days},
        "seconds": round(time.monotonic() - start, 1),
        "tokens": tokens,
        "world_size": dist.get_world_size(),
    }
    record["mlflow_run_id"] = _log(config, record, digest_of(partial))
    reach("train:before_publish")
    run = publish(partial, record)
    reach("train:published")
    (run.path / _PROGRESS).unlink(missing_ok=True)
    return run


def _steps(table: SamplesTable, encoder: SampleEncoder, config: Config, day: str) -> Iterator[Any]:
    for pass_number in range(config.train.passes):
        yield from steps_of(
            table,
            encoder,
            day,
            pass_number=pass_number,
            batch_tokens=config.train.batch_tokens,
            seed=config.train.seed,
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
        )


def _fit(trainer: Trainer, table: SamplesTable, encoder: SampleEncoder, day: str) -> None:
    """Fits what is fitted, not learned, to the first rows of a day."""
    columns = [*encoder.columns, *encoder.label_columns]
    for chunk in itertools.islice(table.chunks(day, columns), 1):
        order = [("user_id", "ascending"), ("window_start_ms", "ascending")]
        rows = encoder.encode(chunk.sort_by(order).slice(0, _FIT_ROWS))
        trainer.scaler.fit(rows)
        if trainer.num_steps == 0:
            trainer.heads.start_at(rows.labels.mean(1))


def _progress(trainer: Trainer, plan: Plan, config: Config, partial: Path) -> dict[str, Any]:
    """The checkpoint of an interrupted run of the same plan, or a fresh start."""
    fresh: dict[str, Any] = {"version": plan.version, "state": None, "done_steps": 0, "losses": []}
    if not (partial / _PROGRESS).exists():
        return fresh
    saved = read_state(partial / _PROGRESS)
    if saved["key"] != plan.key(config) or saved["world_size"] != dist.get_world_size():
        logger.warning("%s is of another plan or number of ranks: starting over", partial / _PROGRESS)
        return fresh
    logger.info("continuing after step %d of the interrupted run", saved["done_steps"])
    return saved


def _save_progress(
    trainer: Trainer, plan: Plan, config: Config, partial: Path, losses: list[Any], version: int
) -> None:
    state = trainer.state()
    if state is None:
        return
    saved = {
        "key": plan.key(config),
        "world_size": dist.get_world_size(),
        "version": version,
        "state": state,
        "done_steps": len(losses),
        "losses": losses,
    }
    write_file(partial / _PROGRESS, lambda path: torch.save(saved, path))


def _log(config: Config, record: dict[str, Any], digest: str) -> str:
    """Logs the finished training to MLflow: config, versions of the data, the loss by step."""
    flat = {f"{part}.{name}": value for part in ("model", "train") for name, value in
            asdict(config)[part].items()}  # fmt: skip
    run_id = tracking.start_run(
        record["dataset"],
        record["preset"],
        record["ds"],
        flat | {"world_size": record["world_size"]},
        {
            "digest": digest,
            "samples_version": str(record["samples_version"]),
            "seen_days": json.dumps(record["seen_days"], sort_keys=True),
        },
    )
    first = record["num_steps"] - len(record["losses"])
    for place in range(0, len(record["losses"]), _FLUSH_STEPS):
        some = [loss for _, loss in record["losses"][place : place + _FLUSH_STEPS]]
        tracking.log_metrics(run_id, {"train_loss": sum(some) / len(some)}, first + place)
    return run_id


def _mean_loss(losses: list[Any], day: str) -> float:
    of_day = [loss for name, loss in losses if name.startswith(f"{day}/")]
    return sum(of_day) / len(of_day) if of_day else float("nan")


def _result(run: Run, *, changed: bool) -> dict[str, Any]:
    keys = ("ds", "dataset", "preset", "trained_days", "samples_version", "base", "loss_by_day", "seconds")
    return {
        "changed": changed,
        "run": str(run.path),
        "digest": run.digest,
        "mlflow_run_id": run.record["mlflow_run_id"],
        **{key: run.record[key] for key in keys},
    }


@contextmanager
def _exclusively(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.parent / ".lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"another process is training in {path.parent} (it holds {lock}); wait for it"
            ) from error
        yield


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; prints its result as one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m model.train", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--ds", required=True, help="train on the unseen days before this day, YYYY-MM-DD")
    parser.add_argument("--preset", default="tiny")
    arguments = parser.parse_args(argv)
    configure_logging()
    try:
        dataset, config = dataset_named(arguments.dataset), preset_named(arguments.preset)
        parse_day(arguments.ds)
        device = device_of(os.environ.get("MTGR_DEVICE", "auto"))
    except ValueError as error:
        logger.error("%s", error)
        return 2
    try:
        result = train(dataset, config, arguments.ds, device)
    except (
        RunError,
        SamplesUnavailableError,
        NonFiniteLossError,
        TrackingError,
        ValueError,
        OSError,
    ) as error:
        logger.error("%s", error)
        return 1
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Days in order, each once: makes the run of a day, or finds it made, and resumes exactly."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config.run import Config
from model.data.encoder import SampleEncoder
from model.data.reader import SamplesTable
from model.data.steps import Position, name_what_is_wrong
from model.embeddings.changes import applied, changes
from model.runs.files import RunError, write_file
from model.runs.sharded import ShardReader
from model.runs.store import (
    CHANGES,
    CHECKPOINT,
    RECORD,
    WEIGHTS,
    Run,
    complete_runs,
    digest_of,
    exclusively,
    finish,
    partial_path,
    publish,
    run_path,
    write_config,
)
from model.training.loader import Loader, with_next
from model.training.meter import Meter
from model.training.plan import Plan, is_as_asked, plan_of
from model.training.progress import position_in, read_progress, remove_progress, save_progress
from model.training.ranks import process_group
from model.training.saver import Saver
from model.training.step import Trainer
from model.training.tracing import traced
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.declaration import differences
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.phases import reach

logger = logging.getLogger(__name__)

_FIT_ROWS = 8192  # rows, drawn by hash from the whole day, by which its numbers are standardised


# Logs a finished training from its config, its record and its digest; returns the id of what it logged.
Log = Callable[[Config, dict[str, Any], str], str]


def train(
    dataset: Dataset,
    config: Config,
    ds: str,
    device: torch.device,
    log: Log,
    plan: Plan | None = None,
    version: int | None = None,
    trace: Path | None = None,
) -> dict[str, Any]:
    """Makes the run of day `ds`, or finds it made.

    Args:
        dataset: Declares what is read.
        config: Model and training.
        ds: Day to make the run for.
        device: Where to train.
        log: Logs the finished training.
        plan: What to train on; by default the days before `ds` that the newest fitting run has not seen.
        version: Of the samples table that is planned from; by default the newest.
        trace: File for a trace of some steps; by default none is made.

    Returns:
        What happened: run, days trained, base, loss, digest, whether anything changed.

    Raises:
        RunError: There is nothing to train on, a run is damaged or another process is making it.
        SamplesUnavailableError: Samples cannot be read.
        NonFiniteLossError: Training diverged; no run is made.
    """
    config = config.sized(dataset)
    path = run_path(dataset.name, config.preset, ds)
    with process_group(device):
        is_first = dist.get_rank() == 0
        with exclusively(path.parent) if is_first else contextlib.nullcontext():
            done = _done_or_plan(dataset, config, ds, path, plan, version) if is_first else None
            shared = [done]
            dist.broadcast_object_list(shared)
            if isinstance(shared[0], Exception):
                raise shared[0]
            if isinstance(shared[0], Run):
                return _result(shared[0], changed=False)
            assert isinstance(shared[0], Plan)
            run = _make(dataset, config, ds, device, shared[0], partial_path(path), log, trace)
            shared = [run]
            dist.broadcast_object_list(shared)
            assert isinstance(shared[0], Run)
            return _result(shared[0], changed=True)


def _done_or_plan(
    dataset: Dataset, config: Config, ds: str, path: Path, plan: Plan | None, version: int | None
) -> Run | Plan | Exception:
    """The run if it is made, else the plan; an error is returned, so that every rank can raise it."""
    try:
        partial = partial_path(path)
        plan = plan or plan_of(dataset, config, ds, version)
        wanted = {*plan.days, *plan.seen_days}
        existing = [run for run in complete_runs(dataset.name, config.preset) if run.path == path]
        for run in existing:
            if set(run.seen_days) == wanted and is_as_asked(run, dataset, config):
                remove_progress(run.path)
                return run
        done = finish(
            partial,
            wanted,
            lambda run: run.config()[1] == config and not differences(run.config()[0], dataset),
        )
        if done is not None:
            remove_progress(done.path)
            return done
        partial.mkdir(parents=True, exist_ok=True)
        (partial / RECORD).unlink(missing_ok=True)
        return plan
    except (CommandError, ValueError, OSError) as error:
        return error


def _make(
    dataset: Dataset,
    config: Config,
    ds: str,
    device: torch.device,
    plan: Plan,
    partial: Path,
    log: Log,
    trace: Path | None,
) -> Run | None:
    start_time = time.monotonic()
    trainer = Trainer(dataset, config, device)
    progress, checkpoint = read_progress(plan, dataset, config, partial)
    days = progress["days"]
    newest = max(days.values(), default=plan.version)
    tables = {version: SamplesTable(dataset, version) for version in {newest, *days.values()}}
    samples_code: dict[str, str] = {}
    for version, table in tables.items():
        some = [day for day in days if days[day] == version]
        table.require(some)
        samples_code |= table.code_versions(some)
    if len(set(samples_code.values())) > 1:
        logger.warning("the days were built by different versions of the code: %s", samples_code)
    start = Position()
    if checkpoint is not None:
        trainer.load(checkpoint)
        start = position_in(checkpoint)
    elif plan.base is not None:
        trainer.load(ShardReader(Path(plan.base) / CHECKPOINT))
    before = progress["seconds"]
    with Saver(trainer.group) as saver:

        def save(day: str, position: Position | None) -> None:
            """Waits for the checkpoint before, then begins one at a position, if any."""
            if saver.wait():
                reach("train:checkpoint_saved")
            if position is not None:
                progress["seconds"] = before + time.monotonic() - start_time
                save_progress(saver, trainer, progress, partial, day, position)

        with traced(trace, device) as after_step:
            _take_days(trainer, tables, progress, start, save, after_step)
        saver.save(partial / CHECKPOINT, trainer.state(), {})
    if dist.get_rank():
        return None
    write_config(partial, dataset, config)
    published = trainer.published(ShardReader(partial / CHECKPOINT))
    write_file(partial / WEIGHTS, lambda path: save_file(published, path))
    digest = digest_of(partial)
    if plan.base is not None:
        of_base = load_file(Path(plan.base) / WEIGHTS)
        _write_changes(partial, of_base, published, {"from": str(plan.base_digest), "to": digest})
    reach("train:weights_saved")
    progress["seconds"] = before + time.monotonic() - start_time
    record = {
        **_record(plan, progress, tables[newest], config, ds, device),
        "samples_code": samples_code,
        "num_steps": trainer.num_steps,
        "rows": {
            day: sum(part.rows for part in tables[version].slices(day)) for day, version in days.items()
        },
    }
    record["mlflow_run_id"] = log(config, record, digest)
    reach("train:before_publish")
    run = publish(partial, record)
    reach("train:published")
    remove_progress(run.path)
    return run


def _write_changes(
    partial: Path, older: dict[str, Tensor], newer: dict[str, Tensor], versions: dict[str, str]
) -> None:
    """Writes what was changed of the base's weights, if it makes these of them: to whoever has those."""
    changed = changes(older, newer)
    made = applied(older, changed)
    if wrong := [name for name in newer if not torch.equal(made[name], newer[name])]:
        raise RunError(f"the changes of {', '.join(wrong)} since the base do not lead to the new weights")
    write_file(partial / CHANGES, lambda path: save_file(changed, path, metadata=versions))


def _take_days(
    trainer: Trainer,
    tables: dict[int, SamplesTable],
    progress: dict[str, Any],
    start: Position,
    save: Callable[[str, Position | None], None],
    after_step: Callable[[], None],
) -> None:
    """Trains on the days in order, from where an interrupted run had come."""
    config, losses, reached = trainer.config, progress["losses"], progress["reached"]
    encoder = SampleEncoder(next(iter(tables.values())).dataset, config.model.max_static)
    loader = Loader(encoder, config, trainer.device)
    meter = Meter(config, trainer.device)
    for day, version in progress["days"].items():
        if reached is not None and day < reached:
            continue
        fit_constants(trainer, tables[version], encoder, day)
        trainer.begin_day(day)
        with loader.steps(tables[version], day, start if day == reached else Position()) as steps:
            meter.begin(steps)
            for step, following in with_next(steps):
                trainer.step(step, following)
                after_step()
                meter.add(step)
                progress["tokens"] += step.num_tokens
                if (len(losses) + trainer.num_pending) % config.train.checkpoint_steps == 0:
                    losses += trainer.losses()
                    save(day, step.position)
        losses += trainer.losses()
        save(day, None)
        logger.info("trained on %s: loss %.5f", day, _mean_loss(losses, day))
        meter.say(day)
        reach("train:day_trained")


def _record(
    plan: Plan, progress: dict[str, Any], table: SamplesTable, config: Config, ds: str, device: torch.device
) -> dict[str, Any]:
    """What `train.json` says of a finished training; the last link of `lineage` is this training."""
    days, code = progress["days"], ",".join(progress["git_shas"])
    link = {
        "ds": ds,
        "days": days,
        "samples_allowed": dict(plan.allowed),
        "samples_table": table.identity,
        "git_sha": code,
        "train": asdict(config.train),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "world_size": dist.get_world_size(),
        "torch": torch.__version__,
    }
    return {
        "ds": ds,
        "dataset": table.dataset.name,
        "preset": config.preset,
        "seen_days": {**plan.seen_days, **days},
        "trained_days": list(days),
        "samples_version": table.version,
        "git_sha": code,
        "base": Path(plan.base).name if plan.base else None,
        "base_digest": plan.base_digest,
        "lineage": [*plan.lineage, link],
        "losses": progress["losses"],
        "loss_by_day": {day: _mean_loss(progress["losses"], day) for day in days},
        "seconds": round(progress["seconds"], 1),
        "tokens": progress["tokens"],
        "world_size": dist.get_world_size(),
    }


def fit_constants(trainer: Trainer, table: SamplesTable, encoder: SampleEncoder, day: str) -> None:
    """Fits what is fitted, not learned, to a sample of a day."""
    sample = table.sample(day, _FIT_ROWS, [*encoder.columns, *encoder.label_columns])
    try:
        rows = encoder.encode(sample)
    except ValueError:
        name_what_is_wrong(table, encoder, day)  # a row of the sample tells neither its file nor its place
        raise
    trainer.scaler.fit(rows)
    if trainer.num_steps == 0:
        trainer.heads.start_at((rows.labels * rows.weights).sum(1) / rows.weights.sum())


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

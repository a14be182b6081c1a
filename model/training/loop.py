"""Days in order, each once: makes the run of a day, or finds it made, and resumes exactly."""

from __future__ import annotations

import fcntl
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from model.config.run import Config
from model.data.encoder import SampleEncoder
from model.data.reader import SamplesTable, SamplesUnavailableError, steps_of
from model.runs.files import RunError, read_state, write_file, write_text
from model.runs.store import (
    CHECKPOINT,
    CONFIG,
    RECORD,
    WEIGHTS,
    Run,
    complete_runs,
    digest_of,
    finish,
    partial_path,
    publish,
    run_path,
)
from model.training.plan import Plan, plan_of
from model.training.step import Trainer, process_group
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.phases import reach

logger = logging.getLogger(__name__)

_PROGRESS = "progress.pt"

_FIT_ROWS = 8192  # rows of a day's first chunk from which numbers are standardised

_FLUSH_STEPS = 20  # steps between two looks at the losses, each of which waits for the device


# Logs a finished training from its config, its record and its digest; returns the id of what it logged.
Log = Callable[[Config, dict[str, Any], str], str]


def train(dataset: Dataset, config: Config, ds: str, device: torch.device, log: Log) -> dict[str, Any]:
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
            run = _make(dataset, config, ds, device, shared[0], partial_path(path), log)
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
    dataset: Dataset,
    config: Config,
    ds: str,
    device: torch.device,
    plan: Plan,
    partial: Path,
    log: Log,
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
    record["mlflow_run_id"] = log(config, record, digest_of(partial))
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

"""What both DAGs are made of: the schedule, and operators that run one step over one day.

A step is a command of this repository (`python -m spark_jobs.ingest --ds ...`). The day is the run's
partition key and nothing else: a run without one fails with a message, it never falls back to today.

Needs the repository on `PYTHONPATH`. Nothing heavy is imported: Airflow reads this every few seconds.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook, SubprocessResult
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import Asset
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from dags.alerts import deadline_missed, task_failed, task_retried
from dags.settings import (
    DATASET,
    IS_SCHEDULED,
    LAUNCHER,
    PYTHON,
    RETRIES,
    RETRY_DELAY,
    SCHEDULE,
    TRAINING_QUEUE,
)
from dags.told import line_of, links_of, pages_of, report_of
from spark_jobs.contract.clock import HOUR_MS, parse_day, shift_day
from spark_jobs.contract.datasets import dataset_named

REPOSITORY = Path(__file__).resolve().parents[1]
TRAINING_POOL = "training"
# Past its end date a DAG makes no scheduled runs; what is triggered or backfilled has no such date and runs.
# Without, Airflow would follow a backfill by a run of the newest day.
END_DATE = datetime(2000, 1, 1, tzinfo=UTC) if not IS_SCHEDULED else None
SPARK_CONNECTION = "spark_default"
SAMPLES = Asset(name="samples", uri=f"mtgr://{DATASET}/samples")
DEFAULT_ARGUMENTS: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay": RETRY_DELAY,
    "retry_exponential_backoff": 2,
    "max_retry_delay": timedelta(minutes=10),
    "on_retry_callback": task_retried,
    "on_failure_callback": task_failed,
}


def on_device(queue: str) -> dict[str, str]:
    """Where tasks that train or score run: a slot of the pool, with Celery a worker of a queue, if any."""
    return {"pool": TRAINING_POOL, "queue": queue} if queue else {"pool": TRAINING_POOL}


ON_DEVICE = on_device(TRAINING_QUEUE)


def schedule() -> tuple[str, int]:
    """Cron (UTC) and run offset of `samples_daily`.

    A day may be built when its last impression's attribution window has closed, wherever the dataset's clock
    lies. The offset counts the cron ticks from the run back to its day.
    """
    dataset = dataset_named(DATASET)
    minutes = (24 * HOUR_MS - dataset.utc_offset_ms + dataset.attribution_ms) // 60_000 + 30
    days, minute_of_day = divmod(minutes, 24 * 60)
    cron = f"{minute_of_day % 60} {minute_of_day // 60} * * *"
    return SCHEDULE or cron, -days


def deadline(hours: int) -> DeadlineAlert:
    """The alert of a run that is not done so many hours after it was queued."""
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        # In seconds, which Airflow 3.3 takes as well as a timedelta: with that it cannot clear a task of a
        # run whose deadline is still to come (a TypeError, which the UI shows as error 500).
        interval=3600.0 * hours,
        callback=AsyncCallback(deadline_missed, kwargs={"hours": hours}),
    )


def day(partition_key: str | None) -> str:
    """The run's day.

    Args:
        partition_key: Partition key of the run.

    Raises:
        AirflowFailException: It is missing or no day; a retry would not help.
    """
    if not partition_key:
        raise AirflowFailException(
            "this run has no partition key, so it has no day: trigger the DAG with the day as partition key, "
            "e.g. 2026-03-01, or by `make run` and `make backfill`"
        )
    try:
        return parse_day(partition_key).isoformat()
    except ValueError as error:
        raise AirflowFailException(f"the run's partition key: {error}") from error


def day_after(partition_key: str | None) -> str:
    """The day behind the run's: the one that is served once the run's has been built; raises as `day`."""
    return shift_day(day(partition_key), 1)


def result_of(line: str) -> Any:
    """The step's result: its last line of output, one JSON object.

    Raises:
        AirflowException: It is not.
    """
    try:
        result = json.loads(line)
    except ValueError:
        result = None
    if not isinstance(result, dict):
        raise AirflowException(f"the step ended without a JSON result; its last line was {line[:200]!r}")
    return result


def refused(line: str) -> dict[str, Any] | None:
    """The result of a step that was refused, by its last line of output; None where it is no such result."""
    try:
        result: dict[str, Any] = result_of(line)
    except AirflowException:
        return None
    return result if "refused" in result else None


def why_failed(module: str, ended: SubprocessResult) -> str:
    """What a step that failed has said last: its error, if it could still say one."""
    said = re.sub(r"^\S+ \S+ ERROR [\w.]+: ", "", ended.output)
    if said != ended.output:
        return f"{module} failed: {said}"
    return f"{module} failed with exit code {ended.exit_code}; its last line: {said or 'none'}"


def command(launcher: str, module: str, *arguments: str) -> str:
    """Shell command of a step over the run's day; `arguments` may hold templates."""
    return f"exec {launcher} -m {module} --dataset {shlex.quote(DATASET)} {' '.join(arguments)}"


DAY_ARGUMENT = "--ds {{ day(partition_key) }}"


class _Step(SubprocessHook):  # type: ignore[misc]
    """Keeps how a step ended."""

    ended: SubprocessResult | None = None

    def run_command(self, *args: Any, **kwargs: Any) -> SubprocessResult:
        """Runs the step."""
        self.ended = super().run_command(*args, **kwargs)
        return self.ended


class StepOperator(BashOperator):  # type: ignore[misc]
    """Runs one step as a command in the repository, in the environment of the worker.

    Its result, a JSON object, is pushed as XCom, ends the log in words, and names the pages that the task
    links to. A step that was refused, such as a promotion with an alarm, has answered: it fails at once and
    says why.

    Args:
        module: Module to run, e.g. `model.train`.
        arguments: Its arguments behind `--dataset`; templated.
        launcher: Program that is given `-m module`.
        kwargs: As for every operator.
    """

    def __init__(
        self, *, module: str, arguments: str = DAY_ARGUMENT, launcher: str = LAUNCHER, **kwargs: Any
    ) -> None:
        self.module, self.arguments, self.launcher = module, arguments, launcher
        self.pages: dict[str, str] = {}
        super().__init__(
            bash_command=command(launcher, module, arguments),
            cwd=str(REPOSITORY),  # the default is a temporary folder
            env={"PYTHONPATH": str(REPOSITORY)},
            append_env=True,  # the default replaces the environment
            skip_on_exit_code=None,  # the default takes 99 for "skipped": a failing gate could pass
            output_processor=result_of,
            **kwargs,
        )
        self.operator_extra_links = links_of(module)

    @functools.cached_property
    def subprocess_hook(self) -> _Step:
        """What runs the step."""
        return _Step()

    def execute(self, context: Any) -> Any:
        """Runs the step and returns what it printed last.

        Raises:
            AirflowFailException: It was refused; a retry would be, too.
            AirflowException: It failed.
        """
        try:
            result = super().execute(context)
        except AirflowException:
            ended = self.subprocess_hook.ended
            answer = refused(ended.output) if ended is not None and ended.exit_code == 1 else None
            if answer is None:
                if ended is None or not ended.exit_code:
                    raise
                raise AirflowException(why_failed(self.module, ended)) from None
            self.pages = pages_of(self.module, answer) | self._report(context, answer)
            for part in str(answer["refused"]).split("; "):  # Airflow's page of a log cuts what is longer
                self.log.error("%s", part)
            # Without the shell's "non-zero exit code" behind it: what the log ends with is why.
            raise AirflowFailException(f"{self.module} refused: {answer['refused']}") from None
        self._tell(result)
        return result

    def _report(self, context: Any, answer: dict[str, Any]) -> dict[str, str]:
        """Writes the reports of days that a gate has stopped, which no promotion will; links to the last."""
        pages: dict[str, str] = {}
        for ds in (ds for ds, passed in answer.get("verdicts", {}).items() if not passed):
            line = command(self.launcher, "model.report", f"--ds {shlex.quote(ds)}")
            ended = _Step().run_command(["bash", "-c", line], env=self.get_env(context), cwd=self.cwd)
            if ended.exit_code:  # why the gate has failed is what is told
                self.log.error("no report of %s: `make report DAY=%s` writes it once it can", ds, ds)
            else:
                pages = report_of(DATASET, ds)
        return pages

    def _tell(self, result: dict[str, Any]) -> None:
        self.pages = pages_of(self.module, result)
        self.log.info("%s", line_of(self.module, result))


class SparkStepOperator(StepOperator):
    """Runs one step on the Spark that the Airflow connection `spark_default` names.

    A connection of type `spark_connect` gives the command its `SPARK_REMOTE`; one of type `spark` submits the
    same module to that master by spark-submit, in client mode.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._submitted: Any = None

    def execute(self, context: Any) -> Any:
        """Runs the step and returns its result."""
        from airflow.sdk import BaseHook

        connection = BaseHook.get_connection(SPARK_CONNECTION)
        if connection.conn_type != "spark_connect":
            return self._submit()
        remote = f"sc://{connection.host}:{connection.port or 15002}"
        self.env = {"PYTHONPATH": str(REPOSITORY), "SPARK_REMOTE": remote}
        return super().execute(context)

    def _submit(self) -> Any:
        from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook

        from spark_jobs.contract import environment
        from spark_jobs.lake.session import settings, spark_home

        environment.override({"SPARK_HOME": str(spark_home())})
        last: list[str] = [""]

        class Submit(SparkSubmitHook):  # type: ignore[misc]
            """Also keeps the last line that looks like a result: Spark's own lines follow it."""

            def _process_spark_submit_log(self, itr: Iterator[Any]) -> None:
                super()._process_spark_submit_log(_keeping_results(itr, last))

        arguments = shlex.split(str(self.bash_command))
        self._submitted = Submit(
            conn_id=SPARK_CONNECTION,
            conf=settings(local=False),
            name=f"mtgr-{DATASET}-{self.task_id}",
            application_args=arguments[arguments.index("-m") + 1 :],
            env_vars={"PYTHONPATH": str(REPOSITORY), "PYSPARK_PYTHON": PYTHON},
        )
        self._submitted.submit(str(REPOSITORY / "scripts" / "launchers" / "spark_main.py"))
        result = result_of(last[0])
        self._tell(result)
        return result

    def on_kill(self) -> None:
        """Stops what runs: the command, or the submitted driver."""
        if self._submitted is not None:
            self._submitted.on_kill()
        else:
            super().on_kill()


def _keeping_results(lines: Iterable[Any], last: list[str]) -> Iterator[Any]:
    for line in lines:
        text = line.decode(errors="replace") if isinstance(line, bytes) else str(line)
        if text.startswith("{"):
            last[0] = text.strip()
        yield line


def publish_built(context: Any) -> None:
    """Says of the asset what was built; skips the task, and what would follow, when the day is empty.

    Raises:
        AirflowSkipException: The day is empty.
    """
    built = context["ti"].xcom_pull(task_ids="build_samples")
    if built["empty"]:
        raise AirflowSkipException(
            f"{built['ds']} has no impressions: nothing to publish, nothing to train on"
        )
    context["outlet_events"][SAMPLES].extra = {
        "day": built["ds"],
        "rows": built["rows"],
        "candidates": built["candidates"],
        "version": built["samples_version"],
        "days": [*built["rebuilt"], built["ds"]],
    }

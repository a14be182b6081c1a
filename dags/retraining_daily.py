"""`retraining_daily`: models learn the days before a day; the best is promoted if it ranks that day better.

    has_history -> train -> evaluate -> gate_evaluation -> register -> promote -> publish

Started by the asset `samples`, whose partition key is the day; a backlog is worked off first in, first out.
The first day of all has nothing before it to train on: `has_history` skips the rest. One run at a time,
training and scoring in the pool `training`; a day that was trained before, or comes twice, changes nothing.
Every step takes all presets of the day: those of `MTGR_CHALLENGERS` and the champion's own, which `train`
finds out and hands on. A failed `gate_evaluation` fails the run before anything is registered. `publish`
hands a new champion to what serves; one whose package does not score as evaluation did is refused, and the
old one goes on serving.
"""

import logging
from datetime import timedelta

from airflow.sdk import DAG, PartitionedAssetTimetable, task

from dags.alerts import run_failed
from dags.settings import CHALLENGERS, DATASET, TRAIN_LAUNCHER
from dags.steps import (
    DAY_ARGUMENT,
    DEFAULT_ARGUMENTS,
    ON_DEVICE,
    SAMPLES,
    StepOperator,
    day,
    deadline,
)

DEADLINE_HOURS = 12
TRAINED = f"{DAY_ARGUMENT} --preset {' '.join(CHALLENGERS)} champion"
OF_DAY = DAY_ARGUMENT + " --preset {{ ti.xcom_pull(task_ids='train')['presets'] | join(' ') }}"

with DAG(
    "retraining_daily",
    schedule=PartitionedAssetTimetable(assets=SAMPLES),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGUMENTS,
    user_defined_macros={"day": day},
    on_failure_callback=run_failed,
    deadline=deadline(DEADLINE_HOURS),
    tags=["mtgr"],
    doc_md=__doc__,
) as dag:

    @task.short_circuit(execution_timeout=timedelta(minutes=10))  # type: ignore[untyped-decorator]
    def has_history(partition_key: str | None = None) -> bool:
        """Whether an earlier day has samples that did not fail their gate."""
        from spark_jobs.contract import locations
        from spark_jobs.lake.log import partition_values
        from spark_jobs.lake.verdicts import standings

        today = day(partition_key)
        built = partition_values(locations.table(DATASET, "samples"), "ds")
        stands = standings(DATASET, "samples", [ds for ds in built if ds < today])
        number = len(stands.of) - len(stands.failed)
        logging.getLogger("airflow.task").info("%d days before %s may be learned from", number, today)
        return number > 0

    train = StepOperator(
        task_id="train",
        module="model.train",
        arguments=TRAINED,
        launcher=TRAIN_LAUNCHER,
        execution_timeout=timedelta(hours=12),
        **ON_DEVICE,
    )
    evaluate = StepOperator(
        task_id="evaluate",
        module="model.evaluate",
        arguments=OF_DAY,
        execution_timeout=timedelta(hours=3),
        **ON_DEVICE,
    )
    gate_evaluation = StepOperator(
        task_id="gate_evaluation",
        module="expectations.gate",
        arguments=f"--suite evaluation {OF_DAY}",
        retries=0,  # a failed gate is a failed run; the same scores would fail again
        execution_timeout=timedelta(hours=1),
    )
    register = StepOperator(
        task_id="register",
        module="model.register",
        arguments=OF_DAY,
        execution_timeout=timedelta(hours=1),
    )
    promote = StepOperator(
        task_id="promote",
        module="model.promote",
        arguments=OF_DAY,
        execution_timeout=timedelta(hours=1),
    )
    publish = StepOperator(
        task_id="publish",
        module="model.publish",
        execution_timeout=timedelta(hours=1),
    )
    has_history() >> train >> evaluate >> gate_evaluation >> register >> promote >> publish

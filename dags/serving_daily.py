"""`serving_daily`: what requests of tomorrow need not carry is made of all days up to a day, and published.

    is_newest -> build_lookups -> publish_lookups

Started by the asset `samples`, whose partition key is the day: its samples stand, so the day behind it can be
served. A day that another has samples behind is left to that one's run: `is_newest` skips the rest. A run
disturbs no other: while one fails, the server goes on with the lookups that it has. Where nothing runs by the
clock (`MTGR_SCHEDULED=0`: `make run`, `make backfill`) it is paused from the start.
"""

import logging
from datetime import timedelta

from airflow.sdk import DAG, PartitionedAssetTimetable, task

from dags.alerts import run_failed
from dags.settings import DATASET, IS_SCHEDULED
from dags.steps import (
    DEFAULT_ARGUMENTS,
    SAMPLES,
    SparkStepOperator,
    StepOperator,
    day,
    day_after,
    deadline,
)

DEADLINE_HOURS = 6
SERVED_DAY = "{{ day_after(partition_key) }}"

with DAG(
    "serving_daily",
    schedule=PartitionedAssetTimetable(assets=SAMPLES),
    catchup=False,
    is_paused_upon_creation=not IS_SCHEDULED,
    max_active_runs=1,
    default_args=DEFAULT_ARGUMENTS,
    user_defined_macros={"day_after": day_after},
    on_failure_callback=run_failed,
    deadline=deadline(DEADLINE_HOURS),
    tags=["mtgr"],
    doc_md=__doc__,
) as dag:

    @task.short_circuit(execution_timeout=timedelta(minutes=10))  # type: ignore[untyped-decorator]
    def is_newest(partition_key: str | None = None) -> bool:
        """Whether no later day has samples."""
        from spark_jobs.contract import locations
        from spark_jobs.lake.log import partition_values

        newest = max(partition_values(locations.table(DATASET, "samples"), "ds"))
        logging.getLogger("airflow.task").info("the newest day with samples is %s", newest)
        return bool(newest == day(partition_key))

    build_lookups = SparkStepOperator(
        task_id="build_lookups",
        module="spark_jobs.build_lookups",
        arguments=f"--ds {SERVED_DAY}",
        execution_timeout=timedelta(hours=3),
    )
    publish_lookups = StepOperator(
        task_id="publish_lookups",
        module="model.publish",
        arguments=f"--lookups {SERVED_DAY}",
        execution_timeout=timedelta(hours=1),
    )
    is_newest() >> build_lookups >> publish_lookups

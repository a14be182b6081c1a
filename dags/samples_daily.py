"""`samples_daily`: the raw logs of a day become samples, and the asset `samples` is published for that day.

    ingest -> gate_events -> build_samples -> gate_samples (publishes `samples`)

The partition key of a run is its day, YYYY-MM-DD. A run starts when the day's attribution window has closed,
one run at a time, oldest first. A gate that fails fails the run at once, nothing is published and nothing
trains. A day without impressions skips `gate_samples`, so that nothing is published either. Records that came
late re-make the earlier days that they belong to.
"""

from datetime import timedelta

from airflow.sdk import DAG, CronPartitionTimetable

from dags.alerts import run_failed
from dags.steps import (
    DAY_ARGUMENT,
    DEFAULT_ARGUMENTS,
    END_DATE,
    SAMPLES,
    SparkStepOperator,
    day,
    deadline,
    publish_built,
    schedule,
)

DEADLINE_HOURS = 4
REBUILT_DAYS = "{{ ' '.join(ti.xcom_pull(task_ids='build_samples')['rebuilt']) }}"
_cron, _offset = schedule()

with DAG(
    "samples_daily",
    schedule=CronPartitionTimetable(_cron, timezone="UTC", run_offset=_offset, key_format="%Y-%m-%d"),
    end_date=END_DATE,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGUMENTS,
    user_defined_macros={"day": day},
    on_failure_callback=run_failed,
    deadline=deadline(DEADLINE_HOURS),
    tags=["mtgr"],
    doc_md=__doc__,
) as dag:
    ingest = SparkStepOperator(
        task_id="ingest", module="spark_jobs.ingest", execution_timeout=timedelta(hours=2)
    )
    gate_events = SparkStepOperator(
        task_id="gate_events",
        module="expectations.gate",
        arguments=f"--suite events {DAY_ARGUMENT}",
        retries=0,  # a failed gate is a failed run; the same data would fail again
        execution_timeout=timedelta(hours=1),
    )
    build_samples = SparkStepOperator(
        task_id="build_samples",
        module="spark_jobs.build_samples",
        arguments=f"{DAY_ARGUMENT} --late",
        execution_timeout=timedelta(hours=3),
    )
    gate_samples = SparkStepOperator(
        task_id="gate_samples",
        module="expectations.gate",
        arguments=f"--suite samples {DAY_ARGUMENT} {REBUILT_DAYS}",
        retries=0,
        execution_timeout=timedelta(hours=1),
        pre_execute=publish_built,
        outlets=[SAMPLES],
    )
    ingest >> gate_events >> build_samples >> gate_samples

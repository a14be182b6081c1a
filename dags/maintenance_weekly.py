"""`maintenance_weekly`: what nobody needs any more is removed, on Mondays at 04:00 UTC.

    tables   small files are joined; files that only versions older than seven days need are removed
    models   all but the newest `MTGR_KEEP` versions and runs go, fewer where `MTGR_RUNS_BUDGET` says so
    logs     those of runs that ended `MTGR_KEEP_LOG_DAYS` days ago go

The three do not wait for each other. One that cannot meet its budget fails, and says what holds the bytes.
**Trigger it with `dry_run` ticked** to see what would go: then nothing is changed.
"""

import logging
from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, Param, task

from dags.alerts import run_failed
from dags.settings import (
    IS_SCHEDULED,
    KEEP,
    KEEP_LOG_DAYS,
    RUNS_BUDGET,
    TABLES_BUDGET,
)
from dags.steps import DEFAULT_ARGUMENTS, ON_DEVICE, SparkStepOperator, StepOperator

DRY_RUN = "{{ '--dry-run' if params.dry_run else '' }}"

with DAG(
    "maintenance_weekly",
    schedule=CronTriggerTimetable("0 4 * * 1", timezone="UTC") if IS_SCHEDULED else None,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGUMENTS,
    params={"dry_run": Param(False, type="boolean", description="say what would go, and change nothing")},
    on_failure_callback=run_failed,
    tags=["mtgr"],
    doc_md=__doc__,
) as dag:
    SparkStepOperator(
        task_id="tables",
        module="spark_jobs.maintain",
        arguments=f"--budget {TABLES_BUDGET} {DRY_RUN}",
        execution_timeout=timedelta(hours=6),
    )
    StepOperator(
        task_id="models",
        module="model.prune",
        arguments=f"--keep {KEEP} --budget {RUNS_BUDGET} {DRY_RUN}",
        execution_timeout=timedelta(hours=3),
        **ON_DEVICE,  # a training holds the lock of its preset's runs
    )

    @task(execution_timeout=timedelta(hours=1))  # type: ignore[untyped-decorator]
    def logs(params: dict[str, object] | None = None) -> dict[str, int]:
        """Removes the logs of old runs from this worker's folder of logs."""
        from airflow.configuration import conf

        from dags.retention import remove_old_logs

        is_dry = bool((params or {}).get("dry_run"))
        number, size = remove_old_logs(conf.get("logging", "base_log_folder"), KEEP_LOG_DAYS, is_dry=is_dry)
        told = "would go" if is_dry else "are gone"
        logging.getLogger("airflow.task").info(
            "the logs of %d runs, %d bytes, older than %d days %s", number, size, KEEP_LOG_DAYS, told
        )
        return {"runs": number, "bytes": size}

    logs()

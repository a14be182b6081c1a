"""Where everything lies: each location is an environment variable with a default under `var/`.

| variable | what | default |
|---|---|---|
| `MTGR_VAR` | the root of all that is written | `<repo>/var` |
| `MTGR_LAKE` | Delta tables and raw logs; a path or an object store's URI | `$MTGR_VAR/lake` |
| `MTGR_RUNS` | training and evaluation runs | `$MTGR_VAR/runs` |
| `MTGR_<DATASET>` | folder with a dataset's raw logs | `<lake>/<dataset>/raw` |
| `MLFLOW_TRACKING_URI` | MLflow's tracking server or store | `sqlite:///$MTGR_VAR/mlflow/mlflow.db` |
"""

from __future__ import annotations

from pathlib import Path

from spark_jobs.contract.environment import text


def var() -> Path:
    """Root of all that is written."""
    return Path(text("MTGR_VAR") or Path(__file__).resolve().parents[2] / "var").absolute()


def lake() -> str:
    """URI or absolute path of the lake, without a trailing slash."""
    return (text("MTGR_LAKE") or str(var() / "lake")).rstrip("/")


def raw(dataset: str) -> str:
    """Folder of a dataset's raw logs: `<lake>/<dataset>/raw`."""
    return f"{lake()}/{dataset}/raw"


def table(dataset: str, name: str) -> str:
    """URI of a Delta table: `<lake>/<dataset>/<name>`."""
    return f"{lake()}/{dataset}/{name}"


def runs() -> Path:
    """Folder of training and evaluation runs; local or a shared file system."""
    return Path(text("MTGR_RUNS") or var() / "runs").absolute()


def tracking_uri() -> str:
    """MLflow's tracking and registry URI."""
    return text("MLFLOW_TRACKING_URI") or f"sqlite:///{var()}/mlflow/mlflow.db"

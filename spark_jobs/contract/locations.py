"""Where everything lies: each location is an environment variable with a default under `var/`.

| variable | what | default |
|---|---|---|
| `MTGR_VAR` | the root of all that is written | `<repo>/var` |
| `MTGR_LAKE` | Delta tables and raw logs; a path or an object store's URI | `$MTGR_VAR/lake` |
| `MTGR_RUNS` | training and evaluation runs | `$MTGR_VAR/runs` |
| `MTGR_<DATASET>` | folder with a dataset's raw logs | `<lake>/<dataset>/raw` |
| `MLFLOW_TRACKING_URI` | MLflow's tracking server or store | `sqlite:///$MTGR_VAR/mlflow/mlflow.db` |

A folder's name may hold letters and digits of any language, spaces and most signs. Those that Spark takes for
a pattern, a URI for its own or a shell for a line are refused at once by every command (`check`): half of the
libraries would write to another folder than the other half reads.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from spark_jobs.contract.command import UsageError
from spark_jobs.contract.environment import raw_logs, text

_SIGNS = re.compile(r"[#?*\[\]{}\\\x00-\x1f\x7f]|%[0-9A-Fa-f]{2}")


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


def serving() -> Path:
    """Folder of all that serves: packages, engines."""
    return var() / "serving"


def package(dataset: str, version: int) -> Path:
    """Folder of a version's serving package."""
    return serving() / dataset / str(version)


def engines(digest: str) -> Path:
    """Folder of what TensorRT built of a version, by its digest."""
    return serving() / "engines" / digest


def tracking_uri() -> str:
    """MLflow's tracking and registry URI."""
    return text("MLFLOW_TRACKING_URI") or f"sqlite:///{var()}/mlflow/mlflow.db"


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; of one that is not there, none."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a run that goes on replaces files meanwhile
            total += path.lstat().st_size if path.is_file() else 0
    return total


def check() -> None:
    """Checks the names of the folders.

    Raises:
        UsageError: One of them has a sign that not every library takes as it stands; names it and the sign.
    """
    from spark_jobs.contract.datasets import DATASETS

    named = {"MTGR_VAR": str(var()), "MTGR_LAKE": lake(), "MTGR_RUNS": str(runs())}
    named |= {f"MTGR_{name.upper()}": raw_logs(name) for name in DATASETS}
    for setting, place in named.items():
        check_name(setting, place)


def check_name(setting: str, place: str) -> None:
    """Checks the name of one folder or URI; see `check`."""
    sign = _SIGNS.search(place)
    if sign:
        raise UsageError(
            f"{setting}={place}: a folder's name may not have {sign.group()!r} "
            f"(nor # ? * [ ] {{ }} \\ or %XX): move the folder, or set {setting} to another one"
        )

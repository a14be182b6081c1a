"""What a step did: the line that ends its log, and the pages that its task links to.

Both are read from the step's result, its last line of output; see `docs/operations.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import BaseOperatorLink

from dags.settings import DOCS_URL, MLFLOW_URL

DATA_DOCS, MLFLOW, REPORT = "data docs", "MLflow", "report of the day"


class PageLink(BaseOperatorLink):  # type: ignore[misc]
    """A button on the page of a task: where the page lies is known once the step has run.

    Args:
        name: What the button says.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        """What the button says."""
        return self._name

    @property
    def xcom_key(self) -> str:
        """Where Airflow keeps the address."""
        return f"_link_{self._name.replace(' ', '_')}"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address; empty where the step has said of none, or no server of such pages is known."""
        return str(operator.pages.get(self._name, ""))


def links_of(module: str) -> tuple[PageLink, ...]:
    """The buttons of a step's task."""
    names = {
        "expectations.gate": (DATA_DOCS, REPORT),
        "model.train": (MLFLOW,),
        "model.register": (MLFLOW,),
        "model.promote": (MLFLOW, REPORT),
    }
    return tuple(PageLink(name) for name in names.get(module, ()))


def pages_of(module: str, result: Mapping[str, Any]) -> dict[str, str]:
    """Button to address, of what a step's result names: of several models the first, or the promoted one."""
    if module == "expectations.gate" and DOCS_URL:
        return {DATA_DOCS: f"{DOCS_URL}/{result['page']}"}
    if module == "model.train" and MLFLOW_URL and result["mlflow_run_id"]:
        return {MLFLOW: f"{MLFLOW_URL}/#/runs/{result['mlflow_run_id']}"}
    if module == "model.register" and MLFLOW_URL:
        return {MLFLOW: f"{MLFLOW_URL}/#/models/{result['model']}/versions/{result['version']}"}
    if module == "model.promote":
        version = f"{MLFLOW_URL}/#/models/mtgr-{result['dataset']}/versions/{result['version']}"
        return report_of(result["dataset"], result["ds"]) | ({MLFLOW: version} if MLFLOW_URL else {})
    return {}


def report_of(dataset: str, ds: str) -> dict[str, str]:
    """The button of the report of a day, where data docs are served: `path_of` in `model/reports/page.py`."""
    return {REPORT: f"{DOCS_URL}/reports/{dataset}/{ds}.html"} if DOCS_URL else {}


def line_of(module: str, result: Mapping[str, Any]) -> str:
    """One line with numbers; empty for a module that is no step of the DAGs."""
    tell = _LINES.get(module)
    return "" if tell is None else tell(result)


def _ingest(result: Mapping[str, Any]) -> str:
    late = _days("; late ones of ", result["late_days"])
    return (
        f"{result['ds']}: {result['events']} events of {result['records']} records, "
        f"{result['duplicates']} duplicates, {result['quarantined']} in quarantine{late}"
    )


def _gate(result: Mapping[str, Any]) -> str:
    hold, of = result["rules"]
    allowed = "".join(f"; {day} allowed: {why}" for day, why in result["allowed"].items())
    return f"{result['suite']} of {', '.join(result['verdicts'])}: {hold} of {of} rules hold{allowed}"


def _build_samples(result: Mapping[str, Any]) -> str:
    if result["empty"]:
        return f"{result['ds']}: no impressions, so no samples"
    made = "as they were" if result["unchanged"] else f"version {result['samples_version']}"
    again = _days("; made again, as records came late: ", result["rebuilt"])
    stale = _days("; stale, backfill them: ", result["stale"])
    return (
        f"{result['ds']}: {result['rows']} rows with {result['candidates']} candidates, {made}{again}{stale}"
    )


def _train(result: Mapping[str, Any]) -> str:
    def one(preset: str, of: Mapping[str, Any]) -> str:
        losses = ", ".join(f"{day} at a loss of {loss:.4f}" for day, loss in of["loss_by_day"].items())
        start = f"from the run of {of['base']}" if of["base"] else "from scratch"
        return f"{preset} learned {losses}, {start}" if of["changed"] else f"{preset} had learned all before"

    return _by_preset(result, one)


def _evaluate(result: Mapping[str, Any]) -> str:
    def one(preset: str, of: Mapping[str, Any]) -> str:
        champion = of.get("champion")
        against = ""
        if champion:
            against = (
                f" (champion, version {champion['version']}: {champion['ctr_gauc']:.4f}, "
                f"{champion['ctcvr_gauc']:.4f})"
            )
        return f"{preset} CTR GAUC {of['ctr_gauc']:.4f}, CTCVR GAUC {of['ctcvr_gauc']:.4f}{against}"

    return _by_preset(result, one)


def _register(result: Mapping[str, Any]) -> str:
    def one(preset: str, of: Mapping[str, Any]) -> str:
        return f"{preset} is version {of['version']}{'' if of['new'] else ', as before'}"

    return f"{result['model']}: {_by_preset(result, one)}"


def _promote(result: Mapping[str, Any]) -> str:
    def one(preset: str, of: Mapping[str, Any]) -> str:
        decision = "promoted" if of["promoted"] else "not promoted"
        return f"version {of['version']} ({preset}) {decision}: {'; '.join(of['reasons'])}"

    return f"{_by_preset(result, one)}. Champion: version {result['champion']}"


def _build_lookups(result: Mapping[str, Any]) -> str:
    rows = ", ".join(f"{count} of {kind}" for kind, count in result["rows"].items())
    return f"lookups of {result['ds']}: {rows}"


def _publish(result: Mapping[str, Any]) -> str:
    if "lookups" in result:
        return f"lookups of {result['lookups']} serve: {result['rows']} rows, {result['bytes']} bytes"
    if not result["changed"]:
        return (
            "no champion to serve yet" if result["version"] is None else f"version {result['version']} serves"
        )
    instead = f" instead of version {result['before']}" if result["before"] else ""
    return f"version {result['version']} serves{instead}"


def _maintain(result: Mapping[str, Any]) -> str:
    tables = ", ".join(
        f"{name} {of['before']} files, now {of['after']}" for name, of in result["tables"].items()
    )
    went = "would be freed" if result["dry_run"] else "were freed"
    return f"{result['freed']} bytes {went}, {result['left']} are left: {tables or 'no table'}"


def _prune(result: Mapping[str, Any]) -> str:
    went = "would go" if result["dry_run"] else "are gone"
    return (
        f"{len(result['deleted'])} versions and {len(result['deleted_runs'])} runs {went}, "
        f"{result['freed']} bytes, {result['left']} are left"
    )


_LINES = {
    "spark_jobs.ingest": _ingest,
    "spark_jobs.build_samples": _build_samples,
    "spark_jobs.build_lookups": _build_lookups,
    "expectations.gate": _gate,
    "spark_jobs.maintain": _maintain,
    "model.prune": _prune,
    "model.train": _train,
    "model.evaluate": _evaluate,
    "model.register": _register,
    "model.promote": _promote,
    "model.publish": _publish,
}


def _by_preset(result: Mapping[str, Any], one: Any) -> str:
    return ". ".join(one(preset, of) for preset, of in result["presets"].items())


def _days(before: str, days: Sequence[str]) -> str:
    return f"{before}{', '.join(days)}" if days else ""

"""What the pages of MLflow say in words: of a run, of the registered model, of the experiment.

Markdown, made from records and tags alone. Links lead within MLflow's own UI, wherever it is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.registry import tracking
from model.registry import versions as registry
from model.registry.tracking import VIEW
from model.registry.versions import Version
from model.reports.contenders import contenders
from model.reports.page import REPORT
from model.reports.records import TASKS

OVERVIEW = "overview.svg"  # the chart on a run's first page
COLUMNS = ("ctcvr_gauc", "champion_ctcvr_gauc", "ctcvr_copc")  # no more fit beside the decision


def view() -> dict[str, Any]:
    """State of the runs table, which MLflow keeps as a shared view: newest first, the metrics that decide."""
    return {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": [*(f"metrics.`{name}`" for name in COLUMNS), "tags.`decision`"],
        "runsHiddenMode": "FIRST_10_RUNS",
    }


def runs_link(experiment: str) -> str:
    """Link to the runs table with the metrics that decide."""
    return f"#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def run_page(
    experiment: str, run_id: str, evaluation: Mapping[str, Any], decision: str, version: Version | None
) -> str:
    """A run's description: the day's GAUC as a chart, the decision, and where to go on.

    Args:
        experiment: Id of its experiment.
        run_id: Its id.
        evaluation: Its evaluation.
        decision: In words; empty before it is decided.
        version: What it was registered as; None before it is.
    """
    # MLflow folds a description after some 100 pixels: the chart comes first, and its rows are narrow.
    lines = [
        f"![{_numbers(evaluation)}](get-artifact?path={OVERVIEW}&run_uuid={run_id})",
        "",
        decision or "**Not decided yet.**",
        "",
    ]
    links = [f"[all runs by GAUC]({runs_link(experiment)})"]
    if version is not None:
        report = f"#/experiments/{experiment}/runs/{run_id}/artifacts/{REPORT}"
        links = [f"[report of the day]({report})", f"[{version}]({version_link(version)})", *links]
    return "\n".join([*lines, " | ".join(links)])


def _numbers(evaluation: Mapping[str, Any]) -> str:
    """The chart in words, for whoever does not see it."""
    told = [
        f"{one.name} {one.metrics['ctcvr_gauc']:.4f}"
        for one in contenders(evaluation)
        if one.metrics.get("ctcvr_gauc") is not None
    ]
    return f"{TASKS['ctcvr']} GAUC: {', '.join(told)}"


def version_link(version: Version) -> str:
    """Link to a version's page."""
    return f"#/models/{version.model}/versions/{version.version}"


def model_page(dataset: str, champion: Version | None, why: str, since: str, experiment: str) -> str:
    """The registered model's description: what serves, since when, why, what it replaced, how to load it.

    Args:
        dataset: Name of the dataset.
        champion: Who serves; None where nobody does.
        why: The decision in words, from its version.
        since: When its alias was set, UTC.
        experiment: Id of the experiment.
    """
    first = f"Ranks {dataset}: CTR and CTCVR of a user's candidates."
    if champion is None:
        return f"{first}\n\n**Nothing serves yet**: no version was promoted."
    before = champion.tags.get(registry.PREVIOUS, "")
    restored = champion.tags.get(registry.RESTORED, "")
    replaced = f"version {before}" if before else "nothing, it is the first champion"
    if restored:  # `after version N`, see model/rollback.py; what it replaced long ago is in its tags
        replaced = restored.removeprefix("after ")
    return "\n".join(
        [
            first,
            "",
            f"**[Version {champion.version}]({version_link(champion)}) serves** (alias `champion`) since "
            f"{since}: {champion.preset} of {champion.ds}, trained on {len(champion.seen_days)} days up to "
            f"{max(champion.seen_days, default='none')}.",
            "",
            f"Why: restored by a rollback, {restored}." if restored else f"Why: {why}",
            "",
            f"It replaced {replaced}.",
            *_exported(champion, experiment),
            "",
            "```python",
            "import mlflow",
            f'model = mlflow.pyfunc.load_model("models:/{champion.model}@champion")',
            'scores = model.predict(rows, params={"state": "live"})  # ctr, ctcvr: a list a row',
            "```",
        ]
    )


def _exported(version: Version, experiment: str) -> list[str]:
    """Where the package of a version is, if it was exported, and the report of its scores."""
    place = version.tags.get(registry.PACKAGE)
    if place is None:
        return []
    report = f"#/experiments/{experiment}/runs/{version.run_id}/artifacts/{registry.PARITY_REPORT}"
    within = f"[within {version.tags[registry.PARITY]} of evaluation's]({report})"
    return ["", f"Its package, `{place}`, gives scores {within}."]


def experiment_page(dataset: str, experiment: str, champion: Version | None, ds: str) -> str:
    """The experiment's description: what the project is, the champion, links.

    Args:
        dataset: Name of the dataset.
        experiment: Its id.
        champion: Who serves; None where nobody does.
        ds: Day of the newest version; empty where there is none.
    """
    serves = "Nothing serves yet."
    model = f"mtgr-{dataset}"
    if champion is not None:
        gauc = champion.tags.get("ctcvr_gauc")
        serves = (
            f"**Champion: [version {champion.version}]({version_link(champion)})**, {champion.preset} of "
            f"{champion.ds}, CTCVR GAUC {f'{float(gauc):.4f}' if gauc else 'unknown'} on its day."
        )
    return "\n".join(
        [
            f"{serves} [Runs by GAUC]({runs_link(experiment)}) | [model](#/models/{model})"
            + (f" | newest day {ds}" if ds else ""),
            "",
            f"MTGR ranks {dataset} by a transformer over what each user did. Each preset learns the days "
            "before a day and is judged on that day, which none has seen, beside the champion, the item mean "
            "and, where they are known, the true probabilities. A run is one training of one preset for one "
            f"day; its `{REPORT}` is the page of the day. GAUC compares candidates within a user's window; "
            "COPC is labels over predicted labels, 1 is calibrated.",
        ]
    )


def refresh(dataset: str) -> None:
    """Sets the pages of a dataset's registered model and experiment; the caller holds the lease.

    Raises:
        RegistryError: The champion's alias has vanished.
        TrackingError: MLflow is not reachable or refuses.
    """
    champion = registry.aliased(dataset, registry.CHAMPION)
    newest = registry.aliased(dataset, registry.CANDIDATE)
    why, since = ("", "") if champion is None else (registry.why(champion), registry.since(champion))
    experiment = tracking.experiment_id(dataset)
    registry.describe_model(dataset, model_page(dataset, champion, why, since, experiment))
    text = experiment_page(dataset, experiment, champion, "" if newest is None else newest.ds)
    tracking.describe_experiment(dataset, text, view())

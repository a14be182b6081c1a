"""The benchmark of the step: what it prints stands in the document, what it joins follows from its runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import train

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("name", ["train_h100", "train_many_gpus"])
def test_the_documents_table_is_the_result_files(name: str) -> None:
    lines = train.table(json.loads((RESULTS / f"{name}.json").read_text()))
    assert "\n".join(lines) in (ROOT / "docs" / "model.md").read_text()


def test_runs_of_more_and_more_ranks_are_joined_by_their_ratios(tmp_path: Path) -> None:
    report = json.loads((RESULTS / "train_many_gpus.json").read_text())
    paths = []
    for number, run in enumerate(report["runs"]):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(run))
    out = tmp_path / "joined" / "all.json"
    assert train.main(["--join", *map(str, paths), "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == report
    ratios = {"tokens_per_s_two_gpus_over_one", "tokens_per_s_four_gpus_over_two"}
    assert set(report["summary"]) == ratios | {"straggler_idle_measured"}


def test_a_run_without_a_place_for_its_result_is_refused() -> None:
    assert train.main(["--cases", "tiny"]) == 2

"""A verdict is of the rows that it judged: what makes it one of the past, and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake

from spark_jobs.contract import locations
from spark_jobs.lake import verdicts
from spark_jobs.lake.verdicts import NotPassedError, Standing

D1, D2, D3 = "2026-03-01", "2026-03-02", "2026-03-03"


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Samples of two days."""
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    monkeypatch.delenv("MTGR_LAKE", raising=False)
    for ds in (D1, D2):
        build(ds)
    return locations.table("foodlog", "samples")


def build(ds: str, rows: int = 3, ours: bool = True) -> None:
    record = json.dumps({"stage": "build_samples", "partition": f"ds={ds}"})
    write_deltalake(
        locations.table("foodlog", "samples"),
        pa.table({"user_id": list(range(rows)), "ds": [ds] * rows}),
        partition_by=["ds"],
        mode="overwrite",
        predicate=f"ds = '{ds}'",
        commit_properties=CommitProperties(custom_metadata={"userMetadata": record} if ours else {}),
    )


def judged(ds: str, success: bool = True, **more: Any) -> None:
    """The verdict that a gate would write now."""
    verdicts.allow("foodlog", "samples", [ds], "")
    path = verdicts.path_of("foodlog", "samples", ds)
    verdicts.write(path, {**(verdicts.read(path) or {}), "success": success, **more})


def standing(ds: str, version: int | None = None) -> Standing:
    return verdicts.standings("foodlog", "samples", [ds], version).of[ds]


def test_what_no_gate_has_seen_is_refused_by_the_gate_to_run() -> None:
    stands = verdicts.standings("foodlog", "samples", [D1, D2])
    assert stands.usable == []
    with pytest.raises(
        NotPassedError,
        match=f"{D1}, {D2} as they are now.*--dataset foodlog --suite samples --ds {D1} {D2}",
    ):
        stands.require_judged([D1, D2])


def test_a_failed_day_is_left_out_and_an_allowed_one_says_why() -> None:
    judged(D1, success=False)
    judged(D2, success=False, allowed="a holiday")
    stands = verdicts.standings("foodlog", "samples", [D1, D2])
    assert (stands.usable, stands.days(Standing.FAILED)) == ([D2], [D1])
    assert stands.reasons == {D2: "a holiday"}
    stands.require_judged([D1, D2])
    stands.require_usable(D2)
    with pytest.raises(NotPassedError, match=rf"{D1} did not pass.*--ds {D1} --allow"):
        stands.require_usable(D1)


def test_a_day_that_is_built_again_is_judged_again_and_the_others_are_not(table: str) -> None:
    judged(D1)
    judged(D2)
    before = DeltaTable(table).version()
    build(D1)
    assert (standing(D1), standing(D2)) == (Standing.UNJUDGED, Standing.PASSED)
    assert standing(D1, before) is Standing.PASSED  # for a reader of the older version
    judged(D1)
    assert standing(D1) is Standing.PASSED
    assert standing(D1, before) is Standing.UNJUDGED


def test_maintenance_and_deletions_change_no_verdict(table: str) -> None:
    judged(D1)
    judged(D2, success=False)
    DeltaTable(table).optimize.compact()
    DeltaTable(table).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    DeltaTable(table).delete(f"ds = '{D2}' AND user_id = 1")
    build(D3)
    assert (standing(D1), standing(D2)) == (Standing.PASSED, Standing.FAILED)


def test_what_others_write_into_a_table_counts_as_not_judged(table: str) -> None:
    judged(D1)
    judged(D2)
    build(D2, ours=False)
    assert (standing(D1), standing(D2)) == (Standing.UNJUDGED, Standing.UNJUDGED)
    judged(D1)
    assert standing(D1) is Standing.PASSED
    DeltaTable(table).restore(1)
    assert standing(D1) is Standing.UNJUDGED


def test_a_table_that_was_made_anew_has_no_verdicts(table: str) -> None:
    import shutil

    judged(D1)
    shutil.rmtree(table)
    build(D1)
    build(D2)
    assert standing(D1) is Standing.UNJUDGED


def test_a_log_that_has_forgotten_the_commit_keeps_its_verdict(table: str) -> None:
    judged(D1)
    build(D2)
    judged(D2)
    DeltaTable(table).create_checkpoint()
    for old in sorted((Path(table) / "_delta_log").glob("*.json"))[:-1]:
        old.unlink()
    assert (standing(D1), standing(D2)) == (Standing.PASSED, Standing.PASSED)
    build(D1)
    assert standing(D1) is Standing.UNJUDGED


def test_a_damaged_verdict_is_named() -> None:
    judged(D1)
    path = verdicts.path_of("foodlog", "samples", D1)
    path.write_text(path.read_text()[:20])
    with pytest.raises(ValueError, match=f"{D1}.json is no verdict"):
        standing(D1)


def test_an_evaluation_is_used_as_its_gate_has_judged_it(tmp_path: Path) -> None:
    file, path = tmp_path / "evaluation.json", verdicts.path_of("foodlog", "evaluation", D1, "tiny")
    file.write_text("{}")
    with pytest.raises(NotPassedError, match=r"no gate has judged .*--suite evaluation --preset tiny"):
        verdicts.require_evaluation("foodlog", "tiny", D1, file)
    verdict = {"success": False, "table": verdicts.file_digest(file)}
    verdicts.write(path, verdict)
    with pytest.raises(NotPassedError, match="did not pass its gate"):
        verdicts.require_evaluation("foodlog", "tiny", D1, file)
    verdicts.write(path, verdict | {"allowed": "checked"})
    assert verdicts.require_evaluation("foodlog", "tiny", D1, file) == "checked"
    verdicts.write(path, verdict | {"success": True})
    assert verdicts.require_evaluation("foodlog", "tiny", D1, file) == ""
    file.write_text('{"ctr_auc": 0.9}')
    with pytest.raises(NotPassedError, match="no gate has judged"):
        verdicts.require_evaluation("foodlog", "tiny", D1, file)

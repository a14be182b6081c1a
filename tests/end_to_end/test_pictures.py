"""The pictures in docs/operations.md can be taken again, and show what they should."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.browser import CHROMIUM
from tests.end_to_end.pictures import DAY, take

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_failed_day_and_how_it_was_mended_are_seen_in_airflow(tmp_path):
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    said = take(tmp_path)
    assert "Finished" in said["failed_run"]
    assert "after deadline" in said["failed_run"]
    assert f"no delivery of {DAY}" in said["retried_task"]
    assert "hours_covered is 9, allowed: at least 20" in said["failed_day"]
    assert "Failed" not in said["mended_day"]
    for path in tmp_path.glob("*.png"):
        assert path.stat().st_size < 60_000
        assert (ROOT / "docs" / "pictures" / path.name).exists()
    alerts = [json.loads(line) for line in (tmp_path / "failed_day.jsonl").read_text().splitlines()]
    assert [alert["kind"] for alert in alerts] == ["retried", "late", "failed", "failed"]
    assert f"no delivery of {DAY}" in alerts[0]["text"]
    assert "hours_covered is 9" in alerts[2]["text"]


def test_the_pictures_of_the_documentation_are_those_that_are_taken():
    text = (ROOT / "docs" / "operations.md").read_text()
    pictures = sorted(path.name for path in (ROOT / "docs" / "pictures").glob("*.png"))
    assert pictures == ["failed_day.png", "failed_run.png", "mended_day.png", "retried_task.png"]
    assert all(f"(pictures/{name})" in text for name in pictures)

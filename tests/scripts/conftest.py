"""Shared by the tests of the commands at the terminal."""

import pytest

from tests.scripts.past_days import write_days


@pytest.fixture
def past_days(tmp_path, monkeypatch):
    """The folder of `write_days`, which the settings name."""
    for name in ("MTGR_LAKE", "MTGR_RUNS", "MLFLOW_TRACKING_URI", "MTGR_FOODLOG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MTGR_VAR", str(tmp_path / "var"))
    write_days(tmp_path / "var")
    return tmp_path / "var"

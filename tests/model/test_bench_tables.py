"""The benchmark of tables, and that its figures in the documents are those of its files."""

import json
from pathlib import Path

from benchmarks import tables

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("tables_*.json"))


def test_documents_say_what_the_files_say():
    text = (ROOT / "docs" / "tables.md").read_text()
    assert len(RESULTS) == 2
    for path in RESULTS:
        assert tables.table_of(path) in text


def test_the_benchmark_runs(tmp_path, monkeypatch):
    out = tmp_path / "tables.json"
    sizes = ["--rows", "3000", "--ids", "500", "--width", "8", "--repeats", "2"]
    monkeypatch.setattr("sys.argv", ["tables", "--device", "cpu", "--out", str(out), *sizes])
    assert tables.main() == 0
    report = json.loads(out.read_text())
    assert report["summary"]["cpu_table_over_mch"] > 0
    assert {r["side"] for r in report["results"]} == {
        "dynamic",
        "FBGEMM static",
        "TorchRec MCH",
        "TorchRec MCH + FBGEMM",
    }

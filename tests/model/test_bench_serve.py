"""What the documents say of serving's speed is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import graph, serve, serve_gpu

ROOT = Path(__file__).resolve().parents[2]


def test_the_documents_table_is_the_result_files() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "serve_h100.json").read_text())
    assert "\n".join(serve_gpu.table(result)) in (ROOT / "docs" / "serving.md").read_text()
    assert result["summary"] == serve_gpu.summary(result)
    of_cpu = json.loads((ROOT / "benchmarks" / "results" / "serve_cpu.json").read_text())
    assert "\n".join(serve.table(of_cpu)) in (ROOT / "docs" / "serving.md").read_text()


def test_the_documents_table_of_the_compiled_graph_is_the_result_files() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "graph_cpu.json").read_text())
    assert "\n".join(graph.table(result)) in (ROOT / "docs" / "serving.md").read_text()
    assert result["summary"] == graph.summary(result)

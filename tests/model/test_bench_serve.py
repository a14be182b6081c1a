"""What the documents say of serving's speed is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks import graph, prefix_hits, serve, serve_cost, serve_gpu, serve_load

ROOT = Path(__file__).resolve().parents[2]


def test_the_documents_table_is_the_result_files() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "serve_h100.json").read_text())
    assert "\n".join(serve_gpu.table(result)) in (ROOT / "docs" / "serving.md").read_text()
    assert result["summary"] == serve_gpu.summary(result)
    assert serve_gpu.capacity(result) in (ROOT / "docs" / "serving.md").read_text()
    of_cpu = json.loads((ROOT / "benchmarks" / "results" / "serve_cpu.json").read_text())
    assert "\n".join(serve.table(of_cpu)) in (ROOT / "docs" / "serving.md").read_text()


def test_the_documents_table_of_the_compiled_graph_is_the_result_files() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "graph_cpu.json").read_text())
    assert "\n".join(graph.table(result)) in (ROOT / "docs" / "serving.md").read_text()
    assert result["summary"] == graph.summary(result)


def test_the_documents_table_of_costs_is_the_result_files() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "serve_cost_cpu.json").read_text())
    assert "\n".join(serve_cost.table(result)) in (ROOT / "docs" / "serving.md").read_text()
    assert result["summary"] == serve_cost.summary(result, "cpu")
    ours, theirs = serve_cost.PRESETS["cpu"]
    quickest = min(ms["p50"] for side, ms in result["ms"]["8"].items() if side.startswith(ours))
    other = result["ms"]["8"][f"{theirs}, evaluation"]["p50"]
    assert result["summary"]["serve_cost_eight_over_user_tower_cpu"] == round(quickest / other, 3)


def test_the_load_of_a_server_is_summed_up_by_the_most_and_by_the_tail_at_half_of_it() -> None:
    times = {"p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0}
    of = {"preset": "tiny", "side": "engine, fp16", **times}
    lines = [
        {**of, "way": "process", "batch": 1, "requests_per_s": 500.0},
        {**of, "way": "process", "batch": 8, "requests_per_s": 900.0},
        {**of, "way": "server", "instances": 2, "callers": 4, "requests_per_s": 700.0},
        {**of, "way": "server", "instances": 2, "loop": "open", "rate": 350.2, "requests_per_s": 349.0},
        {"preset": "tiny", "side": "engine, fp16", "way": "server", "metrics": []},
    ]
    assert serve_load.summary({"lines": lines}) == {
        "tiny_process_engine_fp16_requests_per_s": 900.0,
        "tiny_server_engine_fp16_requests_per_s": 700.0,
        "tiny_server_engine_fp16_half_load_p99_ms": 3.0,
    }
    shown = serve_load.table({"lines": lines})
    assert shown[3] == "| tiny, engine, fp16 | process | 8 | 900 | 1.00 / 2.00 / 3.00 |"
    assert shown[5] == "| tiny, engine, fp16 | server x 2 | open, 350/s | 349 | 1.00 / 2.00 / 3.00 |"


def test_the_hit_rates_of_prefixes_are_the_result_files_and_a_replay_counts_what_is_kept() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "prefix_hits.json").read_text())
    assert prefix_hits.told(result) in (ROOT / "docs" / "serving.md").read_text()
    page_mb = 64 * 1024 * 2 * 2 * 15 / 2**20  # more than a page of any preset
    keys, lengths = [b"a", b"b", b"a", b"c", b"a", b"b"], np.array([64, 64, 64, 64, 64, 64])
    (roomy,) = prefix_hits.replayed(keys, lengths, [int(10 * page_mb)])
    assert (roomy["hits"], roomy["misses"], roomy["evictions"]) == (3, 3, 0)
    (none,) = prefix_hits.replayed(keys, 10**5 * lengths, [int(10 * page_mb)])  # none has room
    assert none["hits"] == 0

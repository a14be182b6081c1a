"""The benchmarks: the padded side computes the same, the JSON is complete, the tables follow from it."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hstu_ops import mtgr_attention

from benchmarks import attention as bench
from benchmarks import attention_memory as bench_memory
from benchmarks import attention_tables as bench_tables
from benchmarks.padded import PaddedAttention
from benchmarks.shapes import WORKLOADS, Workload, build
from tests.cuda_ext.operator_cases import batch

PACKAGE = Path(__file__).parents[2] / "cuda_ext"
TINY = Workload(
    name="tiny", num_rows=3, static=(2, 9), realtime=(0, 3), candidates=(1, 4), num_heads=2, head_dim=4
)


def test_padded_attention_is_the_reference():
    rows = batch("mixed")
    q, k, v = torch.randn(3, rows.num_tokens, 2, 8, dtype=torch.float64).unbind(0)
    expected = mtgr_attention(q, k, v, rows.offsets, rows.visible_end, 0.3, 0.1, backend="reference")
    torch.testing.assert_close(PaddedAttention(rows)(q, k, v, 0.3, 0.1), expected)


def test_shape_p_is_the_published_one():
    rows = build(WORKLOADS["P"])
    assert (rows.num_tokens, rows.offsets.numel() - 1) == (71_544, 96)
    assert 46.0e6 < rows.visible_pairs < 46.3e6


def test_visible_pairs_counts_each_token_itself_once():
    rows = batch("mixed")
    starts = torch.repeat_interleave(rows.offsets[:-1], rows.offsets.diff())
    position = torch.arange(rows.num_tokens) - starts
    expected = sum(
        len({*range(end), here})
        for end, here in zip(rows.visible_end.tolist(), position.tolist(), strict=True)
    )
    assert rows.visible_pairs == expected


def lighter_attention(workload, rows, q, k, v, alpha, inv_n):
    """Stands for another project's kernel, with a mask of half the pairs."""
    yield "lighter", rows.visible_pairs // 2, lambda q, k: q * k, [q, k]


def test_bench_writes_json_and_tables_follow(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "WORKLOADS", {"tiny": TINY})
    monkeypatch.setattr(bench, "PARTS_OF", "tiny")
    monkeypatch.setattr(bench_memory, "LENGTHS", (10, 20))
    monkeypatch.setitem(sys.modules, "peers", SimpleNamespace(lighter=lighter_attention))
    out = tmp_path / "cpu.json"
    options = ["--workloads", "tiny", "--repeats", "2", "--peer", "peers:lighter"]
    assert bench.main(["--device", "cpu", "--out", str(out), *options]) == 0
    report = json.loads(out.read_text())
    assert {"commit", "date", "python", "torch", "threads"} <= report["environment"].keys()
    assert report["summary"].keys() == {"attention_tiny_forward_ms", "attention_tiny_both_ms"}
    sides = {(line["operator"], line["side"], line["passes"]) for line in report["results"]}
    assert ("mtgr_attention", "padded PyTorch", "forward + backward") in sides
    assert ("block", "cpu", "forward") in sides
    speed = {
        (line["side"], line["passes"]): line["tflops"] * line["median_ms"]
        for line in report["results"]
        if line["operator"] == "mtgr_attention"
    }
    assert speed["lighter", "forward"] == pytest.approx(speed["cpu", "forward"] / 2, rel=0.2)
    assert {(ratio["side"], ratio["against"]) for ratio in report["ratios"]} == {
        ("cpu", "padded PyTorch"),
        ("cpu", "lighter"),
    }
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmark cpu -->\nold numbers\n<!-- end -->\nafter\n")
    assert bench_tables.main([str(readme), str(tmp_path)]) == 0
    text = readme.read_text()
    assert "old numbers" not in text
    assert "| mtgr_attention | tiny | cpu |" in text
    assert "| tiny | cpu | padded PyTorch |" in text
    assert "| between the parts |" in text
    assert "| 20 | " in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")


def test_committed_tables_are_those_of_the_committed_measurements(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text((PACKAGE / "README.md").read_text())
    assert bench_tables.main([str(readme), str(PACKAGE.parent / "benchmarks" / "results")]) == 0
    assert readme.read_text() == (PACKAGE / "README.md").read_text()


def test_tables_refuse_a_marker_without_measurements(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- benchmark h200 -->\n1.0 ms\n<!-- end -->\n")
    assert bench_tables.main([str(readme), str(tmp_path)]) == 1
    assert "1.0 ms" in readme.read_text()


def test_cpu_memory_is_linear_in_the_tokens_of_a_row():
    *_, shorter, longer = bench_memory.memory()
    assert longer["tokens"] == 2 * shorter["tokens"]
    assert 1 < longer["grown_mib"] < 60  # linear: tensors, blocks; one N x N matrix would be 244 MiB
    # What the process holds already hides a constant part, so what the added tokens take is compared: q, k,
    # v, the output and their four gradients, with as much again for blocks. N x N would add 183 MiB.
    added = longer["tokens"] - shorter["tokens"]
    tensors_mib = 8 * added * bench_memory.HEAD_DIM * 4 / 2**20
    assert longer["grown_mib"] - shorter["grown_mib"] < 2 * tensors_mib

"""Bad arguments are refused before anything runs, by name, with what was expected."""

import json
import re
from pathlib import Path

import pytest
import torch
from hstu_ops import BackendUnavailableError, backends, checks, group_layer_norm, libraries, mtgr_attention

from benchmarks.attention_choice import totals


def attention_arguments() -> dict:
    q, k, v = torch.randn(3, 6, 2, 4).unbind(0)
    offsets, end = (
        torch.tensor([0, 2, 6], dtype=torch.int32),
        torch.tensor([1, 2, 2, 4, 0, 3], dtype=torch.int32),
    )
    tensors = {"q_TND": q, "k_TND": k, "v_TND": v, "offsets_B1": offsets, "visible_end_T": end}
    return {**tensors, "alpha": 1.0, "inv_n": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_TND": torch.randn(6, 8)}, r"q must be \[T, N, D\], got torch.float32 \(6, 8\)"),
        ({"q_TND": torch.ones(6, 2, 4, dtype=torch.int64)}, "q must be floating point"),
        ({"k_TND": torch.randn(5, 2, 4)}, "k must be as q"),
        ({"v_TND": torch.randn(6, 2, 4).double()}, "v must be as q"),
        ({"v_TND": torch.randn(6, 4, 2).transpose(1, 2)}, "v must have stride 1 in its last dimension"),
        ({"offsets_B1": torch.tensor([0, 2, 6])}, "offsets must be one-dimensional int32"),
        ({"offsets_B1": torch.zeros(0, dtype=torch.int32)}, r"offsets must have B \+ 1 elements"),
        ({"visible_end_T": torch.zeros(12, dtype=torch.int32)[::2]}, "visible_end must be contiguous"),
        (
            {"visible_end_T": torch.zeros(5, dtype=torch.int32)},
            "visible_end must have one element a token, T = 6",
        ),
        ({"backend": "cuda"}, "backend is 'cuda': use one of"),
    ],
)
def test_attention_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        mtgr_attention(**{**attention_arguments(), **change})


VALUES = [
    ({"offsets_B1": torch.tensor([0, 4, 2], dtype=torch.int32)}, "offsets must"),
    ({"offsets_B1": torch.tensor([0, 7, 6], dtype=torch.int32)}, "offsets must ascend, row 1 has length -1"),
    ({"offsets_B1": torch.tensor([1, 2, 6], dtype=torch.int32)}, "offsets must"),
    ({"visible_end_T": torch.tensor([1, 3, 2, 4, 0, 3], dtype=torch.int32)}, "visible_end must lie in"),
    ({"visible_end_T": torch.tensor([1, 2, 2, -1, 0, 3], dtype=torch.int32)}, "visible_end must lie in"),
]


@pytest.mark.parametrize(("change", "message"), VALUES)
def test_attention_values_in_debug_mode(change, message, monkeypatch):
    monkeypatch.setattr(checks, "debug", True)
    with pytest.raises(ValueError, match=message):
        mtgr_attention(**{**attention_arguments(), **change}, backend="reference")


@pytest.mark.parametrize(("change", "message"), VALUES)
def test_cpu_backend_always_checks_values(change, message):
    with pytest.raises(ValueError, match=message):
        mtgr_attention(**{**attention_arguments(), **change}, backend="cpu")


def norm_arguments() -> dict:
    weight, bias = torch.randn(2, 3, 4).unbind(0)
    group = torch.tensor([0, 1, 2, 0, 1, 2])
    return {"x_TD": torch.randn(6, 4), "group_T": group, "weight_GD": weight, "bias_GD": bias, "eps": 1e-5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_TD": torch.randn(6)}, "x must be floating point"),
        ({"x_TD": torch.randn(4, 6).T}, "x must have stride 1"),
        ({"group_T": torch.zeros(6)}, "group must be one-dimensional int32 or int64"),
        ({"group_T": torch.zeros(5, dtype=torch.int32)}, "group must have one element a token"),
        ({"weight_GD": torch.randn(3, 5)}, r"weight must be floating point \[G, D\] with D = 4"),
        ({"bias_GD": torch.randn(2, 4)}, "bias must be as weight"),
        ({"gate_TD": torch.randn(6, 3)}, "gate must be as x"),
    ],
)
def test_norm_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        group_layer_norm(**{**norm_arguments(), **change})


def test_norm_values_in_debug_mode(monkeypatch):
    monkeypatch.setattr(checks, "debug", True)
    with pytest.raises(ValueError, match=r"group must lie in \[0, 3\), got 0 to 3"):
        group_layer_norm(
            **{**norm_arguments(), "group_T": torch.tensor([0, 1, 2, 3, 1, 2])}, backend="reference"
        )


def test_a_group_out_of_range_never_reaches_memory():
    with pytest.raises(ValueError, match=r"group must lie in \[0, 3\)"):
        group_layer_norm(**{**norm_arguments(), "group_T": torch.tensor([0, 1, 2, 3, 1, 2])}, backend="cpu")


def test_gpu_backends_refuse_cpu_tensors():
    for name in ("triton", "cutlass"):
        with pytest.raises(BackendUnavailableError, match=f"backend '{name}' takes CUDA tensors, not cpu"):
            mtgr_attention(**attention_arguments(), backend=name)


@pytest.mark.parametrize(
    ("name", "capability", "dtype", "head_dim", "message"),
    [
        ("cutlass", (9, 0), torch.bfloat16, 32, "no head dim 32, only .64, 128, 256.: use 'triton'"),
        ("cutlass", (9, 0), torch.float32, 64, "does not take torch.float32: use bfloat16 or float16"),
        ("cutlass", (8, 0), torch.bfloat16, 64, r"needs compute capability 9.0, .*\(8, 0\): use 'triton'"),
        ("cutlass", (10, 0), torch.bfloat16, 64, r"needs compute capability 9.0, .*\(10, 0\): use 'triton'"),
        ("triton", (7, 5), torch.bfloat16, 64, r"capability 8.0 or more, not \(7, 5\): use 'reference'"),
        ("triton", (8, 0), torch.bfloat16, 48, "no head dim 48, only .*: use 'reference'"),
        ("triton", (8, 0), torch.float64, 64, "does not take torch.float64: use one of"),
        ("triton", (8, 0), torch.bfloat16, 32, None),
    ],
)
def test_what_a_gpu_cannot_run_names_what_can(name, capability, dtype, head_dim, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    reason = backends.missing(name, "cuda", dtype, head_dim)
    assert reason is None if message is None else re.search(message, reason)


def test_an_uncompiled_backend_names_the_build_command(monkeypatch):
    monkeypatch.setattr(libraries, "_loaded", set())
    backends._choose_and_log.cache_clear()
    with pytest.raises(BackendUnavailableError, match=r"pip install --no-build-isolation ./cuda_ext"):
        mtgr_attention(**attention_arguments(), backend="cpu")
    backends._choose_and_log.cache_clear()


def test_auto_says_which_backend_it_chose(monkeypatch, caplog):
    backends._choose_and_log.cache_clear()
    with caplog.at_level("INFO", logger="hstu_ops.backends"):
        mtgr_attention(**attention_arguments())
        mtgr_attention(**attention_arguments())
    assert caplog.messages == ["auto chose cpu for mtgr_attention, head dim 4 in torch.float32 on cpu"]
    monkeypatch.setattr(libraries, "_loaded", set())
    backends._choose_and_log.cache_clear()
    with caplog.at_level("WARNING", logger="hstu_ops.backends"):
        mtgr_attention(**attention_arguments())
    assert "auto chose reference for mtgr_attention" in caplog.messages[-1]
    backends._choose_and_log.cache_clear()


CHOICE = Path(__file__).parents[2] / "benchmarks" / "results" / "attention_choice_h100.json"


@pytest.mark.parametrize(
    ("case", "ratios"), totals(json.loads(CHOICE.read_text())["results"]).items(), ids=str
)
def test_auto_chooses_what_was_measured_fastest(monkeypatch, case, ratios):
    dtype, head_dim = getattr(torch, case[0]), case[1]
    monkeypatch.setattr(backends, "missing", lambda name, *rest: None if name in ratios else "not measured")
    chosen, _ = backends._choose("auto", "cuda", dtype, head_dim)
    assert ratios[chosen] <= 1.05 * min(ratios.values()), ratios


def test_a_library_for_another_pytorch_or_a_lost_one_is_refused(tmp_path, monkeypatch):
    (tmp_path / "_cpu.so").write_bytes(b"")
    (tmp_path / "_build.json").write_text(json.dumps({"torch": "1.0.0", "parts": ["cpu"]}))
    monkeypatch.setattr(libraries, "_FOLDER", tmp_path)
    with pytest.raises(
        ImportError, match=r"was built for PyTorch 1.0.0, .* run `pip install --force-reinstall"
    ):
        libraries.load()
    (tmp_path / "_build.json").write_text(json.dumps({"torch": torch.__version__, "parts": ["cpu"]}))
    with pytest.raises(ImportError, match=r"does not load .* run `pip install --force-reinstall"):
        libraries.load()
    (tmp_path / "_cpu.so").unlink()
    with pytest.raises(ImportError, match=r"_cpu.so is missing, .* run `pip install --force-reinstall"):
        libraries.load()
    (tmp_path / "_build.json").unlink()
    libraries.load()  # the sources alone: nothing was built

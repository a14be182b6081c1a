"""The dense part of a ranker as one compiled graph: from embeddings to logits, for any number of tokens.

    path.write_bytes(compile_graph(ranker, batch, precision="float32"))     # AOTInductor, `dense.pt2`
    compiled = CompiledRanker(ranker, path)                                 # scores as the ranker does

What a batch is looked up by stays outside: tables are mapped and of the machine that serves. Inside is
`Ranker.forward` itself, traced by `torch.export` from flat tensors with dynamic numbers of rows, tokens and
candidates, with `hstu_ops`' operators as they are: whoever loads the graph has loaded these.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import Dim

from model.data.batch import JaggedBatch
from model.data.layout import GROUPS, Layout
from model.rankers.inputs import Embeddings
from model.rankers.protocol import Ranker
from model.runs.files import RunError
from spark_jobs.contract.features import Group

Flat = tuple[Tensor, ...]
# Between two operations values are rounded as they are without the graph, or half precision would differ.
_CONFIG = {"emulate_precision_casts": True}
_MOST_TOKENS = 2**31 - 1  # offsets are int32
_LAYOUT = ("offsets", "group", "visible_end", "source", "candidates")


def flat_inputs(batch: JaggedBatch, embeddings: Embeddings) -> Flat:
    """What the graph takes of a batch that is laid out as one part.

    Returns:
        By group, embeddings side by side, `[tokens, sum of widths]`; by group, numbers `[F, tokens]`; of the
        layout, `offsets`, `group`, `visible_end`, `source` and `candidates`.
    """
    where = batch.layout()
    return (
        *(torch.cat(embeddings[group], dim=1) for group in GROUPS),
        *(batch.numbers[group] for group in GROUPS),
        *(getattr(where, name) for name in _LAYOUT),
    )


def built_for(device: torch.device | str) -> dict[str, str]:
    """What a graph that is compiled here for a device runs on: kind of device, instructions, PyTorch."""
    device = torch.device(device)
    if device.type == "cuda":
        machine = "sm{}{}".format(*torch.cuda.get_device_capability(device))
    else:
        machine = torch.backends.cpu.get_cpu_capability()
    return {"device": device.type, "machine": machine, "torch": torch.__version__}


class DenseGraph(nn.Module):
    """A ranker as a function of flat tensors.

    Args:
        ranker: One that reads no more of a batch than `flat_inputs` takes of it, as MTGR does.
        precision: `float32`, or `bfloat16` for autocast, as it was trained.
    """

    def __init__(self, ranker: Ranker, precision: str) -> None:
        super().__init__()
        self.ranker = ranker
        self.widths = {group: ranker.inputs.embeddings.widths(group) for group in GROUPS}
        self.is_bfloat16 = precision == "bfloat16"

    def forward(self, *flat: Tensor) -> Tensor:
        """Logits of click and conversion, float32 `[2, C]`."""
        tables, numbers, layout = (
            flat[: len(GROUPS)],
            flat[len(GROUPS) : 2 * len(GROUPS)],
            flat[2 * len(GROUPS) :],
        )
        embeddings = {
            group: list(torch.split(side_by_side, self.widths[group], dim=1))
            for group, side_by_side in zip(GROUPS, tables, strict=True)
        }
        batch = _batch_of(dict(zip(GROUPS, numbers, strict=True)), dict(zip(_LAYOUT, layout, strict=True)))
        with torch.autocast(flat[0].device.type, torch.bfloat16, enabled=self.is_bfloat16):
            logits: Tensor = self.ranker(batch, embeddings)
        return logits


class CompiledRanker(nn.Module):
    """A ranker that looks up by its own tables and computes by a compiled graph.

    Args:
        ranker: Whose tables they are.
        path: Of the graph, which was compiled for the device that the ranker is on. It is code: whoever may
            write it may run code here; a package checks its digest before.

    Raises:
        RunError: It does not load.
    """

    def __init__(self, ranker: Ranker, path: Path) -> None:
        super().__init__()
        self.embeddings = ranker.inputs.embeddings
        try:
            self.run = torch._inductor.aoti_load_package(str(path))
        except (RuntimeError, OSError) as error:
            raise RunError(
                f"{path} does not load here: {error}; export it again on this kind of machine"
            ) from error

    def forward(self, batch: JaggedBatch) -> Tensor:
        """Logits of click and conversion, float32 `[2, C]`."""
        logits: Tensor = self.run(*flat_inputs(batch, self.embeddings(batch)))
        return logits


def traced(ranker: Ranker, batch: JaggedBatch, precision: str) -> torch.export.ExportedProgram:
    """A ranker's dense part as a graph of any number of rows, tokens and candidates.

    Args:
        ranker: In eval mode.
        batch: Some rows with at least two tokens of every group, laid out, on the ranker's device.
        precision: As for `DenseGraph`.

    Raises:
        RunError: The ranker is no graph of such tensors; has what torch says.
    """
    rows, tokens = Dim("rows"), Dim("tokens", max=_MOST_TOKENS)
    groups = {Group.PROFILE: rows, **{group: Dim(str(group)) for group in GROUPS[1:]}}
    layout = {"offsets": Dim("bounds"), "candidates": groups[Group.CANDIDATE]}
    shapes = [
        *({0: groups[group]} for group in GROUPS),
        *({1: groups[group]} for group in GROUPS),
        *({0: layout.get(name, tokens)} for name in _LAYOUT),
    ]
    with torch.no_grad():
        inputs = flat_inputs(batch, ranker.inputs.embeddings(batch))
        try:
            return torch.export.export(DenseGraph(ranker, precision), inputs, dynamic_shapes=(tuple(shapes),))
        except (RuntimeError, UserError) as error:
            raise RunError(f"{type(ranker).__name__} is no graph of flat tensors: {error}") from error


def compile_graph(ranker: Ranker, batch: JaggedBatch, precision: str) -> bytes:
    """Compiles a ranker's dense part by AOTInductor for the device that it is on.

    Args:
        ranker: As for `traced`.
        batch: As for `traced`.
        precision: As for `DenseGraph`.

    Returns:
        The content of a `.pt2` file.

    Raises:
        RunError: As `traced`; or what is traced does not compile here.
    """
    program = traced(ranker, batch, precision)
    buffer = io.BytesIO()
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=buffer, inductor_configs=_CONFIG)
    except (RuntimeError, OSError) as error:
        raise RunError(f"{type(ranker).__name__} does not compile here: {error}") from error
    return buffer.getvalue()


def _batch_of(numbers: dict[Group, Tensor], layout: dict[str, Tensor]) -> JaggedBatch:
    """A batch that has what a ranker reads beside embeddings, and nothing else."""
    none = numbers[Group.PROFILE].new_zeros(0)
    where = Layout(**layout, rows=(0, 0), places={}, longest={}, num_pairs=0)
    return JaggedBatch(
        ids={},
        numbers=numbers,
        lengths={},
        realtime_visible=none,
        candidate_visible=none,
        labels=none,
        weights=none,
        frozen_numbers=none,
        layouts=(where,),
    )

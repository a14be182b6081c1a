"""The whole training step: tables, tokens, blocks, heads and optimizers, on rows of shape P.

    python -m benchmarks.train --out FILE [--cases large medium small large_nvidia_shape] [--plain large ...]
    torchrun --nproc-per-node 4 -m benchmarks.train --out FILE [--by-flops large] [--by-users large] ...
    python -m benchmarks.train --out FILE --join ONE TWO FOUR     # runs of more and more ranks: their ratios
    python -m benchmarks.train --table FILE                       # the table of docs/model.md

A case is a preset on a shape. Rows come from a loader's thread, which shuffles, cuts by tokens, lays out and
packs them as in training, from encoded rows in memory. MFU counts the blocks' products that the mask lets
tokens see, forward once and backward twice, over 989 TFLOP/s of an H100 or H200 and wall time: the median
over runs of five steps, between which alone the device is waited for. It is that of the steady state: steps
are warmed up until forty in a row were replayed (`warm_up_steps`).
`idle` is the share of a step in which no kernel runs: kernels' time is that of a profiled run, a step's time
that of one without a profiler. The table says which kinds of kernels the time goes to.

With several ranks each draws rows of its own and cuts where their tokens fill its share; `--by-flops` cuts by
work, `--by-users` takes as many rows a step, as a batch size in users would. `straggler_idle` is the share of
all ranks' time that they wait for the slowest of a step, by the time that kernels other than the exchange's
run on each. `--sharded` has FSDP2 for DDP. Neither it nor cuts by users are captured: `--plain` is
what they compare with.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from benchmarks import result_file
from benchmarks.balance import idle, runs_of, work_of
from benchmarks.rows import ZIPF, P, Shape, batch_of, lengths_of, shuffled
from model.config.environment import device, is_launched
from model.config.presets import preset_named
from model.config.run import Config
from model.data.ahead import Ahead
from model.data.batch import JaggedBatch
from model.data.steps import Step
from model.rankers.mtgr import MtgrConfig
from model.training.loader import capacities_of, made_ready, with_next
from model.training.meter import peak_flops
from model.training.ranks import process_group
from model.training.step import Trainer
from spark_jobs.contract import command
from spark_jobs.contract.features import Group
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake.log import git_sha

_ROWS = 768  # encoded once; steps are drawn from them
_TOKENS = 48_000  # of a step of one rank
_MOST_WARM_UP = 600  # steps
_NUMBERS = {1: "one", 2: "two", 4: "four", 8: "eight"}
# What a kernel is, by its name; the first that fits.
_KINDS = (
    ("norm and gate", r"^_norm|norm_backward|layer_norm|gate"),
    ("attention", r"hstu|mtgr|attention"),
    ("products", r"gemm|nvjet|cublas|cutlass|splitK"),
    (
        "tables",
        r"embedding|tbe|bounds_check|jagged|bucketize|hash|permute|lookup|unique|sort|radix|linearize",
    ),
    ("optimizer and clip", r"adam|multi_tensor|lpnorm|foreach"),
    ("copies", r"[Mm]emcpy|[Mm]emset|copy"),
    ("sums", r"reduce"),
    ("elementwise", r"elementwise|vectorized|index|cat"),
    ("exchange", r"nccl"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A preset on a shape, under the name that results give it.

    Args:
        name: As results have it.
        config: Of the run; `batch_tokens` is what all ranks take together.
        shape: Lengths of rows.
        cut: What fills a rank's share: `tokens`, `flops` or `users`.
        rows_a_step: Of a rank, if the shape says it; else as many as have the tokens.
    """

    name: str
    config: Config
    shape: Shape
    cut: str = "tokens"
    rows_a_step: int | None = None


def _cases(batch_tokens: int) -> dict[str, Case]:
    cases = {}
    for preset, name in (("large", "mfu_large_p"), ("medium", "mfu_medium"), ("small", "mfu_small")):
        base = preset_named(preset)
        train = dataclasses.replace(base.train, batch_tokens=batch_tokens)
        cases[preset] = Case(name=name, config=dataclasses.replace(base, train=train), shape=P)
    large = cases["large"].config
    assert isinstance(large.model, MtgrConfig)
    model = dataclasses.replace(large.model, num_blocks=8, d_model=1024, num_heads=4)
    cases["large_nvidia_shape"] = Case(
        name="mfu_large_nvidia_shape",
        config=dataclasses.replace(large, model=model),
        shape=ZIPF,
        cut="users",
        rows_a_step=32,
    )
    tiny = preset_named("tiny")
    cases["tiny"] = Case(name="mfu_tiny", config=tiny, shape=P)
    return cases


def _other(case: Case, name: str, cut: str | None = None, **train: Any) -> Case:
    """The case with another cut or settings of training."""
    changed = dataclasses.replace(case.config, train=dataclasses.replace(case.config.train, **train))
    return dataclasses.replace(case, name=f"{case.name}_{name}", config=changed, cut=cut or case.cut)


def steps_of(case: Case, rows: JaggedBatch, on: torch.device) -> Iterator[Step]:
    """Steps without end, each made ready as training makes it; ranks draw rows of their own."""
    return made_ready(_cut(case, rows), case.config.train, on, capacities_of(case.config, on))


def _cut(case: Case, rows: JaggedBatch) -> Iterator[Step]:
    tokens, pairs = rows.tokens_B().numpy().astype(np.float64), rows.pairs_B().numpy()
    costs = {
        "tokens": tokens,
        "flops": work_of(tokens, pairs, case.config.model.d_model),
        "users": np.ones(rows.num_rows),
    }[case.cut]
    # As many rows, and so tokens, a step on average, whatever fills a rank's share.
    rows_a_step = case.rows_a_step or round(
        case.config.train.batch_tokens / dist.get_world_size() / tokens.mean()
    )
    for epoch in itertools.count():
        order = shuffled(rows, epoch * dist.get_world_size() + dist.get_rank())
        for run in runs_of(costs[order.numpy()], rows_a_step * costs.mean()):
            batch = rows.select(order[run])
            yield Step(
                name=f"{epoch}/{run.start}",
                batch=batch,
                num_candidates=batch.num_candidates,
                weight=float(batch.num_candidates * dist.get_world_size()),
                num_tokens=batch.num_tokens * dist.get_world_size(),
                row_hash=torch.ones(batch.num_rows),
            )


def bench(case: Case, on: torch.device, num_steps: int) -> dict[str, Any]:
    """Times a case.

    Returns:
        Milliseconds of a step with their spread, tokens a second of this rank, MFU, idle share, kernels.
    """
    num_profile = len(FOODLOG.in_group(Group.PROFILE))
    rows = batch_of(FOODLOG, lengths_of(case.shape, _ROWS, num_profile))
    trainer = Trainer(FOODLOG, case.config, on)
    trainer.scaler.fit(rows.select(torch.arange(64)))
    is_gpu = on.type == "cuda"
    with Ahead(steps_of(case, rows, on), depth=2, name="steps") as ahead:
        steps = with_next(iter(ahead))
        warm_up = _warm_up(trainer, steps)
        fresh = trainer.num_fresh
        done: list[Step] = []
        marks: list[float] = []
        waited = ahead.waited
        _wait(on)
        start = time.perf_counter()
        for _ in range(num_steps):
            step, following = next(steps)
            trainer.step(step, following)
            done.append(step)
            if len(done) % 5 == 0:
                _wait(on)  # once in five steps: what a step costs while nothing waits for it
                marks.append(time.perf_counter())
        seconds = marks[-1] - start
        waited = ahead.waited - waited
        trainer.losses()
        kernels = _kernels(trainer, steps) if is_gpu else {}
        stragglers = _stragglers(trainer, steps) if is_gpu and dist.get_world_size() > 1 else {}
    spans = [(b - a) / 5 * 1e3 for a, b in itertools.pairwise([start, *marks])]
    tokens = [step.batch.num_tokens for step in done]
    pairs = [step.batch.layouts[0].num_pairs for step in done]
    flops = [3 * case.config.model.visible_flops(*one) for one in zip(tokens, pairs, strict=True)]
    peak = peak_flops(on)
    step_ms = statistics.median(spans)  # another load on the host's cores spoils a mean
    per_s = num_steps * step_ms / 1e3
    rate = statistics.median(sum(flops[5 * k : 5 * k + 5]) / 5e-3 / ms for k, ms in enumerate(spans))
    result: dict[str, Any] = {
        "case": case.name,
        "preset": case.config.preset,
        "model": {k: getattr(case.config.model, k) for k in ("num_blocks", "d_model", "num_heads")},
        "shape": dataclasses.asdict(case.shape),
        "cut": case.cut,
        "sharded": case.config.train.fully_sharded,
        "tokens_a_step": {"mean": round(statistics.mean(tokens)), "least": min(tokens), "most": max(tokens)},
        "rows_a_step": round(statistics.mean(step.batch.num_rows for step in done), 1),
        "visible_pairs_a_step": round(statistics.mean(pairs)),
        "step_ms": {"mean": round(seconds / num_steps * 1e3, 3), "median": round(step_ms, 3),
                    "least": round(min(spans), 3), "most": round(max(spans), 3), "steps": num_steps},
        "tokens_per_s": round(sum(tokens) / per_s * dist.get_world_size()),
        "cuda_graphs": case.config.train.cuda_graphs,
        "warm_up_steps": warm_up,
        "steps_not_replayed": trainer.num_fresh - fresh if capacities_of(case.config, on) else num_steps,
        "padding": round(1 - sum(tokens) / sum(step.batch.layouts[0].num_tokens for step in done), 4),
        "waited_for_data": round(waited / seconds, 4),
        "tflops": round(rate / 1e12, 2),
        "mfu": round(rate / peak, 4) if peak else None,
    }  # fmt: skip
    if is_gpu:
        busy = kernels.pop("busy_ms")
        result |= {
            "busy_ms": round(busy, 3),
            "idle": round(max(0.0, 1 - busy / step_ms), 4),
            "launches": kernels.pop("launches"),
            "kernels_ms": kernels,
            "memory_gib": round(torch.cuda.max_memory_allocated(on) / 2**30, 2),
            **stragglers,
        }
        torch.cuda.reset_peak_memory_stats(on)
    return result


def _warm_up(trainer: Trainer, steps: Iterator[tuple[Step, Step | None]]) -> int:
    """Takes steps until forty in a row were of sizes that are captured; returns how many it took."""
    taken = since = 0
    while since < 40 and taken < _MOST_WARM_UP:
        fresh = trainer.num_fresh
        trainer.step(*next(steps))
        taken += 1
        is_fresh = torch.tensor(float(trainer.num_fresh != fresh), device=trainer.device)
        dist.all_reduce(is_fresh)  # all ranks take as many steps
        since = 0 if is_fresh.item() else since + 1
    trainer.losses()
    return taken


def _wait(on: torch.device) -> None:
    if on.type == "cuda":
        torch.cuda.synchronize(on)


def _kernels(trainer: Trainer, steps: Iterator[tuple[Step, Step | None]], number: int = 5) -> dict[str, Any]:
    """Milliseconds of a step that any kernel runs, launches, and milliseconds by kind of kernel."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        for _ in range(number):
            trainer.step(*next(steps))
        torch.cuda.synchronize()
    trainer.losses()
    spans: list[tuple[float, float]] = []
    names: dict[str, float] = {}
    kinds = dict.fromkeys([*(kind for kind, _ in _KINDS), "other"], 0.0)
    for name, begin, end in _on_device(profiler):
        spans.append((begin, end))
        kinds[_kind(name)] += (end - begin) / 1e3 / number
        names[name] = names.get(name, 0.0) + (end - begin) / 1e3 / number
    longest = sorted(names.items(), key=lambda pair: -pair[1])[:25]
    return {
        "busy_ms": _covered_ms(spans) / number,
        "launches": round(len(spans) / number),
        **{kind: round(ms, 3) for kind, ms in kinds.items()},
        "longest": {name[:90]: round(ms, 3) for name, ms in longest},
    }


def _stragglers(
    trainer: Trainer, steps: Iterator[tuple[Step, Step | None]], number: int = 12
) -> dict[str, Any]:
    """What each rank computes in each of some steps, and the share of time they wait for the slowest."""
    computed = []
    for _ in range(number):
        step = next(steps)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            trainer.step(*step)
            torch.cuda.synchronize()
        spans = [(begin, end) for name, begin, end in _on_device(profiler) if _kind(name) != "exchange"]
        computed.append(_covered_ms(spans))
    trainer.losses()
    own = torch.tensor(computed, device=trainer.device)
    of_ranks = own.new_empty(dist.get_world_size() * number)
    dist.all_gather_into_tensor(of_ranks, own)
    milliseconds = of_ranks.reshape(-1, number).cpu().numpy()
    return {
        "straggler_idle": round(idle(milliseconds), 4),
        "computed_ms": {
            "ranks": milliseconds.mean(1).round(3).tolist(),
            "least": round(float(milliseconds.min()), 3),
            "most": round(float(milliseconds.max()), 3),
            "steps": number,
        },
    }


def _on_device(profiler: profile) -> Iterator[tuple[str, float, float]]:
    """Name, begin and end (us) of all that ran on the device."""
    for event in profiler.events():  # type: ignore[no-untyped-call]
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            yield event.name, event.time_range.start, event.time_range.end


def _kind(name: str) -> str:
    return next((kind for kind, names in _KINDS if re.search(names, name)), "other")


def _covered_ms(spans: Sequence[tuple[float, float]]) -> float:
    """Milliseconds that any of the spans, in microseconds, covers."""
    covered, until = 0.0, 0.0
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered / 1e3


def _joined(paths: Sequence[Path]) -> dict[str, Any]:
    """Runs of more and more ranks, with the ratios of what neighbours do of MTGR large on shape P.

    How long ranks wait for the slowest is that of the last run, cut by work if there is such a case.
    """
    runs = [json.loads(path.read_text()) for path in paths]
    rates = [
        next(line["tokens_per_s"] for line in run["results"] if line["case"] == "mfu_large_p") for run in runs
    ]
    summary = {}
    for (few, rate), (many, more) in itertools.pairwise(
        zip((run["ranks"] for run in runs), rates, strict=True)
    ):
        if many > few:  # else it is another run of as many, on another machine
            name = f"tokens_per_s_{_NUMBERS[many]}_gpus_over_{_NUMBERS[few]}"
            summary[name] = round(more / rate, 3)
    waited = {line["case"]: line.get("straggler_idle") for line in runs[-1]["results"]}
    summary["straggler_idle_measured"] = waited.get("mfu_large_p_by_flops", waited["mfu_large_p"])
    return {"summary": summary, "runs": runs}


def table(report: Mapping[str, Any]) -> list[str]:
    """The lines of a Markdown table of a result file; of joined runs, those of the last machine."""
    if "runs" in report:
        return _table_of_ranks(report["runs"])
    head = ("CUDA graphs", "step ms", "least to most", "tokens/s", "MFU", "idle", "launches")
    lines = [f"| {report['machine']['device']} | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for one in report["results"]:
        ms, case = one["step_ms"], one["case"].removeprefix("mfu_").removesuffix("_plain")
        lines.append(
            f"| {case} | {'on' if one['cuda_graphs'] else 'off'} | {ms['median']:.1f} "
            f"| {ms['least']:.1f} to {ms['most']:.1f} | {one['tokens_per_s']:,} "
            f"| {one['mfu']:.3f} | {one['idle']:.1%} | {one['launches']:,} |"
        )
    return lines


def _table_of_ranks(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    first = max(number for number, run in enumerate(runs) if run["ranks"] == 1)
    head = ("ranks", "cut by", "dense part", "step ms", "tokens/s", "MFU", "idle", "waits for the slowest")
    lines = [f"| {runs[first]['machine']['device']} | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for run in runs[first:]:
        for one in run["results"]:
            case = one["case"].removeprefix("mfu_")
            for other in ("_plain", "_sharded", "_by_flops", "_by_users"):
                case = case.removesuffix(other)
            how = "FSDP2" if one["sharded"] else "captured" if one["cuda_graphs"] else "DDP"
            waits = f"{one['straggler_idle']:.1%}" if "straggler_idle" in one else "-"
            lines.append(
                f"| {case} | {run['ranks']} | {one['cut']} | {how} | {one['step_ms']['median']:.1f} "
                f"| {one['tokens_per_s']:,} | {one['mfu']:.3f} | {one['idle']:.1%} | {waits} |"
            )
    return lines


def _run(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
    if result_file.is_printed(arguments, table):
        return None
    if arguments.join is not None:
        return result_file.write(arguments.out, _joined(arguments.join))
    on = device()
    torch.manual_seed(0)
    with process_group(on):
        rank = dist.get_rank()
        cases = _cases(arguments.tokens * dist.get_world_size())
        every = [
            *(cases[name] for name in arguments.cases),
            *(_other(cases[name], "plain", cuda_graphs=False) for name in arguments.plain),
            *(_other(cases[name], "by_flops", "flops") for name in arguments.by_flops),
            *(_other(cases[name], "by_users", "users", cuda_graphs=False) for name in arguments.by_users),
            *(
                _other(cases[name], "sharded", fully_sharded=True, cuda_graphs=False)
                for name in arguments.sharded
            ),
        ]
        report = _report(on, arguments.commit)
        for case in every:
            one = bench(case, on, arguments.steps)
            report["results"].append(one)
            if case.config.train.cuda_graphs and one["mfu"]:
                report["summary"][case.name] = one["mfu"]
            if rank == 0:  # after each: what was measured stays when a later one fails
                result_file.write(arguments.out, report)
    return None if rank else {"summary": report["summary"], "out": str(arguments.out)}


def _report(on: torch.device, commit: str | None) -> dict[str, Any]:
    """A report without results yet."""
    return {
        "summary": {},
        "ranks": dist.get_world_size(),
        "machine": {
            "device": torch.cuda.get_device_name(on) if on.type == "cuda" else platform.processor(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "launched": is_launched(),
        },
        "commit": commit or git_sha(),
        "results": [],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Times the step; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.train", __doc__)
    result_file.add_arguments(parser)
    parser.add_argument(
        "--join",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="only joins what runs of more and more ranks gave",
    )
    parser.add_argument("--cases", nargs="+", choices=list(_cases(_TOKENS)),
                        default=["large", "medium", "small", "large_nvidia_shape"])  # fmt: skip
    parser.add_argument("--plain", nargs="+", choices=list(_cases(_TOKENS)), default=[],
                        help="cases that also run without CUDA graphs")  # fmt: skip
    for option, what in (("--by-flops", "cut by work"), ("--by-users", "cut by users, without CUDA graphs"),
                         ("--sharded", "fully sharded (FSDP2)")):  # fmt: skip
        parser.add_argument(
            option, nargs="+", choices=list(_cases(_TOKENS)), default=[], help=f"cases that also run {what}"
        )
    parser.add_argument("--steps", type=int, default=30, help="timed steps, a multiple of 5")
    parser.add_argument("--tokens", type=int, default=_TOKENS, help="of a step of one rank")
    parser.add_argument("--commit", help="where no repository says which")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())

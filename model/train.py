"""Trains the presets of a day on the days before it that each has not seen yet.

    python -m model.train --dataset foodlog --ds 2026-03-05 --preset tiny user_tower champion

`champion` stands for the preset of the champion, where there is one: it is trained beside its challengers, on
the same version of the samples, so that nobody wins by being a day newer. The result's `presets` are those
that were trained.

Continues from the newest fitting run (see `model.runs.store`), reads the unseen days in order from one pinned
version of the samples table, and writes a new run whole or not at all. Run again, it changes nothing; killed
and run again, it goes on from its last checkpoint with the same losses, bit for bit. `torchrun
--nproc-per-node N -m model.train ...` trains on N ranks; one that fails ends them all, with its reason.
`MTGR_DEVICE` (`auto`, `cpu`, `cuda`) says where; `--profile FILE` writes a trace of some steps.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record as told

from model.config import environment
from model.config.environment import device
from model.config.presets import preset_named
from model.data.reader import SamplesTable
from model.registry import record
from model.registry import versions as registry
from model.registry.machine import Machine
from model.training.loop import train
from model.training.ranks import process_group
from spark_jobs.contract import command
from spark_jobs.contract.command import UsageError

logger = logging.getLogger(__name__)


CHAMPIONS = "champion"


def _run(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
    dataset, results = arguments.dataset, {}
    with process_group(device()):
        shared: list[Any] = [None]
        if environment.rank() == 0:
            shared = [(presets_of(dataset.name, arguments.preset), SamplesTable(dataset).version)]
        dist.broadcast_object_list(shared)
        presets, version = shared[0]
        for preset in presets:
            with Machine() as machine:
                results[preset] = train(
                    dataset,
                    preset_named(preset),
                    arguments.ds,
                    device(),
                    functools.partial(record.log_training, machine=machine),
                    version=version,
                    trace=arguments.profile,
                )
    return command.by_preset(results) if environment.rank() == 0 else None


def presets_of(dataset: str, names: Sequence[str]) -> list[str]:
    """The presets to train: those named, each once, and for `champion` the champion's own.

    Raises:
        UsageError: There is no champion yet, and no other preset is named.
        RegistryError: The champion's alias has vanished.
    """
    champion = registry.aliased(dataset, registry.CHAMPION) if CHAMPIONS in names else None
    of_champion = [] if champion is None else [champion.preset]
    presets = [preset for name in names for preset in (of_champion if name == CHAMPIONS else [name])]
    if not presets:
        raise UsageError(f"mtgr-{dataset} has no champion yet: name a preset to train")
    return list(dict.fromkeys(presets))


def _preset(name: str) -> str:
    return name if name == CHAMPIONS else preset_named(name).preset


def main(argv: Sequence[str] | None = None) -> int:
    """Trains; see `command.run` for the exit codes."""
    parser = command.parser("model.train", __doc__)
    command.add_dataset(parser)
    command.add_day(parser, help="train on the unseen days before this day, YYYY-MM-DD")
    command.add_presets(parser, _preset, help="presets to train; `champion` is that of the champion")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="write a trace of four steps, for ui.perfetto.dev"
    )
    # Under torchrun, `told` leaves the error of the rank that fails first where torchrun prints it from.
    return command.run(parser, told(_run) if environment.is_launched() else _run, argv)


if __name__ == "__main__":
    sys.exit(main())

"""Trains on the days not yet seen before a day: `python -m model.train --dataset foodlog --ds 2026-03-05`.

Continues from the newest fitting run (see `model.runs.store`), reads the unseen days in order from one pinned
version of the samples table, and writes a new run whole or not at all. Run again, it changes nothing;
killed and run again, it goes on from its last checkpoint with the same losses, bit for bit. `torchrun
--nproc-per-node N -m model.train ...` trains on N ranks. `MTGR_DEVICE` (`auto`, `cpu`, `cuda`) says where.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from model.config import environment
from model.config.environment import device
from model.config.presets import preset_named
from model.registry import record
from model.training.loop import train
from spark_jobs.contract import command

logger = logging.getLogger(__name__)


def _run(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
    result = train(arguments.dataset, arguments.preset, arguments.ds, device(), record.log_training)
    return result if environment.rank() == 0 else None


def main(argv: Sequence[str] | None = None) -> int:
    """Trains; see `command.run` for the exit codes."""
    parser = command.parser("model.train", __doc__)
    command.add_dataset(parser)
    command.add_day(parser, help="train on the unseen days before this day, YYYY-MM-DD")
    parser.add_argument("--preset", type=command.checked(preset_named), default="tiny")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())

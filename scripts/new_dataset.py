"""Writes what a dataset of one's own begins with: `make new-dataset NAME=grocery FROM=<sample of logs>`.

From the files of the sample (CSV, JSON lines, Parquet; a day or a few) it reads which logs there are, where a
day's lie, and the names and types of their columns, and writes a declaration, a module and a test. What a
person has to decide is marked `FILL IN`; the test fails until nothing is, and then reads a day of the sample.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.embedded.clock import print_line
from scripts.embedded.settings import REPOSITORY
from scripts.scaffolding import texts
from scripts.scaffolding.sample import logs_in
from spark_jobs.contract import command
from spark_jobs.contract.command import CommandError, UsageError
from spark_jobs.contract.foodlog import FOODLOG

logger = logging.getLogger(__name__)


def write(name: str, sample: Path, repository: Path = REPOSITORY) -> list[Path]:
    """Writes the three files.

    Args:
        name: Of the dataset.
        sample: Folder with the sample.
        repository: Where `spark_jobs` and `tests` lie.

    Returns:
        The files.

    Raises:
        UsageError: The name is none for a dataset.
        CommandError: A file exists already, or the sample cannot be read.
    """
    try:
        dataclasses.replace(FOODLOG, name=name)
    except ValueError as error:
        raise UsageError(f"NAME: {error}") from error
    files = {
        kind: repository / path
        for kind, path in {
            "declaration": f"spark_jobs/contract/{name}.py",
            "source": f"spark_jobs/sources/{name}.py",
            "test": f"tests/spark_jobs/test_{name}.py",
        }.items()
    }
    for path in files.values():
        if path.exists():
            raise CommandError(f"{path} exists: choose another NAME, or move it away")
    logs = logs_in(sample)
    for log in logs:
        logger.info("%s (%s): %s, %d columns", log.name, log.form, log.path, len(log.columns))
    written = {
        "declaration": texts.declaration(name, logs),
        "source": texts.source(name, logs),
        "test": texts.test(name, logs, sample.absolute()),
    }
    for kind, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(written[kind])
    return list(files.values())


def _run(arguments: argparse.Namespace) -> None:
    sample = Path(arguments.sample)
    if not (arguments.name and arguments.sample and sample.is_dir()):
        raise UsageError(
            f"give NAME=<dataset> FROM=<folder with a sample of its logs>; FROM={arguments.sample}"
        )
    files = write(arguments.name, sample)
    print_line("\n".join(str(path.relative_to(REPOSITORY)) for path in files))
    print_line(f"fill in what is marked FILL IN (docs/declaration.md), until this passes: pytest {files[-1]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the files; see `command.run` for the exit codes."""
    parser = command.parser("scripts.new_dataset", __doc__)
    parser.add_argument("--name", default="", help="name of the dataset")
    parser.add_argument("--from", dest="sample", default="", help="folder with a sample of its logs")
    return command.run(parser, _run, argv, for_people=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

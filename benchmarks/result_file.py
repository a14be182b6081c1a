"""What benchmarks that have a result file share: `--out` writes it, `--table` prints one for documents."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spark_jobs.contract.command import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--out` and `--table`."""
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only prints a result file as a table")


def is_printed(arguments: argparse.Namespace, table: Callable[[dict[str, Any]], list[str]]) -> bool:
    """Prints the table that was asked for, if one was.

    Raises:
        UsageError: Nothing says where a result goes.
    """
    if arguments.table is not None:
        sys.stdout.write("\n".join(table(json.loads(arguments.table.read_text()))) + "\n")
        return True
    if arguments.out is None:
        raise UsageError("--out FILE says where the result goes")
    return False


def write(path: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a result; returns what the command prints of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return {"summary": result["summary"], "out": str(path)}

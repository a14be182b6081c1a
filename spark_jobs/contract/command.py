"""The shell of every command: arguments, logging, exit codes and the JSON line at the end.

    def main(argv: Sequence[str] | None = None) -> int:
        parser = command.parser("model.train", __doc__)
        command.add_dataset(parser)
        command.add_day(parser, help="the day")
        return command.run(parser, body, argv)

`body` takes the parsed arguments and returns the result, which is printed as one line of JSON, the last on
stdout; logs go to stderr. Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted. Before the
body runs, locations are checked (`locations.check`) and loopback is taken out of what proxies get.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO, TypeVar

logger = logging.getLogger(__name__)

PACKAGES = ("__main__", "spark_jobs", "expectations", "model", "hstu_ops", "scripts", "benchmarks")
_T = TypeVar("_T")


class CommandError(RuntimeError):
    """Something that an operator has to know: the message names the thing, the value and what to do.

    Every package's errors of this kind derive from it; a command that meets one says it and ends with 1.
    """


class UsageError(ValueError):
    """A setting or argument is wrong; the message names it, its value and what is possible."""


class RefusedError(CommandError):
    """A command has done its work and the answer is no: it prints its result and ends with 1.

    The result's `refused` says why; whoever runs commands knows by it that another try would end the same.

    Args:
        message: Why.
        result: What the JSON line says.
    """

    def __init__(self, message: str, result: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.result = result


class _Stderr(logging.StreamHandler[TextIO]):
    """Our own handler: set up once more, it is replaced."""


def parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of a command, `python -m <module>`, described by the module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def checked(read: Callable[[str], _T]) -> Callable[[str], _T]:
    """An argument's type from a function that raises ValueError: its message is what the user sees."""

    def of(text: str) -> _T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return of


def add_dataset(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds `--dataset`, which becomes a `Dataset`."""
    from spark_jobs.contract.datasets import dataset_named

    parser.add_argument("--dataset", required=required, type=checked(dataset_named), metavar="NAME")


def add_day(
    parser: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup,
    name: str = "--ds",
    *,
    help: str,
    required: bool = True,
    **more: Any,
) -> None:
    """Adds an argument that is a day, YYYY-MM-DD."""
    from spark_jobs.contract.clock import parse_day

    day = checked(lambda text: parse_day(text).isoformat())
    parser.add_argument(name, required=required, type=day, metavar="DAY", help=help, **more)


def add_presets(
    parser: argparse.ArgumentParser,
    read: Callable[[str], str] | None = None,
    *,
    help: str = "the presets of the runs",
) -> None:
    """Adds `--preset`, one or several names, each once; `read` refuses what is no preset."""
    kind = checked(read or _name)
    parser.add_argument(
        "--preset", nargs="+", default=["tiny"], type=kind, action=_Once, metavar="NAME", help=help
    )


class _Once(argparse.Action):
    """Keeps each of several values once, in order."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, list(dict.fromkeys(values)))


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]+", text):
        raise ValueError(f"{text!r} is no preset: lower case letters, digits and underscores")
    return text


def by_preset(results: Mapping[str, Mapping[str, Any]], first: str | None = None) -> dict[str, Any]:
    """The result of a command over several presets: that of the first, and under `presets` those of all."""
    return {**results[first or next(iter(results))], "presets": dict(results)}


def configure_logging(*, for_people: bool = False) -> None:
    """Logs to stderr: of our packages everything from INFO on, of libraries what they warn of.

    A handler of `basicConfig`, which TorchRec calls when it is imported, would say each message once more; it
    goes. Any other stays.

    Args:
        for_people: Messages alone, for a command at a terminal, instead of time, level and module.
    """
    form = "%(message)s" if for_people else "%(asctime)s %(levelname)s %(name)s: %(message)s"
    root = logging.getLogger()
    for handler in list(root.handlers):
        is_plain = type(handler) in (_Stderr, logging.StreamHandler)
        if is_plain and getattr(handler, "stream", None) is not sys.stdout:
            root.removeHandler(handler)
    own = _Stderr(sys.stderr)
    own.setFormatter(logging.Formatter(form))
    root.addHandler(own)
    root.setLevel(logging.WARNING)
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)


def run(
    parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace], Mapping[str, Any] | None],
    argv: Sequence[str] | None = None,
    *,
    for_people: bool = False,
    interrupted: str = "run it again to go on",
) -> int:
    """Runs a command.

    Args:
        parser: Of its arguments.
        body: What it does; its result is printed, unless it is None.
        argv: Arguments; those of the process by default.
        for_people: See `configure_logging`.
        interrupted: What to say when it is interrupted.

    Returns:
        The exit code.
    """
    configure_logging(for_people=for_people)
    # Python ends by searching all that PyTorch and MLflow have made for cycles: two seconds for nothing.
    atexit.register(gc.freeze)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    from spark_jobs.contract import environment, locations, machine

    environment.override(machine.spare_loopback(environment.everything()))
    try:
        locations.check()
        result = body(arguments)
    except UsageError as error:
        logger.error("%s", error)
        return 2
    except RefusedError as error:
        logger.error("%s", error)
        write_result({**error.result, "refused": str(error)})
        return 1
    except (CommandError, ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logger.error("interrupted: %s", interrupted)
        return 130
    if result is not None:
        write_result(result)
    return 0


def write_result(result: Mapping[str, Any]) -> None:
    """Prints a result as one line of JSON."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()

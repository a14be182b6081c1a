"""What Spark raises, as a message for people: causes without their stacks, and a full disk by its name."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from py4j.protocol import Py4JError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException

from spark_jobs.lake.log import LakeError, full_disk

SPARK_ERRORS = (PySparkException, Py4JError)  # the latter is what a classic session does not convert
_STACK = re.compile(r"at |\.\.\. \d+ more|JVM stacktrace:|== .* ==$|.* was called from$|\S+\.py:\d+$")
_PLAN = re.compile(
    r";\n(?=['!:+ ]*[A-Z]\w+\b).*?(?=\n\s*\n|\nCaused by|\Z)", re.DOTALL
)  # behind an analysis error


@contextlib.contextmanager
def spark_errors(subject: str) -> Iterator[None]:
    """Raises what Spark raises inside, e.g. for a damaged file, as `LakeError` with the subject's name."""
    try:
        yield
    except SPARK_ERRORS as error:
        raise LakeError(f"{subject}: {reason(error)}") from error


def reason(error: BaseException, uri: str = "") -> str:
    """The messages of a Spark error, without its stacks and plans.

    Args:
        error: The error.
        uri: The table that was written, of whose disk the free bytes are told.
    """
    text = _PLAN.sub("", str(error))
    lines = [line.strip().removeprefix("Caused by: ") for line in text.splitlines()]
    causes = "; ".join(dict.fromkeys(line for line in lines if line and not _STACK.match(line)))[:2000]
    return full_disk(error, uri) + causes

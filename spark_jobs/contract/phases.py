"""Named phases of the stages, so that a test can kill a stage at every one of them.

A stage calls `reach("ingest:before_commit")` where a crash would hurt most. Normally that does nothing. Two
environment variables give it a meaning; nothing else in the system knows of them:

- `MTGR_KILL_AT=<stage>:<phase>` the process kills itself there by SIGKILL: no handler, no clean-up, like a
  lost node; with `#<n>` behind it the n-th time that it comes there;
- `MTGR_TRACE_PHASES=<file>` every phase reached is appended to the file, one a line: the list of kill points
  of a run is read from a run, never kept by hand.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from pathlib import Path

from spark_jobs.contract import environment

_reached: Counter[str] = Counter()


def reach(phase: str) -> None:
    """Marks that the running stage has come to a phase.

    Args:
        phase: `<stage>:<phase>` in lower case, e.g. `build_samples:after_commit`.

    Raises:
        ValueError: `phase` is not written so.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*:[a-z][a-z0-9_]*", phase):
        raise ValueError(f"phase {phase!r} is not written <stage>:<phase>")
    trace = environment.phase_trace()
    if trace:
        with Path(trace).open("a", encoding="ascii") as file:
            file.write(phase + "\n")
    kill_at, _, times = environment.kill_at().partition("#")
    if kill_at == phase:
        _reached[phase] += 1
        if _reached[phase] == int(times or 1):
            os.kill(os.getpid(), signal.SIGKILL)

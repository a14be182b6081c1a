"""A line that says what is waited for and for how long: on a terminal alone, logs in files stay clean."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from typing import TextIO

_EVERY_S = 0.5
_ERASE = "\r\x1b[K"


class Clock:
    """The last line of a terminal, written over and over.

    Args:
        stream: Where to write; stderr by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._shown_at = 0.0

    def show(self, text: str) -> None:
        """Shows a line in place of the one before; what comes too soon after it is left out."""
        now = time.monotonic()
        if self._is_terminal and now - self._shown_at >= _EVERY_S:
            self._shown_at = now
            self._stream.write(_ERASE + text[: shutil.get_terminal_size().columns - 1])
            self._stream.flush()

    def hide(self) -> None:
        """Takes the line away, for what is printed next."""
        if self._shown_at:
            self._shown_at = 0.0
            self._stream.write(_ERASE)
            self._stream.flush()

    def filter(self, record: logging.LogRecord) -> bool:
        """As a filter of a log's handler: takes the line away before a message."""
        self.hide()
        return True


clock = Clock()


def print_line(line: str) -> None:
    """Prints a line for the person who waits."""
    clock.hide()
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

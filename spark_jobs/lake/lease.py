"""A lease on one partition of a table: one writer at a time, and a token that outlives a lost one.

A lease is the description of a tiny Delta table without rows, `_leases/<table>/<partition>` beside the table.
A commit to a Delta log creates the next numbered file or fails, on every store where Delta works, so taking a
lease is one atomic step, and **the version of that commit is the fencing token**, growing for ever. The
holder renews the lease while it works. A lease is free when it was given back, when its process on this host
is gone, or when it has not been renewed for `LEASE_MS`; a writer that slept through this finds at its commit
that a newer token has written (`lake.replace_partition`), and its own write is dropped.

Clocks of hosts differ, so a time in a lease proves nothing: one that has run out by this host's clock, or was
renewed in its future, is watched for two renewals, and is free only when none comes.

Spark is not involved: taking a lease costs milliseconds, one whose holder was lost half a minute.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spark_jobs.lake.log import LakeError, create_table, full_disk, open_table, storage_uri

logger = logging.getLogger(__name__)
LEASE_MS = 60_000
_RENEWALS_A_LEASE = 4
_RENEWALS_WATCHED = 2


class LeaseHeldError(LakeError):
    """Another run is writing the same partition; the message says which, where and since when."""


class FencedError(LakeError):
    """A newer run has taken the partition over: this run's write was not, and will not be, kept."""


class Lease:
    """Exclusive right to write one partition, as a context manager.

    Args:
        table_uri: The table.
        partition: Name of the partition, e.g. `ds=2026-03-01`.
        stage: Who writes, for the message to another.

    Raises:
        LeaseHeldError: On entering, when a live run holds it.
        LakeError: The lease record cannot be written or read.
    """

    def __init__(self, table_uri: str, partition: str, stage: str) -> None:
        folder, _, table = storage_uri(table_uri).rpartition("/")
        self.uri = f"{folder}/_leases/{table}/{partition}"
        self.subject = f"{table} {partition}"
        self.token = -1
        self._record: dict[str, Any] = {"stage": stage, **_this_process()}
        self._lost = False
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._renewing: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.acquire()
        self._renewing = threading.Thread(target=self._renew, name=f"lease {self.subject}", daemon=True)
        self._renewing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._renewing:
            self._renewing.join()
        if not self._lost:
            self._commit_if_possible(released=True)

    def acquire(self) -> int:
        """Takes the lease and returns its token."""
        from deltalake.exceptions import DeltaError

        create_table(self.uri, [("lease", "string")])
        table = open_table(self.uri)
        held = json.loads(table.metadata().description or "{}")
        if not _is_free(held):
            age_ms = _now_ms() - held["renewed_ms"]
            if 0 <= age_ms < LEASE_MS:
                raise LeaseHeldError(self._holder(held, f" for {(_now_ms() - held['since_ms']) // 1000} s"))
            if self._is_renewed(table.version()):
                clocks = (
                    f"; its clock and this host's differ by some {abs(age_ms) / 1000:.0f} s: run NTP on both"
                )
                raise LeaseHeldError(self._holder(held, "") + clocks)
        self._table, self._record["since_ms"] = table, _now_ms()
        try:
            self._commit(released=False)
        except (DeltaError, OSError) as error:
            raise LakeError(
                f"{self.subject}: the lease at {self.uri} cannot be written, nothing was changed: "
                f"{full_disk(error, self.uri)}{error}"
            ) from error
        if self._lost:
            raise LeaseHeldError(f"{self.subject}: another run took it at the same moment; run again later")
        self.token = table.version()
        return self.token

    def _holder(self, held: dict[str, Any], since: str) -> str:
        return (
            f"{self.subject} is being written by {held['stage']} (process {held['pid']} on {held['host']})"
            f"{since}; wait for it, or stop it and run again"
        )

    def _is_renewed(self, version: int) -> bool:
        """Whether somebody commits within two renewals by this process's own clock."""
        wait_s = LEASE_MS / _RENEWALS_A_LEASE * _RENEWALS_WATCHED / 1000
        end = time.monotonic() + wait_s
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, wait_s / 10))
            if open_table(self.uri).version() != version:
                return True
        return False

    def check(self) -> None:
        """Raises `FencedError` when the lease is known to be lost: cheaper than to find it at the commit."""
        if self._lost:
            raise FencedError(
                f"{self.subject}: a newer run has taken over from token {self.token}; run again"
            )

    def _renew(self) -> None:
        while not self._done.wait(LEASE_MS / _RENEWALS_A_LEASE / 1000) and not self._lost:
            self._commit_if_possible(released=False)

    def _commit_if_possible(self, *, released: bool) -> None:
        """A store that fails here only lets the lease run out; what the holder writes stays fenced."""
        from deltalake.exceptions import DeltaError

        try:
            self._commit(released=released)
        except (DeltaError, OSError) as error:
            logger.warning(
                "%s: the lease could not be %s: %s", self.subject, ("renewed", "given back")[released], error
            )

    def _commit(self, *, released: bool) -> None:
        """Writes the record as the next version; another's commit in between means that the lease is lost."""
        from deltalake import CommitProperties
        from deltalake.exceptions import CommitFailedError

        record = {**self._record, "released": released, "renewed_ms": _now_ms()}
        with self._lock:
            try:
                self._table.alter.set_table_description(
                    json.dumps(record), commit_properties=CommitProperties(max_commit_retries=0)
                )
            except CommitFailedError:
                logger.warning("%s: the lease was taken by another run", self.subject)
                self._lost = True


def _is_free(record: dict[str, Any]) -> bool:
    """Whether a lease is free whatever the time is."""
    if not record or record["released"]:
        return True
    return record["host"] == _this_process()["host"] and not _is_running(record["pid"], record["started"])


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_of(os.getpid())}


def _start_of(pid: int) -> str:
    """Start time of a process in clock ticks, which tells it from a later one of the same id; else empty."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def _is_running(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _start_of(pid) == started


def _now_ms() -> int:
    return int(time.time() * 1000)

"""Reading a Delta table's log without Spark: versions, commits, and which commit wrote a partition.

Every commit of this project carries a JSON record as Delta's `userMetadata`:

| key | meaning |
|---|---|
| `stage` | the command that wrote it |
| `partition` | what it replaced, e.g. `ds=2026-03-01` |
| `token` | fencing token of the writer's lease |
| `git_sha` | git commit of the code, with `+dirty` when files differ from it |
| `inputs` | what it was made from: table -> version, declarations -> digest |

plus what the stage adds. Store credentials come from the environment (`AWS_ACCESS_KEY_ID`, ...).
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark_jobs.contract.command import CommandError
from spark_jobs.contract.tables import TYPE_NAMES, item_type

_FULL = re.compile(r"No space left on device|Disk quota exceeded|File too large")


class LakeError(CommandError):
    """A table cannot be read or written as asked; the message names the table, the reason and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One commit of a table.

    Args:
        version: Table version that it made.
        metadata: Its JSON record; empty for commits that carry none (OPTIMIZE, CREATE).
        operation: Delta's name of the operation.
        metrics: Delta's metrics of the operation.
    """

    version: int
    metadata: Mapping[str, Any]
    operation: str
    metrics: Mapping[str, Any]


def full_disk(error: BaseException, uri: str = "") -> str:
    """What to do when an error says that the disk is full; else an empty text.

    Args:
        error: The error.
        uri: What was written, of whose disk the free bytes are told.
    """
    if not _FULL.search(str(error)):
        return ""
    free = ""
    if uri and "://" not in uri:
        existing = next(path for path in (Path(uri), *Path(uri).parents) if path.exists())
        free = f" ({shutil.disk_usage(existing).free} bytes are free at {existing})"
    return f"the disk takes no more{free}: free space or raise the quota, then run again; "


def storage_uri(uri: str) -> str:
    """The URI as object stores' own tools write it: Hadoop's `s3a` is `s3`."""
    return re.sub(r"^s3[an]://", "s3://", uri)


def exists(uri: str) -> bool:
    """Whether there is a Delta table at `uri`."""
    from deltalake import DeltaTable

    return bool(DeltaTable.is_deltatable(storage_uri(uri)))


def create_table(
    uri: str,
    columns: Sequence[tuple[str, str]],
    partition_by: Sequence[str] = (),
    properties: Mapping[str, str] | None = None,
) -> None:
    """Creates an empty table unless there is one; of several who try, one creates it and all go on.

    Args:
        uri: Where.
        columns: (column, Spark SQL type); scalars and arrays of scalars.
        partition_by: Partition columns.
        properties: Delta's table properties.
    """
    from deltalake import DeltaTable, Schema
    from deltalake.exceptions import DeltaError

    if exists(uri):
        return
    fields = [
        {"name": name, "type": _delta_type(kind), "nullable": True, "metadata": {}} for name, kind in columns
    ]
    schema = Schema.from_json(json.dumps({"type": "struct", "fields": fields}))
    try:
        if "://" not in uri:
            Path(uri).mkdir(parents=True, exist_ok=True)
        DeltaTable.create(
            storage_uri(uri), schema, "error", list(partition_by), configuration=dict(properties or {})
        )
    except (DeltaError, OSError) as error:
        if not exists(uri):
            remedy = full_disk(error, uri) or "see that the lake is writable; "
            raise LakeError(f"{uri} cannot be created: {remedy}{error}") from error


def _delta_type(kind: str) -> Any:
    item, is_list = item_type(kind)
    name = TYPE_NAMES[item].delta
    return {"type": "array", "elementType": name, "containsNull": True} if is_list else name


def open_table(uri: str, version: int | None = None) -> Any:
    """The `deltalake.DeltaTable` at a version (default: newest).

    Raises:
        LakeError: There is no table, its log is damaged, or the version is no longer readable.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        return DeltaTable(storage_uri(uri), version=version)
    except (DeltaError, OSError, ValueError) as error:
        if not exists(uri):
            raise LakeError(f"there is no table at {uri}; run the stage that writes it first") from error
        if version is not None:
            newest = open_table(uri).version()
            raise LakeError(
                f"{uri}: version {version} is no longer readable (newest is {newest}): its log or files were "
                f"vacuumed or never existed; build the partition again and use its new version"
            ) from error
        raise LakeError(
            f"{uri}: the transaction log in {uri}/_delta_log is damaged ({error}); restore the file it names "
            "from a backup, or delete the table and build its partitions again"
        ) from error


def current_version(uri: str) -> int:
    """Newest version of a table.

    Raises:
        LakeError: As `open_table`.
    """
    return int(open_table(uri).version())


def table_id(uri: str) -> str:
    """Delta's id of a table: another one after it was made anew.

    Raises:
        LakeError: As `open_table`.
    """
    return str(open_table(uri).metadata().id)


def commits(uri: str, limit: int | None = None) -> Iterator[Commit]:
    """Commits of a table, newest first."""
    for entry in _history(uri, limit):
        record = entry.get("userMetadata")
        yield Commit(
            version=int(entry["version"]),
            metadata=json.loads(record) if record else {},
            operation=entry.get("operation", ""),
            metrics=entry.get("operationMetrics", {}),
        )


def _history(uri: str, limit: int | None) -> list[dict[str, Any]]:
    """Entries of the log, while nobody commits.

    deltalake lists the newest entries but counts their versions down from the table's as it was opened: a
    commit in between would shift all of them.
    """
    while True:
        table = open_table(uri)
        entries: list[dict[str, Any]] = table.history(limit)
        if open_table(uri).version() == table.version():
            return entries


def last_commit(uri: str, partition: str) -> Commit | None:
    """The newest commit that wrote a partition (e.g. `ds=2026-03-01`), or None."""
    if not exists(uri):
        return None
    return next((c for c in commits(uri) if c.metadata.get("partition") == partition), None)


# What changes no row that stays: of any other operation that is not ours, all partitions count as written.
_HARMLESS = re.compile(r"OPTIMIZE|VACUUM|DELETE|CREATE TABLE$|CONVERT|.*TBLPROPERTIES|.*PROPERT|ADD COLUMN")


@dataclass(frozen=True, kw_only=True)
class Written:
    """Which commit wrote each partition of a table, as far back as its log goes.

    Args:
        table: Delta's id of the table: another one after it was made anew.
        oldest: Oldest version that the log still tells of.
        newest: Version that was asked for.
        partitions: Partition (e.g. `ds=2026-03-01`) to the newest commit that wrote it.
        rewritten: Newest commit by somebody else that may have written any partition; -1 for none.
    """

    table: str
    oldest: int
    newest: int
    partitions: Mapping[str, int]
    rewritten: int

    def version_of(self, partition: str) -> int:
        """The commit that wrote a partition; the oldest known version where the log has forgotten it."""
        return max(self.partitions.get(partition, self.oldest), self.rewritten)

    def holds(self, partition: str, table: Any, version: Any) -> bool:
        """Whether a partition's rows are still those that commit `version` of table `table` left."""
        if table != self.table or not isinstance(version, int) or version > self.newest:
            return False
        known = self.partitions.get(partition, -1)
        if max(known, self.rewritten) >= 0:
            return version == max(known, self.rewritten)
        return version <= self.oldest


def written(uri: str, version: int | None = None) -> Written:
    """Reads from a table's log which commit wrote each partition.

    Args:
        uri: The table.
        version: Later commits are not looked at; default: none is later.

    Raises:
        LakeError: As `open_table`.
    """
    newest = open_table(uri, version)
    partitions: dict[str, int] = {}
    rewritten, oldest = -1, int(newest.version())
    for commit in commits(uri):  # newest first
        if commit.version > newest.version():
            continue
        oldest = commit.version
        partition = commit.metadata.get("partition")
        if partition is not None:
            partitions.setdefault(str(partition), commit.version)
        elif not _HARMLESS.match(commit.operation):
            rewritten = max(rewritten, commit.version)
    return Written(
        table=str(newest.metadata().id),
        oldest=oldest,
        newest=int(newest.version()),
        partitions=partitions,
        rewritten=rewritten,
    )


def partition_values(uri: str, column: str, version: int | None = None) -> list[str]:
    """Values of a partition column for which the table has rows, ascending; empty when there is no table.

    Args:
        uri: The table.
        column: Partition column.
        version: Table version (default: newest).
    """
    if not exists(uri):
        return []
    return sorted({str(p[column]) for p in open_table(uri, version).partitions()})


@functools.cache
def git_sha(*folders: str) -> str:
    """Git commit of this code, `+dirty` appended when files of `folders` differ; `unknown` outside of git.

    Args:
        folders: Top folders that matter; `spark_jobs` by default.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", *(folders or ("spark_jobs",)))
        return git("rev-parse", "HEAD") + ("+dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"

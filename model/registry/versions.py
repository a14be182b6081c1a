"""The model registry: versions of `mtgr-<dataset>`, found by digest, and the aliases that name two of them.

A version carries what it is as tags: preset, day, days seen, the commit that trained it and the digest of its
config and weights. `candidate` names the newest version to be judged, `champion` the one that
serves. MLflow sets an alias without compare-and-set and drops it with its version, so: whoever changes the
registry holds the dataset's lease (`exclusive`), and the registered model's tag `champion` remembers whom
the alias named, so that a vanished champion raises the alarm instead of reading as "there is none yet".
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.registry.lineage import days_of
from model.registry.store import TrackingError, client, with_named_errors
from model.registry.tracking import bounded, experiment_name
from model.runs.store import CONFIG, WEIGHTS, Champion, digest_of
from spark_jobs.contract import locations
from spark_jobs.contract.command import CommandError
from spark_jobs.lake.lease import Lease, LeaseHeldError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

CANDIDATE, CHAMPION = "candidate", "champion"  # aliases; MLflow takes `Champion` for another one
READY = "READY"
# Tags of a version.
DIGEST = "digest"
DECISION, EVALUATION, PREVIOUS = "decision", "evaluation_digest", "previous_champion"
ROLLED_BACK, RESTORED = "rolled_back", "restored"
PACKAGE, PACKAGE_DIGEST, PARITY = "package", "package_digest", "parity_max"  # of its export for serving
PARITY_REPORT = "parity.json"  # artifact of its run
_SINCE = "champion_since"  # tag of the registered model: version, and when the alias came to it
_WAIT_S = 120
_LONGEST_REASON = 1500
_LONGEST_DESCRIPTION = 5000  # characters that MLflow's column takes
_CUT = "\n\n... (cut: the whole of it is in the run's promotion.json)"


class RegistryError(CommandError):
    """A version is missing, damaged or not what was asked for; the message names it and what to do."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered version.

    Attributes:
        model: Registered model, `mtgr-<dataset>`.
        version: Its number.
        preset: Preset it was made with.
        ds: Day it was made for: it has seen days before this one.
        samples_version: Version of the samples table it was trained from.
        seen_days: Days it was trained on, ascending; `lineage.json` has the table version of each.
        digest: SHA-256 of its config and weights.
        status: MLflow's: `READY` when its registration went through.
        run_id: MLflow run it belongs to.
        model_id: Logged model that holds its files.
        tags: All its tags.
    """

    model: str
    version: int
    preset: str
    ds: str
    samples_version: int
    seen_days: tuple[str, ...]
    digest: str
    status: str
    run_id: str
    model_id: str
    tags: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"{self.model} version {self.version} ({self.preset} of {self.ds})"


def champion(dataset: str) -> Champion | None:
    """The champion, with its files on this machine; None when there has never been one.

    Raises:
        RegistryError: Its alias has vanished, or its files differ from its digest.
        TrackingError: MLflow is not reachable or refuses.
        ValueError: The dataset is unknown.
    """
    version = aliased(dataset, CHAMPION)
    if version is None:
        return None
    return Champion(version=version.version, digest=version.digest, path=fetch(version))


@with_named_errors
def versions(dataset: str) -> list[Version]:
    """All versions, oldest first; empty when nothing is registered."""
    name = experiment_name(dataset)
    registered: list[Version] = []
    token = None
    while True:
        page = client().search_model_versions(f"name = '{name}'", max_results=200, page_token=token)
        registered += [_version(entry) for entry in page]
        token = page.token
        if not token:
            return sorted(registered, key=lambda version: version.version)


def numbered(dataset: str, number: int) -> Version:
    """A version by its number.

    Raises:
        RegistryError: There is none.
    """
    for version in versions(dataset):
        if version.version == number:
            return version
    raise RegistryError(f"{experiment_name(dataset)} has no version {number}")


def with_digest(dataset: str, digest: str) -> Version | None:
    """The version of a run's digest, or None; of several, the first."""
    return next((version for version in versions(dataset) if version.digest == digest), None)


@with_named_errors
def aliased(dataset: str, alias: str) -> Version | None:
    """The version that an alias names, or None.

    Raises:
        RegistryError: The champion's alias has vanished.
    """
    model = _registered(experiment_name(dataset))
    if model is None:
        return None
    number = model.aliases.get(alias)
    if number is None:
        last = model.tags.get(CHAMPION)
        if alias == CHAMPION and last:
            raise RegistryError(
                f"{model.name} has lost its champion: the alias named version {last}, which was deleted or "
                f"unset; what serves keeps its copy. Choose another: "
                f"python -m model.rollback --dataset {dataset} --version <N>"
            )
        return None
    return _version(client().get_model_version(model.name, str(number)))


@with_named_errors
def create_model(dataset: str) -> str:
    """The name of the dataset's registered model, which is created when there is none."""
    from mlflow.exceptions import MlflowException

    name = experiment_name(dataset)
    try:
        client().create_registered_model(name, description=f"Ranks {dataset}: CTR and CTCVR")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return name


@with_named_errors
def set_champion(dataset: str, version: Version) -> None:
    """Makes a version the champion; the caller holds `exclusive`. Setting it again changes nothing."""
    # The alias first: a kill in between leaves a tag that is older than the alias, which misleads nobody.
    client().set_registered_model_alias(version.model, CHAMPION, str(version.version))
    client().set_registered_model_tag(version.model, CHAMPION, str(version.version))
    if _registered(version.model).tags.get(_SINCE, "").split(" ")[0] != str(version.version):
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        client().set_registered_model_tag(version.model, _SINCE, f"{version.version} {now}")


@with_named_errors
def since(version: Version) -> str:
    """When a version's alias `champion` was set, UTC; `an unknown time` where that was not noted."""
    number, _, when = _registered(version.model).tags.get(_SINCE, "").partition(" ")
    return str(when) if number == str(version.version) else "an unknown time"


@with_named_errors
def why(version: Version) -> str:
    """The first line of a version's description: the decision in words, once it is decided."""
    lines = (client().get_model_version(version.model, str(version.version)).description or "").splitlines()
    line = lines[0] if lines else ""
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]} ..."


@with_named_errors
def describe_model(dataset: str, text: str) -> None:
    """Sets the registered model's description, where it differs."""
    name = create_model(dataset)
    if _registered(name).description != text:
        client().update_registered_model(name, text)


@with_named_errors
def advance_candidate(dataset: str, version: Version) -> bool:
    """Lets `candidate` name a version, unless it names one of a later day or registered later.

    The caller holds `exclusive`. Returns whether `version` is the candidate now.
    """
    present = aliased(dataset, CANDIDATE)
    if present is not None and (present.ds, present.version) > (version.ds, version.version):
        logger.info("the alias %s stays with %s, which is newer", CANDIDATE, present)
        return False
    if present is None or present.version != version.version:
        client().set_registered_model_alias(version.model, CANDIDATE, str(version.version))
    return True


@with_named_errors
def annotate(version: Version, tags: Mapping[str, str], description: str | None = None) -> None:
    """Sets tags, and the description, of a version; a description that is too long is cut, and says so."""
    for key, value in bounded(tags).items():
        if version.tags.get(key) != value:
            client().set_model_version_tag(version.model, str(version.version), key, value)
    if description is not None:
        if len(description) > _LONGEST_DESCRIPTION:
            description = description[: _LONGEST_DESCRIPTION - len(_CUT)] + _CUT
        client().update_model_version(version.model, str(version.version), description)


@with_named_errors
def clear_tag(version: Version, key: str) -> None:
    """Removes a tag of a version, if it has it."""
    if key in version.tags:
        client().delete_model_version_tag(version.model, str(version.version), key)


@with_named_errors
def delete(version: Version, reason: str) -> None:
    """Deletes a version that no alias names; the caller holds `exclusive`.

    Raises:
        RegistryError: An alias names it: deleting it would take the alias along.
    """
    named = [alias for alias, number in _registered(version.model).aliases.items()
             if int(number) == version.version]  # fmt: skip
    if named:
        raise RegistryError(
            f"{version} is {' and '.join(named)} and stays ({reason}); choose another champion first: "
            f"python -m model.rollback --dataset {version.model.removeprefix('mtgr-')}"
        )
    logger.warning("%s is deleted: %s", version, reason)
    client().delete_model_version(version.model, str(version.version))


@contextlib.contextmanager
def exclusive(dataset: str, stage: str, wait_s: float = _WAIT_S) -> Iterator[Lease]:
    """The right to change a dataset's registry; one process on any host has it, others wait.

    Raises:
        LeaseHeldError: It was not free within `wait_s` seconds.
    """
    give_up = time.monotonic() + wait_s
    while True:
        lease = Lease(locations.table(dataset, "registry"), "aliases", stage)
        try:
            lease.__enter__()
            break
        except LeaseHeldError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.5)
    try:
        yield lease
    finally:
        lease.__exit__(None, None, None)


def fetch(version: Version) -> Path:
    """A folder of this machine with the version's config and weights, checked against its digest.

    Kept under `$MTGR_VAR/models/<digest>`.

    Raises:
        RegistryError: The files are missing or differ from the digest.
        TrackingError: MLflow is not reachable or refuses.
    """
    kept = locations.var() / "models" / version.digest
    if not _holds(kept, version.digest):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=kept.parent) as folder:
            try:
                fetched = _download(version.model_id, Path(folder))
            except TrackingError as error:
                raise RegistryError(f"{version}: its files cannot be read: {error}") from error
            if not _holds(fetched, version.digest):
                raise RegistryError(
                    f"{version}: its files do not give the digest {version.digest}; delete the version and "
                    f"register the run again"
                )
            shutil.rmtree(kept, ignore_errors=True)
            try:
                os.replace(fetched, kept)
            except OSError:  # another process was as quick, with the same files
                if not _holds(kept, version.digest):
                    raise
    return kept


@with_named_errors
def _download(model_id: str, folder: Path) -> Path:
    place = client().get_logged_model(model_id).artifact_location
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{place}/artifacts", dst_path=str(folder)))


def _holds(folder: Path, digest: str) -> bool:
    return all((folder / name).is_file() for name in (CONFIG, WEIGHTS)) and digest_of(folder) == digest


def check_files(model_id: str, digest: str) -> None:
    """Downloads config and weights of a logged model and compares their digest.

    Raises:
        RegistryError: They are missing or differ.
        TrackingError: MLflow is not reachable or refuses.
    """
    with tempfile.TemporaryDirectory(prefix="mtgr-check-") as folder:
        try:
            fetched = _download(model_id, Path(folder))
        except TrackingError as error:
            raise RegistryError(f"the logged model {model_id} has no files: {error}") from error
        if not _holds(fetched, digest):
            raise RegistryError(f"the files of the logged model {model_id} do not give the digest {digest}")


def _registered(name: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client().get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _version(entry: ModelVersion) -> Version:
    tags = dict(entry.tags)
    return Version(
        model=entry.name,
        version=int(entry.version),
        preset=tags.get("preset", ""),
        ds=tags.get("ds", ""),
        samples_version=int(tags.get("samples_version", "-1")),
        seen_days=days_of(tags.get("seen_days", "")),
        digest=tags.get(DIGEST, ""),
        status=str(entry.status),
        run_id=entry.run_id or "",
        model_id=str(entry.source).removeprefix("models:/"),
        tags=tags,
    )

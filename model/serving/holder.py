"""The package that a role names, loaded; another one takes its place between two batches.

The new one is checked (digests, and a few golden requests) and loaded beside the old one, which goes on
scoring; then one assignment swaps them. A package that is refused leaves the old one where it is.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from model.data.batch import JaggedBatch, token_cuts
from model.serving.package import Package, PackageError
from model.serving.parity import TOLERANCE
from model.serving.request import RequestForm
from model.serving.scorers import DEFAULT, EngineOptions, scorer_of

logger = logging.getLogger(__name__)

_GOLDEN = 8  # requests that are scored before a package is used
_PAUSE_S = 0.2  # between looks at the link


class Served:
    """A package, ready to score.

    Args:
        folder: Of the package.
        device: Where to compute.
        batch_tokens: Greatest number of tokens that are computed at once, unless one request has more.
        max_batch: Greatest number of requests of a batch.
        engine: How a GPU computes.

    Raises:
        PackageError: A file differs from its digest, or golden requests do not score as they did.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device | str,
        batch_tokens: int,
        max_batch: int = 32,
        engine: EngineOptions = DEFAULT,
    ) -> None:
        package = Package.load(folder)
        self.version = package.version
        self.form = RequestForm(package.dataset, package.config.model.max_static)
        self._batch_tokens = batch_tokens
        golden = self.form.encoder.encode(package.golden.rows)
        self._scorer = scorer_of(
            package, torch.device(device), engine, golden, max_rows=max_batch, batch_tokens=batch_tokens
        )
        self._counted: Counter[tuple[str, str]] = Counter()
        self._check_golden(package, golden)

    def _check_golden(self, package: Package, golden: JaggedBatch) -> None:
        """Scores some golden requests side by side, then each by itself, when their prefixes are kept."""
        some = torch.arange(min(_GOLDEN, golden.num_rows))
        together = self.score(golden.select(some))
        alone = [self.score(golden.select(row)) for row in some.unsqueeze(1)]
        expected = np.stack([package.golden.scores[f"{task}_live"] for task in ("ctr", "ctcvr")])
        worst, tolerance = 0.0, TOLERANCE[self._scorer.precision]
        for scores in (together, np.concatenate(alone, axis=1)):
            worst = max(worst, float(np.abs(scores - expected[:, : scores.shape[1]]).max(initial=0)))
        if not worst <= tolerance:
            raise PackageError(
                f"{package.path} scores its golden requests {worst:.2g} off, more than {tolerance:g}: "
                "not served"
            )

    def counted(self) -> Counter[tuple[str, str]]:
        """What has been done since this was last asked, by name and kind of a metric."""
        counts = Counter(self._scorer.counts())
        since, self._counted = counts - self._counted, counts
        return since

    @torch.inference_mode()
    def score(self, batch: JaggedBatch) -> npt.NDArray[np.float32]:
        """Probabilities of click and conversion of every candidate, float32 `[2, C]`.

        Raises:
            ValueError: A score is not finite.
        """
        cuts = token_cuts(batch.tokens_B(), self._batch_tokens)
        if len(cuts) == 1:
            return self._scorer.live(batch)
        parts, first = [], 0
        for end in cuts:
            parts.append(self._scorer.live(batch.select(torch.arange(first, end))))
            first = end
        return np.concatenate(parts, axis=1)


class Holder:
    """Keeps what a link names loaded.

    Args:
        link: Symlink to a package's folder.
        load: Makes a `Served` of it.
        swapped: Told of every version that was loaded, and of every folder that was refused.

    Raises:
        PackageError: What it names now cannot be served.
    """

    def __init__(
        self, link: Path, load: Callable[[Path], Served], swapped: Callable[[int | None], None]
    ) -> None:
        self._link, self._load, self._swapped = link, load, swapped
        self._target = self._named()
        self.served = load(self._target)
        swapped(self.served.version)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watch {link.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops looking."""
        self._ended.set()
        self._thread.join()

    def _named(self) -> Path:
        try:
            return self._link.parent / os.readlink(self._link)
        except OSError as error:
            raise PackageError(f"{self._link} names no package: {error}") from error

    def _watch(self) -> None:
        while not self._ended.wait(_PAUSE_S):
            try:
                self._look()
            except Exception as error:  # whatever is wrong with a package, the next one has to be seen
                logger.exception("version %d goes on serving: %s", self.served.version, error)
                self._swapped(None)

    def _look(self) -> None:
        """Loads what the link names if it is another; one that is refused is not tried again."""
        if not self._link.is_symlink() or (target := self._named()) == self._target:
            return
        self._target = target
        served = self._load(target)
        logger.info("version %d takes the place of version %d", served.version, self.served.version)
        self.served = served
        self._swapped(served.version)

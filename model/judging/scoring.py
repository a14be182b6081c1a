"""Scores of a finished model for rows of the samples table: the path of evaluation and of serving.

    scorer = Scorer.load(run_folder)            # config.json and weights.safetensors
    scores = scorer.score(table)                # or rows as dictionaries

The model runs in one process, its tables not sharded; weights load from a format that executes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model.config.run import Config
from model.data.batch import JaggedBatch, token_cuts
from model.data.encoder import SampleEncoder
from model.rankers.protocol import build_ranker
from model.runs.files import RunError
from model.runs.store import WEIGHTS, read_config
from spark_jobs.contract.declaration import unreadable, with_ranges_of
from spark_jobs.contract.features import Dataset

SCORES = ("ctr_frozen", "ctcvr_frozen", "ctr_live", "ctcvr_live")
_BATCH_TOKENS = 20_000


class CannotScoreError(RunError):
    """A model lacks something of the rows that it is to score; the message names what."""


class Scorer:
    """A ranker with its dataset and config, ready to score.

    Args:
        dataset: Whose rows it scores.
        config: Of the run.
        ranker: With the run's weights.
        device: Where to compute.
    """

    def __init__(
        self, dataset: Dataset, config: Config, ranker: nn.Module, device: torch.device | str = "cpu"
    ) -> None:
        self.dataset = dataset
        self.config = config
        self.device = torch.device(device)
        self.ranker = ranker.to(self.device).eval()
        self.reads_realtime = config.train.frozen_share < 1  # else it has never learned what to make of it
        self.encoder = SampleEncoder(dataset, config.model.max_static)

    @staticmethod
    def load(
        folder: Path | str, device: torch.device | str = "cpu", rows_of: Dataset | None = None
    ) -> Scorer:
        """Loads `config.json` and `weights.safetensors` from a folder.

        Args:
            folder: Of a run, or of a version that was fetched.
            device: Where to score.
            rows_of: How the rows to score are declared; by default as the model's own were. Features that it
                does not know are left out, and ranges of numbers are those of the rows.

        Raises:
            CannotScoreError: The rows lack a feature that the model reads, or mean something else by it.
            RunError: A file is missing or the weights are of another config.
        """
        folder = Path(folder)
        dataset, config = read_config(folder)
        if rows_of is not None:
            if reasons := unreadable(dataset, rows_of):
                raise CannotScoreError("; ".join(reasons))
            dataset = with_ranges_of(dataset, rows_of)
        ranker = build_ranker(dataset, config.model, config.train.seed)
        try:
            ranker.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, RuntimeError) as error:
            raise RunError(f"{folder / WEIGHTS} does not load into {folder}'s config: {error}") from error
        return Scorer(dataset, config, ranker, device)

    def score(self, rows: pa.Table | Sequence[dict[str, Any]]) -> dict[str, npt.NDArray[np.float32]]:
        """Scores every candidate of the rows, row after row.

        Frozen scores are computed with no real-time state (what GAUC compares), live ones with each
        candidate's own (what serving returns).

        Args:
            rows: An Arrow table or dictionaries with the columns of the samples table; labels are not read.

        Returns:
            By name of `SCORES`, probabilities float32 `[candidates]`.

        Raises:
            ValueError: The rows do not follow the dataset's declaration, or a score is not finite.
        """
        return self.score_batch(self.encoder.encode(rows))

    @torch.inference_mode()
    def score_batch(self, batch: JaggedBatch) -> dict[str, npt.NDArray[np.float32]]:
        """As `score`, of encoded rows."""
        parts: list[Tensor] = []
        first = 0
        for end in token_cuts(batch.tokens_B(), _BATCH_TOKENS):
            part = batch.select(torch.arange(first, end))
            frozen = self._logits(part.frozen())
            both = torch.cat([frozen, self._logits(part) if self.reads_realtime else frozen])
            parts.append(both.sigmoid().cpu())
            first = end
        scores = torch.cat(parts, dim=1).numpy() if parts else np.zeros((4, 0), np.float32)
        _check_finite(scores)
        return dict(zip(SCORES, scores, strict=True))

    @torch.inference_mode()
    def live(self, batch: JaggedBatch) -> npt.NDArray[np.float32]:
        """Probabilities of click and conversion as a request is served, float32 `[2, C]`, computed at once.

        Raises:
            ValueError: A score is not finite.
        """
        logits = self._logits(batch if self.reads_realtime else batch.frozen())
        scores: npt.NDArray[np.float32] = logits.sigmoid().cpu().numpy()
        _check_finite(scores)
        return scores

    def _logits(self, batch: JaggedBatch) -> Tensor:
        """Logits in the precision that the model was trained in."""
        is_bfloat16 = self.config.train.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_bfloat16):
            logits: Tensor = self.ranker(batch.laid_out().to(self.device))
        return logits


def _check_finite(scores: npt.NDArray[np.float32]) -> None:
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are not finite; the weights are broken")


def candidate_frame(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """Keys and labels of every candidate of samples rows, row after row, beside which scores are laid."""
    counts = np.diff(table.column("candidate_time_ms").combine_chunks().offsets.to_numpy())
    frame: dict[str, npt.NDArray[Any]] = {
        name: np.repeat(table.column(name).to_numpy(), counts) for name in ("user_id", "window_start_ms")
    }
    for name, column in (
        ("impression_id", "candidate_impression_id"),
        ("time_ms", "candidate_time_ms"),
        ("request_id", "candidate_request_id"),
        ("label_click", "label_click"),
        ("label_conversion", "label_conversion"),
        *([("weight", "candidate_weight")] if "candidate_weight" in table.column_names else []),
    ):
        flat = table.column(column).combine_chunks().flatten()
        frame[name] = flat.to_numpy(zero_copy_only=False)
    return frame

"""The constants that standardise a dataset's numbers."""
# ruff: noqa: N806, N815 (names carry their shape: B rows, T tokens, F features)

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.data.batch import JaggedBatch
from model.data.encoder import number_names
from spark_jobs.contract.features import Dataset, Group

CLIP = 6.0  # a standardised number beyond this is an outlier, or drift that the gates report

_LEAST_STD = 1e-3


class NumberScaler(nn.Module):
    """Standardises transformed numbers by constants that are fitted, not learned, and kept with the weights.

    They are fitted at the start of every training day: in a young log the statistics over past days are empty
    or nearly so at first and grow for weeks, and constants of the first day would cut them all off. A feature
    that does not vary on a day keeps its constants; until it has any, and where a value is NaN ("nothing
    known"), it reads as 0, the mean. Behaviours and candidates share the constants of a feature.
    """

    mean_F: Tensor
    std_F: Tensor
    fitted_F: Tensor

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        names = list(dict.fromkeys(name for group in Group for name in number_names(dataset, group)))
        self.names = names
        self.columns = {
            group: [names.index(name) for name in number_names(dataset, group)] for group in Group
        }
        self.register_buffer("mean_F", torch.zeros(len(names)))
        self.register_buffer("std_F", torch.ones(len(names)))
        self.register_buffer("fitted_F", torch.zeros(len(names)))
        for group, columns in self.columns.items():
            self.register_buffer(
                f"columns_{group}", torch.tensor(columns, dtype=torch.int64), persistent=False
            )

    def forward(self, batch: JaggedBatch, group: Group) -> Tensor:
        """Standardised numbers of a group's tokens, float32 `[tokens, F of the group]`."""
        columns = self.get_buffer(f"columns_{group}")
        x_TF = batch.numbers[group].t()
        z_TF = ((x_TF - self.mean_F[columns]) / self.std_F[columns]).clamp(-CLIP, CLIP)
        return torch.nan_to_num(z_TF, nan=0.0) * self.fitted_F[columns]

    @torch.no_grad()
    def fit(self, batch: JaggedBatch) -> None:
        """Fits the constants of the features that vary in `batch` (a sample of a day)."""
        for index in range(len(self.names)):
            values = torch.cat(
                [
                    batch.numbers[group][columns.index(index)]
                    for group, columns in self.columns.items()
                    if index in columns
                ]
            ).double()
            values = values[values.isfinite()]
            if len(values) > 1 and float(values.std()) > _LEAST_STD:
                self.mean_F[index] = values.mean()
                self.std_F[index] = values.std()
                self.fitted_F[index] = 1

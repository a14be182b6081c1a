"""The registered model: rows of the samples table in, CTR and CTCVR of every candidate out.

MLflow loads this file as code (models-from-code) beside `config.json` and `weights.safetensors`; no pickle
is read, and the files are checked against the digest they were registered with before they are used.

    model = mlflow.pyfunc.load_model("models:/mtgr-foodlog@champion")
    scores = model.predict(rows, params={"state": "live"})     # columns ctr, ctcvr: a list a row

`rows` is a DataFrame with the columns of the samples table but for the labels; ids and times of candidates
may be missing, other columns are left out by MLflow with a warning. `state` is `live`, with each candidate's
real-time state, as a request is served, or `frozen` at the window's start, as `*_gauc` compares scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from model.data.encoder import arrow_schema
from model.judging.scoring import Scorer
from model.runs.store import digest_of
from spark_jobs.contract.features import Dataset

STATES = ("live", "frozen")
OUTPUTS = ("ctr", "ctcvr")


class RowScorer(PythonModel):  # type: ignore[misc]
    """Scores rows of the samples table."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads config and weights.

        Raises:
            ValueError: The files differ from the digest that they were registered with.
        """
        folder = Path(context.artifacts["weights"]).parent
        registered = context.model_config["digest"]
        digest = digest_of(folder)
        if digest != registered:
            raise ValueError(f"{folder} has digest {digest}, registered is {registered}: it is not loaded")
        self.scorer = Scorer.load(folder)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Scores rows.

        Args:
            context: Not used.
            model_input: Rows of the samples table; their label columns are not read.
            params: `state`: `live` (default) or `frozen`.

        Returns:
            `ctr` and `ctcvr`, probabilities: for each row a list with one value a candidate.

        Raises:
            ValueError: A column is missing, has another type, a null, NaN or a value out of range, lists of a
                group are unequal, or a row has no candidate; the message names column, row and value.
        """
        state = (params or {}).get("state", "live")
        if state not in STATES:
            raise ValueError(f"state is {state!r}; use one of {', '.join(STATES)}")
        table = samples_table(self.scorer.dataset, model_input)
        counts = table.column("candidate_visible").combine_chunks().value_lengths().to_numpy()
        scores = (
            self.scorer.score(table) if table.num_rows else {f"{n}_{state}": np.zeros(0) for n in OUTPUTS}
        )
        ends = counts.cumsum()[:-1] if len(counts) else []
        columns = {name: np.split(scores[f"{name}_{state}"], ends)[: len(counts)] for name in OUTPUTS}
        return pd.DataFrame({name: [part.tolist() for part in parts] for name, parts in columns.items()})


def samples_table(dataset: Dataset, rows: pd.DataFrame) -> pa.Table:
    """Rows as an Arrow table with the types of the samples table; columns of other names are left out.

    Raises:
        ValueError: A value does not fit its column's type, or is null.
    """
    columns = {}
    for field in arrow_schema(dataset):
        if field.name not in rows.columns or field.name.startswith("label_"):
            continue
        values = rows[field.name]
        if values.isna().any():
            raise ValueError(f"column {field.name}, row {int(values.isna().to_numpy().argmax())}: is null")
        try:
            columns[field.name] = pa.chunked_array([pa.array(list(values), type=field.type)])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise ValueError(f"column {field.name} is not {field.type}: {error}") from error
    if "candidate_visible" not in columns:
        raise ValueError(f"samples of {dataset.name} lack the column candidate_visible")
    return pa.table(columns)


set_model(RowScorer())

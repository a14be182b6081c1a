"""The model of Triton's Python backend: requests of a batch in, their scores out.

A request of Triton is one request, or several end to end, as the front has gathered them; they have shapes of
their own, are computed in runs of at most `batch_tokens` tokens, and answered in their order. One of Triton's
requests that is not right gets an error of its own (HTTP 400) and disturbs no other. Triton imports this file
through the `scorer.py` that `repository` writes; `triton_python_backend_utils` is there in its process alone.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from model.config.environment import device
from model.data.stored import StoredRows
from model.serving.holder import Holder, Served
from model.serving.request import DTYPES
from model.serving.score_log import ScoreLog
from model.serving.scorers import COUNTED, EngineOptions
from spark_jobs.contract import command
from spark_jobs.contract.features import Group

logger = logging.getLogger(__name__)


class TritonPythonModel:
    """What Triton calls: once an instance, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the package that the role names."""
        command.configure_logging()
        parameters = json.loads(args["model_config"])["parameters"]
        options = json.loads(parameters["options"]["string_value"])
        self._device = device()
        family = pb_utils.MetricFamily(
            name="mtgr_version", description="version that scores", kind=pb_utils.MetricFamily.GAUGE
        )
        refusals = pb_utils.MetricFamily(
            name="mtgr_refused_packages",
            description="packages not served",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._labels = {"model": args["model_name"], "instance": args["model_instance_name"]}
        self._version, self._refused = (one.Metric(labels=self._labels) for one in (family, refusals))
        self._families = {
            name: pb_utils.MetricFamily(
                name=f"mtgr_{name}_total", description=described, kind=pb_utils.MetricFamily.COUNTER
            )
            for name, described in COUNTED.items()
        } | {"version": family, "refused": refusals}
        self._counters: dict[tuple[str, str], Any] = {}
        engine = EngineOptions(**options["engine"])
        batch_tokens, max_batch = int(options["batch_tokens"]), int(options["max_batch"])
        self._holder = Holder(
            Path(options["link"]),
            lambda path: Served(path, self._device, batch_tokens, max_batch, engine),
            self._swapped,
        )
        items = [f.name for f in self._holder.served.form.dataset.in_group(Group.CANDIDATE)]
        self._item = items.index("item_id")
        self._log = ScoreLog(Path(options["log"])) if options["log"] else None
        gc.collect()
        gc.freeze()  # a collection that walks all that was imported takes longer than a batch

    def _swapped(self, version: int | None) -> None:
        if version is None:
            self._refused.increment(1)
        else:
            self._version.set(version)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Scores the requests of a batch.

        Returns:
            One answer a request, in their order.
        """
        served = self._holder.served  # one package for the whole batch
        answers: list[Any] = [None] * len(requests)
        rows: dict[int, list[StoredRows]] = {}
        for place, request in enumerate(requests):
            if request.is_cancelled():
                answers[place] = _error("the request was cancelled", pb_utils.TritonError.CANCELLED)
                continue
            try:
                parts = served.form.split(_tensors(request))
                rows[place] = [served.form.of_tensors(part) for part in parts]
            except ValueError as error:
                answers[place] = _error(str(error))
        try:
            self._answer(served, rows, answers)
        except ValueError:  # of one of them: each by itself, so that it alone is refused
            for place, row in rows.items():
                try:
                    self._answer(served, {place: row}, answers)
                except ValueError as error:
                    answers[place] = _error(str(error))
        self._count(served)
        return answers

    def _count(self, served: Served) -> None:
        """Adds to the metrics what the engine has done for a batch."""
        for (name, kind), number in served.counted().items():
            if (name, kind) not in self._counters:
                labels = {**self._labels, "kind": kind}
                self._counters[name, kind] = self._families[name].Metric(labels=labels)
            self._counters[name, kind].increment(number)

    def _answer(self, served: Served, rows: dict[int, list[StoredRows]], answers: list[Any]) -> None:
        if not rows:
            return
        batch = served.form.encoder.encode(StoredRows.joined([row for of in rows.values() for row in of]))
        scores = served.score(batch)
        first = 0
        version = np.array([[served.version]], np.int64)
        for place, of_request in rows.items():
            start = first
            for row in of_request:
                end = first + int(row.lengths[Group.CANDIDATE][0])
                self._note(served.version, row, scores[:, first:end])
                first = end
            own = np.ascontiguousarray(scores[:, start:first])
            answers[place] = pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor("scores", own[None]), pb_utils.Tensor("version", version)]
            )

    def _note(self, version: int, row: StoredRows, scores: npt.NDArray[np.float32]) -> None:
        if self._log is not None:
            items = row.ids[Group.CANDIDATE][self._item]
            self._log.add(version, int(row.users[0]), int(row.starts[0]), items, scores)

    def finalize(self) -> None:
        """Writes what is left of the log."""
        self._holder.close()
        if self._log is not None:
            self._log.close()


def _tensors(request: Any) -> dict[str, Any]:
    tensors = ((name, pb_utils.get_input_tensor_by_name(request, name)) for name in DTYPES)
    return {name: tensor.as_numpy() for name, tensor in tensors if tensor is not None}


def _error(message: str, code: int | None = None) -> Any:
    code = pb_utils.TritonError.INVALID_ARG if code is None else code
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

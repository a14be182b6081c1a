"""Steps on a GPU: nothing in them waits for the device."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model.config.presets import preset_named
from model.data.steps import Step
from model.data.synthetic import random_batch
from model.training.loader import delivered, side_stream
from model.training.step import Trainer, process_group
from spark_jobs.contract.foodlog import FOODLOG


def a_step(seed: int, num_parts: int) -> Step:
    batch = random_batch(FOODLOG, 10, seed=seed)
    step = Step(
        name=f"{seed}",
        batch=batch,
        num_candidates=batch.num_candidates,
        weight=float(batch.num_candidates),
        num_tokens=batch.num_tokens,
        row_hash=torch.linspace(0, 1, 10),
    )
    return step.ready(0.5, num_parts=num_parts, pin=True)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("preset", "accumulate"), [("tiny", 1), ("small", 1), ("small", 2), ("user_tower", 1)]
)
def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch, preset: str, accumulate: int) -> None:
    monkeypatch.delenv("RANK", raising=False)
    gpu, base = torch.device("cuda", 0), preset_named(preset)
    train = dataclasses.replace(base.train, accumulate=accumulate, recompute=accumulate > 1)
    steps = [a_step(number, accumulate) for number in range(4)]
    with process_group(gpu):
        trainer = Trainer(FOODLOG, dataclasses.replace(base, train=train), gpu)
        for step in steps:  # what is built or tuned at first may wait
            trainer.step(step)
        torch.cuda.synchronize()
        stream = side_stream(gpu)
        try:
            torch.cuda.set_sync_debug_mode("error")
            for _ in range(11):
                for step in steps:
                    trainer.step(delivered(step, gpu, stream))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len(trainer.losses()) == 48

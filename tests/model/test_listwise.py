"""The loss of a softmax over a row's candidates: what it is, what padding adds, and what it is for."""

from __future__ import annotations

import torch

from model.data.batch import JaggedBatch
from model.data.capacity import Capacities
from model.data.synthetic import random_batch
from model.training.captured import loss_of, softmax_losses
from spark_jobs.contract.foodlog import FOODLOG


def weighted_batch() -> JaggedBatch:
    batch = random_batch(FOODLOG, 9, seed=2)
    batch.weights.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
    batch.labels[:, :3] = 0  # of the first rows nothing is positive
    return batch.laid_out()


def expected(logits: torch.Tensor, batch: JaggedBatch) -> torch.Tensor:
    counts = batch.num_candidates_B().tolist()
    parts = zip(
        logits.split(counts, 1), batch.labels.split(counts, 1), batch.weights.split(counts), strict=True
    )
    return torch.cat(
        [
            -weights * labels * (x - torch.logsumexp(x + weights.log(), 1, keepdim=True))
            for x, labels, weights in parts
        ],
        dim=1,
    )


def test_it_is_the_cross_entropy_of_each_rows_softmax_and_so_is_its_gradient() -> None:
    batch = weighted_batch()
    logits = torch.randn(2, batch.num_candidates, generator=torch.Generator().manual_seed(3)).requires_grad_()
    losses, wanted = softmax_losses(logits, batch), expected(logits, batch)
    torch.testing.assert_close(losses, wanted)
    assert losses.sum() > 1
    for one in range(2):  # tasks, too, have losses of their own
        gradient, of_wanted = (
            torch.autograd.grad(some[one].sum(), logits, retain_graph=True)[0] for some in (losses, wanted)
        )
        torch.testing.assert_close(gradient, of_wanted)


def test_padding_adds_nothing_and_no_weight_leaves_the_loss_as_it_was() -> None:
    batch = weighted_batch()
    padded = batch.padded(Capacities(batch_tokens=200).of(batch))
    num = batch.num_candidates
    wide = 30 * torch.randn(2, padded.labels.shape[1], generator=torch.Generator().manual_seed(3))
    wide.requires_grad_()
    losses, of_padded = softmax_losses(wide[:, :num], batch), softmax_losses(wide, padded)
    torch.testing.assert_close(of_padded[:, :num], losses)
    assert not of_padded[:, num:].any()
    assert not torch.autograd.grad(of_padded.sum(), wide)[0][:, num:].any()
    plain, listwise = (loss_of(wide, padded, 1.0, weight)[0] for weight in (0.0, 0.5))
    torch.testing.assert_close(listwise - plain, 0.5 * losses.sum())


def test_what_all_candidates_of_a_row_have_alike_is_nothing_to_it() -> None:
    batch = weighted_batch()
    logits = torch.randn(2, batch.num_candidates, generator=torch.Generator().manual_seed(3))
    of_row = torch.randn(batch.num_rows, generator=torch.Generator().manual_seed(4))
    shifted = logits + of_row.repeat_interleave(batch.num_candidates_B())
    torch.testing.assert_close(softmax_losses(shifted, batch), softmax_losses(logits, batch))

"""FLOPs of a sample: what is measured of a block is the paper's formula."""

import dataclasses

import pytest

from model import flops
from model.config.presets import dnn, hstu_cross, tiny
from spark_jobs.contract.foodlog import FOODLOG


def test_a_block_is_measured_as_the_formula_says():
    row = flops.row_of(FOODLOG, 120)
    assert int(row.tokens_B()) == 120
    assert row.num_candidates == flops.CANDIDATES
    for config in (tiny().model, hstu_cross().model):
        counts = [
            flops.measured(FOODLOG, dataclasses.replace(config, num_blocks=blocks, id_tables="hashed"), row)[
                0
            ]
            for blocks in (1, 2)
        ]
        assert counts[1] - counts[0] == config.visible_flops(120, 120 * 120) // config.num_blocks
    with pytest.raises(ValueError, match="70 tokens are less than profile"):
        flops.row_of(FOODLOG, 70)


def test_the_command_tells_of_rankers_with_and_without_blocks(capsys):
    assert flops.main(["--preset", "tiny", "dnn"]) == 0
    made = flops.figures(FOODLOG, ["tiny", "dnn"])
    assert made["tiny"]["formula_gflops"] == round(tiny().model.flops(500) / 1e9, 4)
    assert made["tiny"]["measured_gflops"] > made["tiny"]["formula_gflops"]
    assert (made["dnn"]["formula_gflops"], dnn().model.visible_flops(500, 1)) == (0, 0)
    assert "GFLOPs at 500 tokens" in capsys.readouterr().out

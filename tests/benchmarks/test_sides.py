"""The plain implementation that ours is compared with computes the same, and the comparison would notice if not."""

import json

import pytest
import torch

from benchmarks import sides
from benchmarks.plain import PlainNorm


def losses(side, readout, **options):
    step = sides.make_step(side, "tiny", readout, **options)
    source = sides.batches("tiny", 4)
    return [step(*next(source)) for _ in range(4)]


@pytest.mark.parametrize("readout", sides.READOUTS)
@pytest.mark.parametrize("options", [{}, {"micro_batches": 2}, {"recompute": True}, {"shards": 2}])
def test_both_sides_train_alike(readout, options):
    assert losses("ours", readout, **options) == pytest.approx(losses("plain", readout), rel=1e-5)


def test_a_different_plain_side_is_noticed(monkeypatch):
    monkeypatch.setattr(PlainNorm, "forward", lambda self, x: x * self.gain)
    assert losses("ours", "rmsnorm") != pytest.approx(losses("plain", "rmsnorm"), rel=1e-3)


def test_both_sides_see_the_same_batches():
    for ours, again in zip(next(sides.batches("tiny", 4)), next(sides.batches("tiny", 4)), strict=True):
        assert torch.equal(ours, again)


def test_dry_run_of_the_gpu_comparison(tmp_path, inside):
    arguments = ["--preset", "tiny", "--device", "cpu", "--rounds", "3", "--batch-sizes", "2"]
    done = inside(*arguments, "--out", tmp_path / "speed.json", main="benchmarks.gpu")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "speed.json").read_text())
    assert {run["readout"] for run in results["runs"]} == set(sides.READOUTS)
    for run in results["runs"]:
        assert run["largest_relative_loss_difference"] < 1e-4
        assert 0.0 < run["utilisation"]["ours"] < 1.0

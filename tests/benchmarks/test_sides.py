"""The plain implementation that ours is compared with computes the same, and the comparison would notice if not."""

import json
from collections import Counter

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


@pytest.mark.parametrize("count", [2, 3])
def test_every_round_is_one_batch_for_all_sides_in_an_order_that_favours_none(count):
    calls = []

    def side(name):
        def step(tokens, targets):
            assert torch.equal(tokens[:, 1:], targets[:, :-1])
            calls.append((name, tokens))
            return float(name)

        return step

    rounds = 40 * count
    measured = list(sides.interleaved({str(n): side(str(n)) for n in range(count)}, "tiny", 2, rounds))
    assert len(measured) == rounds and len(calls) == count * (rounds + sides.WARM_UP)
    assert all(losses == {str(n): float(n) for n in range(count)} for _, losses in measured)
    assert all(second > 0.0 for seconds, _ in measured for second in seconds.values())
    by_round = [calls[start : start + count] for start in range(0, len(calls), count)][sides.WARM_UP :]
    for one in by_round:
        assert len({name for name, _ in one}) == count
        assert all(torch.equal(tokens, one[0][1]) for _, tokens in one)
    assert not torch.equal(by_round[0][0][1], by_round[1][0][1])
    for place in range(count):
        before, at = ([one[n][0] for one in by_round] for n in (place - 1, place))
        pairs = Counter(zip(before, at, strict=True))
        assert len(pairs) == count * (count - 1)  # of two places beside each other: every side, and after every other
        assert max(pairs.values()) < 2 * min(pairs.values())

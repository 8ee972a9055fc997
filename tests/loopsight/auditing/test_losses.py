"""Intervals of cross-entropies, and losses that are no numbers."""

import math
import re

import pytest
import torch

from loopsight import LoopedMaps, audit
from loopsight.auditing import losses
from loopsight.auditing.losses import mean_change, mean_interval

NAN, INF = math.nan, math.inf


def coverage(sequences, trials=300, correlation=0.5):
    """How often the interval holds the mean of sequences whose tokens have a part in common."""
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(trials):
        own, shared = (torch.randn(sequences, n, generator=generator) for n in (30, 1))
        interval = mean_interval(own + (correlation * 2) * shared)
        hits += interval.low <= 0.0 <= interval.high
        assert (interval.unit, interval.count) == ("sequences", sequences)
    return hits / trials


@pytest.mark.parametrize(("sequences", "least"), [(2, 0.92), (3, 0.92), (7, 0.92), (8, 0.85), (20, 0.9)])
def test_the_interval_covers_the_mean(sequences, least):
    assert least <= coverage(sequences) <= 0.99


def test_a_bootstrap_of_few_sequences_would_not(monkeypatch):
    """Negative control for Student's t."""
    monkeypatch.setattr(losses, "SEQUENCES", 2)
    assert coverage(3) < 0.85


def test_one_sequence_is_taken_token_by_token():
    for values in (torch.tensor([[1.0, 2.0, NAN]]), torch.tensor([1.0, 2.0, NAN])):
        found = mean_interval(values)
        assert (found.unit, found.count, found.estimate) == ("tokens", 2, 1.5)
    empty = mean_interval(torch.tensor([[1.0, 3.0], [NAN, NAN]]))
    assert (empty.unit, empty.count, empty.estimate) == ("tokens", 2, 2.0)


def test_tokens_without_target_count_for_nothing():
    values = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    values[0, 3:] = NAN
    assert mean_interval(values).estimate == pytest.approx(values[~values.isnan()].mean().item())


def test_the_interval_is_the_same_in_portions(monkeypatch):
    values = torch.randn(200, generator=torch.Generator().manual_seed(0))
    whole = mean_interval(values)
    monkeypatch.setattr(losses, "AT_ONCE", 777)
    assert mean_interval(values) == whole


def test_no_change_is_told_where_a_loss_is_not_finite():
    fine = torch.tensor([[1.0, 2.0, NAN]])
    assert mean_change(fine, fine).estimate == 0.0
    broken = torch.tensor([[1.0, INF, NAN]])
    assert mean_change(broken, fine) is None and mean_change(fine, broken) is None
    single = torch.tensor([[1.0, NAN]])
    assert mean_change(single, single) is None


def stream(dtype):
    """A half-precision stream whose norm overflows the format after a loop or two, its entries not."""
    generator = torch.Generator().manual_seed(0)
    table, head = (torch.randn(n, 128, generator=generator).to(dtype) for n in (50, 50))

    def read(h):
        return (h.float() / h.float().square().mean(-1, keepdim=True).sqrt()).to(h) @ head.to(h).T

    return LoopedMaps(
        embed=lambda x: 4000.0 * table[x], step=lambda h: h + 2500.0 * torch.tanh(h / 1000.0), readout=read, num_loops=2
    )


BATCH = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(1))


def test_norms_that_overflow_the_stream_s_format_leave_no_token_out():
    half, single = (audit(stream(dtype), BATCH) for dtype in (torch.float16, torch.float32))
    states = stream(torch.float16)
    h = states.step(states.step(states.embed(BATCH)))
    assert h.isfinite().all() and h.norm(dim=-1).isinf().any()
    for name in ("decode_clamp", "recurrent_clamp", "beyond", "k_gap"):
        mine, theirs = getattr(half.loss, name), getattr(single.loss, name)
        assert (mine.unit, mine.count) == ("sequences", 2)
        assert mine.estimate == pytest.approx(theirs.estimate, abs=2e-2)


def test_a_loss_that_is_no_number_is_said_to_be_none():
    """A raw head in half precision, whose logits overflow beyond the trained loops."""
    generator = torch.Generator().manual_seed(0)
    table, head = (torch.randn(50, 16, generator=generator).half() for _ in range(2))
    maps = LoopedMaps(
        embed=lambda x: 100.0 * table[x],
        step=lambda h: 2.0 * h,
        readout=lambda h: 5.0 * h @ head.to(h).T,
        num_loops=2,
    )
    report = audit(maps, BATCH)
    assert report.loss.beyond is None and report.loops[4].cross_entropy == INF
    assert math.isfinite(report.loops[1].cross_entropy) and report.loss.k_gap is not None
    assert re.search(r"\| 2 K loops instead of K +\| - +\|", str(report)) and re.search(r"\| 4 +\| inf ", str(report))

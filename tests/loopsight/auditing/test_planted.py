"""Blind spots planted at random are found, named and judged; models without one have none."""

import dataclasses

import pytest
import torch

from benchmarks.planted import _row, angle_between, score
from benchmarks.plantings import FACTORS, SPOTS, VERDICTS, plant
from loopsight import LoopedMaps, audit
from loopsight.auditing.report import Direction

FATES = list(FACTORS)
# Every spot, with the fates in turn; of every fourth the next fate as well.
CASES = [(name, FATES[n % len(FATES)]) for n, name in enumerate(SPOTS)]
CASES += [(name, FATES[(n + 1) % len(FATES)]) for n, name in enumerate(SPOTS) if n % 4 == 0]


@pytest.mark.parametrize(("name", "fate"), CASES)
def test_what_was_planted_is_found_and_nothing_else(name, fate):
    planting = plant(name, fate, seed=1000 + CASES.index((name, fate)))
    report = audit(planting.maps, planting.batch)
    counted = score(planting, report)
    assert report.valid
    assert (counted.missed, counted.invented) == (0, 0), str(report)
    assert counted.angle < 1e-3


def test_the_score_fails_where_it_must():
    """Negative control: the same report against another truth, another fate, another subspace."""
    planting = plant("direction", "carried", seed=3)
    report = audit(planting.maps, planting.batch)
    assert score(planting, report).found == 1
    elsewhere = plant("direction", "carried", seed=4)
    assert score(elsewhere, report).found == 0 and score(elsewhere, report).invented == 1
    assert score(dataclasses.replace(planting, fate="removed"), report).missed == 1
    assert score(plant("visible", "carried", seed=3), report).invented == 1
    (blind,) = report.blind
    assert angle_between(elsewhere.truths[0], blind) > 0.1
    assert _row("direction", [score(elsewhere, report)])[-3:-1] == ("0.0000", "0.0000")


def test_the_truth_is_the_truth():
    """The models really are blind to what the plantings say: moved by hand, nothing changes."""
    planting = plant("subspace of 3", "carried", seed=5)
    (truth,) = planting.truths
    moved = planting.batch + 2.0 * truth.subspace.sum(0)
    torch.testing.assert_close(planting.maps.readout(moved), planting.maps.readout(planting.batch))
    assert (planting.maps.readout(planting.batch + 2.0) - planting.maps.readout(planting.batch)).abs().max() > 0.1


def test_a_change_of_basis_changes_names_but_no_verdict():
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    for name in ("scale and mean", "rotation", "visible"):
        plain = plant(name, "contracted", seed=7)
        maps = plain.maps
        turned = dataclasses.replace(
            maps,
            embed=lambda h: h @ turn,
            step=lambda h, maps=maps: maps.step(h @ turn.T) @ turn,
            readout=lambda h, maps=maps: maps.readout(h @ turn.T),
        )
        reports = [audit(plain.maps, plain.batch), audit(turned, plain.batch)]
        found = [sorted((d.dimension, d.verdict) for d in report.blind) for report in reports]
        assert found[0] == found[1], name


def test_another_batch_gives_the_same_verdicts():
    planting = plant("direction and scale", "carried", seed=8)
    other = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def said(directions: tuple[Direction, ...]) -> list[tuple[str, str]]:
        return [(d.kind, d.verdict) for d in directions]

    first, second = audit(planting.maps, planting.batch), audit(planting.maps, other)
    assert said(first.directions) == said(second.directions)
    assert said(first.blind) == [("scale", VERDICTS["carried"]), ("fixed", VERDICTS["carried"])]


def invented(observed, step, classes=24):
    """A model of 16 channels whose readout is a random linear map of `observed`."""
    generator = torch.Generator().manual_seed(0)
    states = 3.0 * torch.randn(2, 6, 16, generator=generator, dtype=torch.float64)
    head = torch.randn(observed(states).shape[-1], classes, generator=generator, dtype=torch.float64)
    maps = LoopedMaps(embed=lambda h: h, step=step, readout=lambda h: observed(h) @ head, num_loops=2)
    return audit(maps, states)


def test_what_a_loop_moves_to_where_it_is_seen_is_not_kept():
    """The step swaps two halves, the readout sees one: activity 1, but nothing stays hidden."""
    (blind,) = invented(lambda h: h[..., :8], lambda h: h.roll(8, -1)).blind
    assert (blind.kind, blind.dimension, blind.verdict) == ("fixed", 8, "blind but removed")
    (kept,) = invented(lambda h: h[..., :8], lambda h: torch.cat([h[..., :8], h[..., 8:].flip(-1)], -1)).blind
    assert kept.verdict == "blind and active"


def test_what_moves_between_two_hidden_places_is_kept():
    """A fixed direction and the mean, both hidden, swapped by the step."""
    ones = torch.ones(16, dtype=torch.float64) / 4.0
    other = torch.tensor([1.0, -1.0] + [0.0] * 14, dtype=torch.float64) / 2**0.5

    def observed(h):
        return h - (h @ ones)[..., None] * ones - (h @ other)[..., None] * other

    def step(h):
        return observed(h) + (h @ other)[..., None] * ones + (h @ ones)[..., None] * other

    found = {d.kind: d.verdict for d in invented(observed, step).blind}
    assert found == {"mean": "blind and active", "fixed": "blind and active"}


def test_the_extremes_of_a_family_do_not_depend_on_its_basis():
    """Three hidden directions, kept by 1, 0.5 and 0."""
    fates = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q

    def observed(h):
        return h - h @ basis @ basis.T

    (blind,) = invented(observed, lambda h: observed(h) + h @ basis * fates @ basis.T).blind
    assert blind.verdict == "blind and active"
    assert (blind.activity_low, blind.activity) == pytest.approx((0.0, 1.0), abs=1e-6)


def test_fewer_classes_than_channels_leave_a_field_and_no_subspace():
    """Five linear invariants and one that is not: kernels of eight tokens meet in three dimensions by chance."""
    for seed in range(2):
        report = audit((planting := plant("fewer logits than width", "carried", seed=seed)).maps, planting.batch)
        assert [(d.kind, d.dimension) for d in report.blind] == [("field", 10)]


def test_two_directions_that_turn_with_the_state_are_no_rotation():
    """Any two lie in a plane; a readout that is blind along one direction a token, another each, at two tokens."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(12, 7, generator=generator, dtype=torch.float64)

    def readout(h):
        x = h / h.square().mean(-1, keepdim=True).sqrt()
        seen = torch.cat([x[..., :1].square() + x[..., 1:2].sin() + x[..., 2:3].exp(), x[..., 3:9]], dim=-1)
        return seen @ head.T

    maps = LoopedMaps(
        embed=lambda h: h, step=lambda h: h + 0.1 * torch.tanh(h.roll(1, -1)), readout=readout, num_loops=2
    )
    for tokens in (2, 8):
        batch = torch.randn(1, tokens, 9, generator=generator, dtype=torch.float64)
        kinds = {d.kind for d in audit(maps, batch, targets=torch.zeros(1, tokens, dtype=torch.int64)).directions}
        assert "rotation" not in kinds and "field" in kinds

"""Blind spots planted at random are found, named and judged; models without one have none."""

import dataclasses

import pytest
import torch

from benchmarks.planted import _row, angle_between, score
from benchmarks.plantings import FACTORS, SPOTS, VERDICTS, plant
from loopsight import audit
from loopsight.auditing.report import Direction

CASES = [(name, fate) for name in SPOTS for fate in FACTORS]


@pytest.mark.parametrize(("name", "fate"), CASES[:: len(FACTORS) + 1] + CASES[1 :: len(FACTORS) * 2])
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

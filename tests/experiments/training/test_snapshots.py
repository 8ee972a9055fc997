"""Snapshots of the weights: at the steps they say, of the weights training had there, after an interruption too."""

from dataclasses import replace

import pytest
import torch

from experiments.training import checkpoint as checkpoints
from experiments.training.snapshots import load, snapshot_steps
from experiments.training.trainer import CHECKPOINT, build_model, train


@pytest.mark.parametrize("steps, count", [(200, 10), (5, 10), (1, 1), (200, 1), (2000, 3)])
def test_the_first_and_the_last_step_are_among_them(steps, count):
    chosen = snapshot_steps(steps, count)
    assert {0, steps} <= chosen and len(chosen) <= count + 2
    assert all(0 <= step <= steps for step in chosen)


def test_none_are_kept_unless_asked_for(make_config, synthetic, execution, tmp_path):
    assert snapshot_steps(200, 0) == set()
    train(make_config(steps=3), synthetic.train, tmp_path, execution)
    assert load(tmp_path) == {}


def test_they_are_the_weights_of_their_step(make_config, synthetic, execution, tmp_path):
    config = make_config(steps=8)
    model = train(config, synthetic.train, tmp_path / "whole", replace(execution, snapshots=3))
    kept = load(tmp_path / "whole")
    assert list(kept) == sorted(snapshot_steps(8, 3))
    assert same(kept[0], build_model(config, execution.device).state_dict())
    assert same(kept[8], model.state_dict())
    assert not same(kept[0], kept[8])
    half = replace(config, training=replace(config.training, steps=3))
    assert same(kept[3], train(half, synthetic.train, tmp_path / "half", execution).state_dict())
    saved = checkpoints.load(tmp_path / "half" / CHECKPOINT)
    checkpoints.save(replace(saved, config=config.to_dict()), tmp_path / "half" / CHECKPOINT)
    train(config, synthetic.train, tmp_path / "half", replace(execution, snapshots=3))
    assert same(load(tmp_path / "half")[8], kept[8])


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)

"""Batches are a pure function of seed and step, cover every window once an epoch, and never touch held-out tokens."""

import numpy as np
import pytest
import torch

from experiments.training.batches import Windows


def windows(tokens, **changes):
    settings = {"context": 8, "stride": 4, "batch_size": 3, "seed": 0, "device": torch.device("cpu")}
    return Windows(tokens, **(settings | changes))


def test_targets_are_the_next_tokens():
    inputs, targets = windows(np.arange(100, dtype=np.uint16)).batch(0)
    assert inputs.shape == targets.shape == (3, 8)
    assert torch.equal(targets, inputs + 1)


def test_an_epoch_visits_every_window_once():
    source = windows(np.arange(101, dtype=np.uint16), batch_size=4)
    count = len(source.starts)
    assert count == 24
    starts = [int(row[0]) for step in range(count // 4) for row in source.batch(step)[0]]
    assert sorted(starts) == list(range(0, 96, 4))


def test_a_batch_depends_on_seed_and_step_only():
    tokens = np.random.default_rng(0).integers(0, 50, 1000).astype(np.uint16)
    fresh, used = windows(tokens), windows(tokens)
    for step in range(200):
        used.batch(step)
    for step in (150, 3, 90):  # across epochs and backwards
        assert torch.equal(fresh.batch(step)[0], used.batch(step)[0])
    assert not torch.equal(windows(tokens, seed=1).batch(3)[0], fresh.batch(3)[0])
    assert not torch.equal(fresh.batch(4)[0], fresh.batch(3)[0])


def test_every_epoch_of_every_seed_has_an_order_of_its_own():
    tokens = np.arange(101, dtype=np.uint16)
    orders = {
        tuple(windows(tokens, batch_size=24, seed=seed).batch(epoch)[0][:, 0].tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="do not fill one window"):
        windows(np.arange(8, dtype=np.uint16))


def test_held_out_tokens_are_never_trained_on(synthetic, make_config, execution, tmp_path, monkeypatch):
    """Mark the held-out tokens by ids that training must then never see."""
    from experiments.training import gradients, trainer

    seen = []
    original = gradients.looped_loss

    def spy(model, tokens, targets, supervision, **options):
        seen.append(torch.cat([tokens.flatten(), targets.flatten()]))
        return original(model, tokens, targets, supervision, **options)

    monkeypatch.setattr(gradients, "looped_loss", spy)
    tokens = np.concatenate([synthetic.train[:400] % 128, 128 + synthetic.validation[:100] % 128])
    trainer.train(make_config(steps=20), tokens[:400], tmp_path, execution)
    assert torch.cat(seen).max() < 128
    seen.clear()
    trainer.train(make_config(steps=20), tokens, tmp_path / "leaky", execution)
    assert torch.cat(seen).max() >= 128  # the check can fail

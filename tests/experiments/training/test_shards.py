"""Shards of a batch at once compute what the whole batch does, always in the same bits, on threads of their own."""

import threading
from dataclasses import replace

import pytest
import torch

from experiments.config import TRAINING_PRESETS, TrainingConfig
from experiments.training import checkpoint as checkpoints
from experiments.training import shards as module
from experiments.training.gradients import gradients_of
from experiments.training.shards import in_shards, shard_count
from experiments.training.trainer import CHECKPOINT, train
from models import PRESETS, LoopedLM, Loss, ReadoutConfig, Supervision

CPU = torch.device("cpu")
TINY = PRESETS["tiny"]
TRAINING = TrainingConfig(steps=1, batch_size=8)
SUPERVISIONS = {
    "per_loop": Supervision(norm_penalty=0.01),
    "terminal": Supervision(placement="terminal"),
}


@pytest.fixture(autouse=True)
def two_threads(arithmetic_of_its_own):
    torch.set_num_threads(2)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    window = torch.randint(TINY.vocab_size, (8, TINY.context + 1), generator=torch.Generator().manual_seed(seed))
    return window[:, :-1], window[:, 1:]


def build(**changes) -> LoopedLM:
    torch.manual_seed(0)
    return LoopedLM(replace(TINY, dropout=0.0, **changes)).double()


def trained(shards, model=None, training=TRAINING, supervision=SUPERVISIONS["per_loop"], steps=3):
    """What some steps of training show: losses, norms, and the last gradient."""
    model = model or build()
    gradients = gradients_of(model, training, supervision, shards=shards)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    shown = []
    for seed in range(steps):
        loss, norm = gradients(*batch(seed))
        shown.append(torch.stack([loss.total, *loss.cross_entropy, *loss.mean_l2_norm, norm]).detach())
        last = torch.cat([p.grad.flatten() for p in model.parameters()]).clone()
        optimiser.step()
    return torch.cat([*shown, last])


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("supervision", SUPERVISIONS.values(), ids=SUPERVISIONS)
@pytest.mark.parametrize(
    "model, training",
    [
        ({}, {}),
        ({}, {"micro_batches": 2}),
        ({}, {"recompute": True}),
        ({"readout": ReadoutConfig(kind="raw", gain=False, tied=False)}, {"clip_norm": 0.1}),
    ],
    ids=["tied", "micro-batches", "recompute", "raw"],
)
def test_shards_train_as_the_whole_batch_does(model, training, supervision, shards):
    training = replace(TRAINING, **training)

    def build_again():
        looped = build(**model)
        looped.recompute = training.recompute
        return looped

    parts, whole = (trained(n, build_again(), training, supervision) for n in (shards, 1))
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_shards_give_the_same_bits_every_time():
    assert torch.equal(trained(2), trained(2))


def test_every_shard_has_a_thread_and_its_share_of_the_cores():
    seen, loss = [], Loss(total=torch.zeros(()), cross_entropy=torch.zeros(4), mean_l2_norm=torch.zeros(4))
    model, both = build(), threading.Barrier(2, timeout=60)

    def accumulate(replica, inputs, targets):
        both.wait()  # reached by both at once, or never
        subnormal = torch.tensor(2.0**-126) * 0.5
        seen.append((threading.get_ident(), torch.get_num_threads(), inputs.shape[0], subnormal.item()))
        return [loss]

    flushed = torch.set_flush_denormal(True)
    assert in_shards(accumulate, model, 2)(*batch(0)) == [loss, loss]
    assert len({thread for thread, *_ in seen}) == 2
    assert [rest[:2] for _, *rest in seen] == [[1, 4], [1, 4]]
    assert not flushed or all(subnormal == 0.0 for *_, subnormal in seen)


def test_the_process_keeps_its_number_of_threads():
    trained(2)
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), later) == (2, [2])


def test_a_fault_in_a_shard_is_the_callers():
    def accumulate(replica, inputs, targets):
        raise FloatingPointError("in a shard")

    with pytest.raises(FloatingPointError, match="in a shard"):
        in_shards(accumulate, build(), 2)(*batch(0))
    assert torch.get_num_threads() == 2


def test_shards_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match="3 shards must divide a batch of 8"):
        gradients_of(build(), TRAINING, SUPERVISIONS["per_loop"], shards=3)(*batch(0))


@pytest.mark.parametrize(
    "changes, count",
    [
        ({}, 2),
        ({"threads": 1}, 1),
        ({"threads": 3}, 2),  # three do not divide 16 sequences
        ({"threads": 64}, 4),  # of 512 tokens each
        ({"micro_batches": 2}, 2),
        ({"micro_batches": 4}, 1),
        ({"dropout": 0.1}, 1),
        ({"compiled": True}, 1),
        ({"device": torch.device("cuda")}, 1),
    ],
)
def test_as_many_shards_as_pay(changes, count):
    torch.set_num_threads(changes.get("threads", 2))
    model = replace(PRESETS["cpu"], dropout=changes.get("dropout", 0.0))
    training = replace(TRAINING_PRESETS["cpu"], micro_batches=changes.get("micro_batches", 1))
    device, compiled = changes.get("device", CPU), changes.get("compiled", False)
    assert shard_count(model, training, device, compiled=compiled) == count


def test_a_run_trains_in_shards_and_is_resumed_to_the_bit(make_config, synthetic, execution, tmp_path, monkeypatch):
    counts, real = [], gradients_of

    def spy(*arguments, shards, **options):
        counts.append(shards)
        return real(*arguments, shards=shards, **options)

    monkeypatch.setattr("experiments.training.trainer.gradients_of", spy)
    monkeypatch.setattr(module, "LEAST_TOKENS", 1)
    config = make_config(steps=12)
    whole = train(config, synthetic.train, tmp_path / "whole", execution)
    half = replace(config, training=replace(config.training, steps=6))
    train(half, synthetic.train, tmp_path / "parts", replace(execution, checkpoint_every=6))
    path = tmp_path / "parts" / CHECKPOINT
    checkpoints.save(replace(checkpoints.load(path), config=config.to_dict()), path)
    parts = train(config, synthetic.train, tmp_path / "parts", execution)
    assert counts == [2, 2, 2]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))

"""A run that was stopped, by whatever means, and resumed ends with the very weights of one never stopped."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments.errors import RunError
from experiments.training import checkpoint as checkpoints
from experiments.training.metrics import read_metrics
from experiments.training.trainer import CHECKPOINT, train

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[3]
STEPS = 80
ARGUMENTS = (
    *("--variant", "scale_invariant", "--preset", "tiny", "--data", "synthetic", "--steps", str(STEPS)),
    *("--checkpoint-every", "10", "--device", "cpu"),
)


def weights(folder):
    return load_file(folder / "scale_invariant-0" / CHECKPOINT)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, cache, inside):
    """The weights of the same command never stopped."""
    out = tmp_path_factory.mktemp("whole")
    done = inside(*ARGUMENTS, "--out", out, "--cache", cache)
    assert done.returncode == 0, done.stderr
    return weights(out)


def start_and_kill(out, cache):
    """The command in a process of its own, killed outright when it has written a checkpoint."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "experiments" / "run.py", *ARGUMENTS, "--out", out, "--cache", cache],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    while process.poll() is None and not (out / "scale_invariant-0" / CHECKPOINT).exists():
        time.sleep(0.002)
    process.kill()
    return process.wait()


def resume_and_stop(out, cache, how, inside, monkeypatch):
    """The command in this process, which gets the signal when it has written another checkpoint."""
    save, sent = checkpoints.save, []

    def save_and_stop(*what):
        save(*what)
        if not sent:
            sent.append(how)
            os.kill(os.getpid(), how)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", save_and_stop)
        return inside(*ARGUMENTS, "--out", out, "--cache", cache, "--resume")


def test_stopped_again_and_again_and_resumed_equals_never_stopped(tmp_path, cache, uninterrupted, inside, monkeypatch):
    folder = tmp_path / "scale_invariant-0"
    assert start_and_kill(tmp_path, cache) == -signal.SIGKILL
    stopped_at = [0, checkpoints.load(folder / CHECKPOINT).step]
    for how in (signal.SIGINT, signal.SIGTERM):
        done = resume_and_stop(tmp_path, cache, how, inside, monkeypatch)
        stopped_at.append(checkpoints.load(folder / CHECKPOINT).step)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert last.startswith("error: interrupted at step ") and last.endswith("--resume to go on.")
    assert stopped_at == sorted(set(stopped_at)) and stopped_at[-1] < STEPS, "stopped too late to test anything"
    done = inside(*ARGUMENTS, "--out", tmp_path, "--cache", cache, "--resume")
    assert done.returncode == 0, done.stderr
    after = weights(tmp_path)
    assert after.keys() == uninterrupted.keys()
    assert all(torch.equal(after[name], uninterrupted[name]) for name in after)
    assert [record["step"] for record in read_metrics(folder / "metrics.jsonl")] == list(range(10, STEPS + 1, 10))


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("forgotten", ["random", "optimiser"])
def test_forgetting_a_part_of_the_state_would_be_seen(
    forgotten, optimiser, make_config, synthetic, execution, tmp_path, monkeypatch
):
    """Negative control: the same comparison fails when the random state or the moments are not restored."""
    config = make_config(steps=12, optimiser=optimiser)
    config = replace(config, model=replace(config.model, dropout=0.1))  # without it nothing random is left to restore
    whole = train(config, synthetic.train, tmp_path / "whole", execution)

    def train_in_two(folder):
        half = replace(config, training=replace(config.training, steps=6))
        train(half, synthetic.train, folder, replace(execution, checkpoint_every=6))
        saved = checkpoints.load(folder / CHECKPOINT)
        checkpoints.save(replace(saved, config=config.to_dict()), folder / CHECKPOINT)
        return train(config, synthetic.train, folder, execution)

    def equal(model):
        return all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))

    assert equal(train_in_two(tmp_path / "good"))
    restore = checkpoints.restore

    def forgetful(saved, model, optimisers):
        random = torch.get_rng_state()
        restore(saved, model, optimisers)
        if forgotten == "random":
            torch.set_rng_state(random)
        else:
            optimisers[0].state.clear()

    monkeypatch.setattr(checkpoints, "restore", forgetful)
    assert not equal(train_in_two(tmp_path / "bad"))


def test_a_checkpoint_of_another_run_is_refused(make_config, synthetic, execution, tmp_path):
    train(make_config(seed=0), synthetic.train, tmp_path, execution)
    with pytest.raises(RunError, match="another configuration"):
        train(make_config(seed=1), synthetic.train, tmp_path, execution)


@pytest.mark.parametrize(
    ("edit", "refused"),
    [
        (lambda config: config["training"].pop("momentum"), False),
        (lambda config: config["training"].pop("steps"), True),
        (lambda config: config["training"].update(unknown=1), True),
    ],
)
def test_a_checkpoint_of_before_a_setting_came_is_gone_on_with(
    edit, refused, make_config, synthetic, execution, tmp_path, monkeypatch
):
    train(make_config(), synthetic.train, tmp_path, execution)
    load = checkpoints.load

    def edited(path):
        saved = load(path)
        edit(saved.config)
        return saved

    monkeypatch.setattr(checkpoints, "load", edited)
    with pytest.raises(RunError, match="another configuration") if refused else nullcontext():
        train(make_config(), synthetic.train, tmp_path, execution)

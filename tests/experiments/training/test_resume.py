"""A run that was stopped, by whatever means, and resumed ends with the very weights of one never stopped."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments.corpus import prepare
from experiments.device import make_arithmetic_repeatable
from experiments.errors import RunError
from experiments.runs import read_config
from experiments.training import checkpoint as checkpoints
from experiments.training.metrics import read_metrics
from experiments.training.trainer import CHECKPOINT, Execution, train

ROOT = Path(__file__).parents[3]
STEPS = 60
COMMAND = [
    sys.executable,
    str(ROOT / "experiments" / "run.py"),
    *("--variant", "scale_invariant", "--preset", "tiny", "--data", "synthetic", "--steps", str(STEPS)),
    *("--checkpoint-every", "10", "--device", "cpu"),
]


def weights(folder):
    return load_file(folder / "scale_invariant-0" / CHECKPOINT)


def run_command(out, cache, *more):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, "--out", str(out), "--cache", str(cache), *more],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, cache):
    out = tmp_path_factory.mktemp("whole")
    finish(run_command(out, cache))
    return weights(out)


def finish(process):
    _, error = process.communicate()
    assert process.returncode == 0, error


def stop_midway(process, folder, how):
    """Send the signal once some, but not all, checkpoints are written."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if len(read_metrics(folder / "scale_invariant-0" / "metrics.jsonl")) >= 2:
            process.send_signal(how)
            break
        time.sleep(0.002)
    _, error = process.communicate()
    return process.returncode, error


def resume_here(folder, cache):
    """The same without another process: what training does at `--resume`."""
    device, config = torch.device("cpu"), read_config(folder)
    make_arithmetic_repeatable(device)
    corpus = prepare(config.corpus, cache, min_tokens=config.model.context + 1)
    train(config, corpus.train, folder, Execution(device=device, checkpoint_every=10))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_and_resumed_equals_never_stopped(how, tmp_path, cache, uninterrupted):
    status, error = stop_midway(run_command(tmp_path, cache), tmp_path, how)
    stopped_at = checkpoints.load(tmp_path / "scale_invariant-0" / CHECKPOINT).step
    assert 0 < stopped_at < STEPS, "stopped too late to test anything"
    if how is signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == 1
        last = error.splitlines()[-1]
        assert last.startswith("error: interrupted at step ") and last.endswith("--resume to go on.")
        assert "Traceback" not in error
    if how is not signal.SIGTERM:
        finish(run_command(tmp_path, cache, "--resume"))
    else:
        resume_here(tmp_path / "scale_invariant-0", cache)
    after = weights(tmp_path)
    assert after.keys() == uninterrupted.keys()
    assert all(torch.equal(after[name], uninterrupted[name]) for name in after)
    steps = [record["step"] for record in read_metrics(tmp_path / "scale_invariant-0" / "metrics.jsonl")]
    assert steps == list(range(10, STEPS + 1, 10))


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

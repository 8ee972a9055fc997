"""Training: it learns towards a known floor, accumulates exactly, and stops at the first sign of divergence."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.config import RunConfig, TrainingConfig
from experiments.errors import RunError
from experiments.training import checkpoint as checkpoints
from experiments.training import gradients, trainer
from experiments.training.metrics import MetricsLog, read_metrics
from experiments.training.optimiser import build_optimisers, learning_rate
from experiments.training.trainer import CHECKPOINT, build_model, train, training_windows


def final_cross_entropy(folder):
    return read_metrics(folder / "metrics.jsonl")[-1]["cross_entropy"][-1]


def test_loss_comes_near_the_entropy_floor_and_not_without_training(make_config, synthetic, execution, tmp_path):
    floor, execution = synthetic.record["entropy_floor_nats"], replace(execution, checkpoint_every=400)
    config = make_config("untied_scale_invariant", steps=400, batch_size=16, learning_rate=1e-2, schedule="cosine")
    config = replace(config, model=replace(config.model, num_loops=2))
    train(config, synthetic.train, tmp_path / "long", execution)
    assert floor - 0.05 < final_cross_entropy(tmp_path / "long") < floor + 0.25
    short = replace(config, training=replace(config.training, steps=2))
    train(short, synthetic.train, tmp_path / "short", execution)
    assert final_cross_entropy(tmp_path / "short") > floor + 1.0


def test_micro_batches_give_the_same_training(make_config, synthetic, execution, tmp_path):
    # AdamW and clipping hide a wrong factor on the gradient, so the gradient's norm is compared as well.
    whole = train(make_config(), synthetic.train, tmp_path / "1", execution)
    parts = train(make_config(micro_batches=4), synthetic.train, tmp_path / "4", execution)
    other = train(make_config(seed=1), synthetic.train, tmp_path / "seed", execution)

    def distance(model):
        pairs = zip(model.parameters(), whole.parameters(), strict=True)
        return max((a - b).abs().max().item() for a, b in pairs)

    assert distance(parts) < 1e-3 < distance(other)
    norms = [[r["gradient_norm"] for r in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("1", "4")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_gradients_are_clipped(make_config, synthetic, execution, tmp_path, monkeypatch):
    norms = []
    real = trainer._update

    def spy(config, optimisers, step):
        parameters = [p for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]]
        norms.append(torch.stack([p.grad.norm() for p in parameters]).norm().item())
        real(config, optimisers, step)

    monkeypatch.setattr(trainer, "_update", spy)
    train(make_config(clip_norm=0.25), synthetic.train, tmp_path, execution)
    recorded = [record["gradient_norm"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert max(norms) < 0.2501 and min(recorded) > 0.5


def test_a_state_from_which_the_loss_explodes_is_never_the_last_good_one(make_config, synthetic, execution, tmp_path):
    config = make_config(steps=9, learning_rate=1e30)
    with pytest.raises(RunError, match="there was no checkpoint yet"):
        train(config, synthetic.train, tmp_path, replace(execution, checkpoint_every=1))
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_compiled_step_trains_alike_and_leaves_the_model_as_it_was(
    make_config, synthetic, execution, tmp_path, monkeypatch
):
    from experiments.measure.state import measure_state

    compiled = []

    def compile_eagerly(function):
        compiled.append(function)
        return lambda h: function(h)  # a stand-in: what matters here is that it is bound to the float32 model

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    plain = train(make_config(), synthetic.train, tmp_path / "plain", execution)
    model = train(make_config(), synthetic.train, tmp_path / "compiled", replace(execution, compile=True))
    assert compiled
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    windows = torch.from_numpy(np.asarray(synthetic.validation[:66]).astype(np.int64)).view(2, 33)
    assert measure_state(model, windows, num_loops=2) == measure_state(plain, windows, num_loops=2)


@pytest.mark.parametrize("poison", ["weight", "gradient"])
def test_a_diverged_run_stops_with_a_sentence_and_keeps_the_last_good_checkpoint(
    poison, make_config, synthetic, execution, tmp_path, monkeypatch
):
    original = gradients.looped_loss
    calls = 0

    def explode(*arguments, **options):
        nonlocal calls
        calls += 1
        loss = original(*arguments, **options)
        if calls < 8:
            return loss
        bad = (
            loss.total * torch.nan if poison == "weight" else loss.total + 0 * (loss.total - loss.total.detach()).sqrt()
        )
        return replace(loss, total=bad)

    monkeypatch.setattr(gradients, "looped_loss", explode)
    with pytest.raises(
        RunError, match=r"NaN or infinite after at most \d+ steps .* last good checkpoint is .*--learning-rate"
    ):
        train(make_config(steps=20), synthetic.train, tmp_path, execution)
    saved = checkpoints.load(tmp_path / CHECKPOINT)
    assert saved.step == 5
    assert all(torch.isfinite(t).all() for name, t in saved.tensors.items() if not name.startswith("random"))


def test_seed_decides_the_run(make_config, synthetic, execution, tmp_path):
    first, again, other = (
        train(make_config(seed=seed), synthetic.train, tmp_path / str(i), execution) for i, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(first.head_weight, again.head_weight)
    assert not torch.equal(first.head_weight, other.head_weight)


def test_seed_decides_the_weights_and_the_batches(make_config, synthetic, execution):
    configs = [make_config(seed=seed) for seed in (0, 1)]
    weights = [build_model(config, execution.device).head_weight for config in configs]
    batches = [training_windows(config, synthetic.train, execution.device).batch(0)[0] for config in configs]
    assert not torch.equal(*weights) and not torch.equal(*batches)


def test_windows_overlap_by_half(make_config, synthetic, execution):
    config = make_config()
    starts = training_windows(config, synthetic.train, execution.device).starts
    assert starts[:3].tolist() == [0, config.model.context // 2, config.model.context]


def test_a_model_is_trained_in_training_mode(make_config, synthetic, execution, tmp_path, monkeypatch):
    training = []
    real = gradients.looped_loss

    def spy(model, *arguments, **options):
        training.append(model.training)
        return real(model, *arguments, **options)

    def build_in_evaluation_mode(config, device):
        return build_model(config, device).eval()

    monkeypatch.setattr(gradients, "looped_loss", spy)
    monkeypatch.setattr(trainer, "build_model", build_in_evaluation_mode)
    train(make_config(steps=1), synthetic.train, tmp_path, execution)
    assert training and all(training)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "muon"])
def test_every_parameter_decays_by_what_was_asked(optimiser, make_config, execution):
    config = make_config(optimiser=optimiser, learning_rate=0.25, weight_decay=0.7)
    groups = [
        group
        for made in build_optimisers(build_model(config, execution.device), config.training)
        for group in made.param_groups
    ]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.25, 0.7)] * len(groups)
    if optimiser == "muon":
        assert groups[0]["adjust_lr_fn"] == "match_rms_adamw"


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "muon"])
def test_momentum_is_adamws_beta1_and_that_of_sgd(optimiser, make_config, execution):
    config = make_config(optimiser=optimiser, momentum=0.25)
    *others, last = build_optimisers(build_model(config, execution.device), config.training)
    (group,) = last.param_groups
    assert group["momentum"] == 0.25 if optimiser == "sgd" else group["betas"] == (0.25, 0.999)
    assert [made.param_groups[0]["momentum"] for made in others] == [0.95] * (optimiser == "muon")


def test_variants_of_one_seed_start_from_the_same_weights(make_config):
    cpu = torch.device("cpu")
    raw, normed = (build_model(make_config(v), cpu).state_dict() for v in ("scale_visible", "scale_invariant"))
    shared = raw.keys() & normed.keys()
    assert len(shared) == len(raw)
    assert all(torch.equal(raw[name], normed[name]) for name in shared)


def test_learning_rate_schedule():
    config = TrainingConfig(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10, schedule="cosine")
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) and rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5) and rates[99] < 0.001
    constant = replace(config, schedule="constant")
    assert {learning_rate(step, constant) for step in range(10, 100)} == {1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"micro_batches": 3}, "must divide batch_size"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"weight_decay": float("nan")}, "weight_decay must be finite"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, "momentum must lie in"),
        ({"momentum": float("nan")}, "momentum must lie in"),
        ({"warmup_steps": 10}, "warmup_steps must"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and not negative"),
    ],
)
def test_impossible_training_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**({"steps": 10, "batch_size": 4} | change))


def test_configuration_survives_json(make_config):
    config = make_config("scale_removing")
    config = replace(config, supervision=replace(config.supervision, weights=(0.1, 0.2, 0.3, 0.4)))
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_metrics_line_cut_short_is_dropped_on_resume(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 1.0, "l2_norm": [1.0, 2.0], "cross_entropy": [None, 1.0]})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-5])
    MetricsLog(tmp_path, 10)
    assert [record["step"] for record in read_metrics(path)] == [10]


def test_tensorboard_gets_the_scalars(make_config, synthetic, execution, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(make_config(), synthetic.train, tmp_path, execution)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss", "l2_norm/loop_4", "cross_entropy/loop_1"} <= set(events.Tags()["scalars"])
    last = events.Scalars("loss")[-1]
    assert (last.step, np.float32(last.value)) == (
        12,
        np.float32(read_metrics(tmp_path / "metrics.jsonl")[-1]["loss"]),
    )

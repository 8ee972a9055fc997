"""Throughput against a clock that is known, and against the loops that are really run."""

import numpy as np
import pytest

from experiments.measure import depth
from experiments.measure.depth import ROUNDS, TIMED_WINDOWS, measure, throughput


def test_every_depth_is_timed_once_a_round_in_changing_order(make_context, monkeypatch):
    calls = []

    def fake(context, inputs, loops):
        calls.append(loops)
        return 0.25 * loops

    monkeypatch.setattr(depth, "_seconds", fake)
    rates = throughput(make_context(), [1, 2, 3, 4])
    assert rates.shape == (ROUNDS, 4)
    assert rates == pytest.approx(np.tile(TIMED_WINDOWS * 32 / (0.25 * np.arange(1, 5)), (ROUNDS, 1)))
    rounds = np.array(calls[2:]).reshape(ROUNDS, 4)  # two calls to warm up
    assert (np.sort(rounds, axis=1) == [1, 2, 3, 4]).all()
    assert len({tuple(order) for order in rounds.tolist()}) > 1


def test_the_table_has_the_median_and_the_spread(make_context, monkeypatch):
    slow = iter([1.0, 1.0, *([1.0] * 8 * (ROUNDS - 1)), *([100.0] * 8)])  # the last round is disturbed
    monkeypatch.setattr(depth, "_seconds", lambda context, inputs, loops: next(slow) * loops)
    table = measure(make_context())["depth"]
    assert table["tokens_per_second"].tolist() == pytest.approx([TIMED_WINDOWS * 32 / k for k in range(1, 9)])
    assert (table["low"] <= table["tokens_per_second"]).all() and (table["tokens_per_second"] <= table["high"]).all()
    monkeypatch.setattr(depth, "_seconds", lambda context, inputs, loops: 1.0 + (loops == 8) * np.random.rand())
    assert measure(make_context())["depth"]["tokens_per_second"].is_monotonic_decreasing


def test_the_spread_is_from_the_10th_to_the_90th_percentile(make_context, monkeypatch):
    monkeypatch.setattr(depth, "throughput", lambda context, depths: np.tile(np.arange(11.0)[:, None], len(depths)))
    spread = measure(make_context())["depth"][["low", "tokens_per_second", "high"]]
    assert spread.to_numpy() == pytest.approx(np.tile([1.0, 5.0, 9.0], (8, 1)))


def test_what_is_timed_is_k_loops_and_one_readout(make_context, planted):
    calls = []
    model = planted(lambda h: calls.append("step") or h)
    model.readout_features.register_forward_hook(lambda *_: calls.append("readout"))
    context = make_context(model=model)
    assert depth._seconds(context, context.windows[:2, :-1], 3) > 0.0
    assert calls == ["step"] * 3 + ["readout"]


def test_cross_entropies_are_those_of_the_pass(make_context, monkeypatch):
    monkeypatch.setattr(depth, "_seconds", lambda context, inputs, loops: 1.0)
    context = make_context("scale_visible")
    assert measure(context)["depth"]["cross_entropy"].tolist() == context.held_out.mean_cross_entropy()

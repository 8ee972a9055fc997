"""Halting on exits whose best rule is known."""

import math

import numpy as np
import pytest
import torch

from experiments.measure.forward import HeldOut
from experiments.measure.halting import Exits, Outcome, apply, calibrate, measure, policies


def exits(confidence, cross_entropy, windows=8, time=16):
    """The same (loops, tokens) pattern in every window, repeated over its time."""

    def spread(values):
        return torch.tensor(values).repeat(1, time // len(values[0]))[:, None].repeat(1, windows, 1)

    return Exits(confidence=spread(confidence), cross_entropy=spread(cross_entropy))


def random_exits(seed):
    generator = torch.Generator().manual_seed(seed)
    confidence, cross_entropy = torch.rand(2, 4, 10, 20, generator=generator)
    return Exits(confidence=confidence, cross_entropy=cross_entropy)


def test_a_model_whose_loops_do_nothing_halts_at_1(make_context, planted):
    for raw in (True, False):
        table = measure(make_context(model=planted(lambda h: h, raw=raw)))["halting"]
        assert table["policy"].tolist() == ["margin", "entropy", "state_change"]
        assert (table[["average_loops", "low", "high", "loops_calibration"]] == 1.0).all(axis=None)
        assert (table[["perplexity_ratio", "ratio_low", "ratio_high"]] == 1.0).all(axis=None) and table["met"].all()


def test_where_only_the_last_loop_is_any_good_all_are_used():
    """No confidence tells the tokens apart, and every early exit costs a nat."""
    useless = exits([[0.5, 0.5]] * 4, [[2.0, 2.0]] * 3 + [[1.0, 1.0]])
    threshold = calibrate(useless)
    assert threshold == math.inf
    assert (apply(useless, threshold).loops == 4.0).all() and apply(useless, threshold).perplexity_ratio == 1.0


def test_an_informative_confidence_lets_the_easy_half_leave():
    """Easy tokens are done after loop 1 and sure of it; hard ones after loop 4, and unsure till then."""
    found = exits([[0.9, 0.1]] * 4, [[1.0, 3.0]] * 3 + [[1.0, 1.0]])
    outcome = apply(found, calibrate(found))
    assert outcome.loops.mean() == pytest.approx(2.5)
    assert outcome.perplexity_ratio == pytest.approx(1.0)
    misled = Exits(confidence=-found.confidence, cross_entropy=found.cross_entropy)
    assert apply(misled, calibrate(misled)).loops.mean() == 4.0


@pytest.mark.parametrize("seed", range(5))
def test_calibration_keeps_the_tolerance_and_wastes_no_loop(seed):
    found = random_exits(seed)
    threshold = calibrate(found)
    outcome = apply(found, threshold)
    assert outcome.perplexity_ratio <= 1.01
    for other in [-math.inf, *np.quantile(found.confidence[:-1], np.linspace(0, 1, 57)).tolist(), math.inf]:
        allowed = apply(found, other).perplexity_ratio <= 1.01
        assert not allowed or apply(found, other).loops.mean() >= outcome.loops.mean() - 0.02  # between candidates


def test_a_higher_threshold_never_uses_fewer_loops():
    found = random_exits(0)
    loops = [apply(found, threshold).loops for threshold in (-math.inf, 0.2, 0.5, 0.9, math.inf)]
    assert all((later >= earlier).all() for earlier, later in zip(loops, loops[1:], strict=False))
    assert (loops[0] == 1.0).all() and (loops[-1] == 4.0).all()


def test_a_token_leaves_after_the_first_confident_loop():
    found = exits([[0.1, 0.1], [0.8, 0.1], [0.1, 0.9], [0.0, 0.0]], [[5.0, 5.0], [1.0, 5.0], [5.0, 2.0], [3.0, 3.0]])
    outcome = apply(found, 0.7)
    assert outcome.loops == pytest.approx(np.full(8, 2.5))
    assert outcome.lost == pytest.approx(np.full(8, -1.5))


def test_the_threshold_is_judged_on_windows_it_was_not_set_on(make_context, monkeypatch):
    """On one half every exit is free, on the other it costs a nat."""
    from experiments.measure import halting

    cross_entropy = torch.ones(4, 10, 16)
    cross_entropy[:3, 1::2] += 1.0
    confidence = torch.rand(4, 10, 16, generator=torch.Generator().manual_seed(0))
    crafted = Exits(confidence=confidence, cross_entropy=cross_entropy)
    monkeypatch.setattr(halting, "policies", lambda context: {"margin": crafted})
    (row,) = measure(make_context())["halting"].to_dict("records")
    assert (row["loops_calibration"], row["perplexity_ratio_calibration"]) == (1.0, 1.0)
    assert (row["average_loops"], row["threshold"]) == (1.0, -math.inf)
    assert row["perplexity_ratio"] == pytest.approx(math.e) and not row["met"]


def test_a_perplexity_ratio_is_of_the_mean_loss_over_windows():
    outcome = Outcome(loops=np.ones(2), lost=np.array([0.0, 1.0]))
    assert outcome.perplexity_ratio == pytest.approx(math.exp(0.5))


def test_the_interval_lies_around_the_perplexity_ratio(make_context, monkeypatch):
    from experiments.measure import halting

    generator = torch.Generator().manual_seed(0)
    cross_entropy, confidence = torch.rand(2, 4, 10, 16, generator=generator)
    cross_entropy[:3, ::2] -= 2.0  # on the half that it is set on, every exit gains
    crafted = Exits(confidence=confidence, cross_entropy=cross_entropy)
    monkeypatch.setattr(halting, "policies", lambda context: {"margin": crafted})
    (row,) = measure(make_context())["halting"].to_dict("records")
    assert row["average_loops"] == 1.0
    assert row["ratio_low"] < row["perplexity_ratio"] - 1e-3 < row["perplexity_ratio"] + 1e-3 < row["ratio_high"]


def test_each_policy_looks_at_what_it_says(make_context):
    context = make_context("scale_visible")
    found = policies(context)
    for name, sign in {"margin": 1.0, "entropy": -1.0, "state_change": -1.0}.items():
        assert torch.equal(found[name].confidence, sign * getattr(context.held_out, name)[:4])
        assert torch.equal(found[name].cross_entropy, context.held_out.cross_entropy[:4])


def test_every_policy_lets_the_sure_tokens_go_first(make_context):
    """Easy tokens have a wide margin, a low entropy and a state that hardly moves; only hard ones need loop 4."""
    context = make_context()

    def pattern(easy, hard):
        return torch.tensor([easy, hard]).repeat(8, 10, 8)

    cross_entropy = pattern(1.0, 3.0)
    cross_entropy[3:] = 1.0
    vars(context)["held_out"] = HeldOut(
        cross_entropy=cross_entropy,
        margin=pattern(5.0, 1.0),
        entropy=pattern(0.1, 2.0),
        state_change=pattern(0.2, 0.9),
        l2_norm=pattern(1.0, 1.0),
        final_states=torch.ones(10, 16, 32),
    )
    table = measure(context)["halting"].set_index("policy")
    assert (table["average_loops"] == 2.5).all() and table["met"].all()
    assert 1.0 < table["threshold"]["margin"] <= 5.0
    assert 0.1 <= table["threshold"]["entropy"] < 2.0
    assert 0.2 <= table["threshold"]["state_change"] < 0.9

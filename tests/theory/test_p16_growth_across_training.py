"""P16 on short training runs: what the account says, what it must not be taken to say, and its bound."""

from dataclasses import replace

import pytest
import torch

from loopsight.attribution import attribute_growth, norm_degrees
from loopsight.optimiser_laws import adam_step_bound
from theory.cases import Case
from theory.laboratory import block_writers, writers
from theory.proposition import ProofError
from theory.propositions import p11_writer_homogeneity as p11
from theory.propositions import p16_growth_across_training as p16
from theory.random_model import Architecture, random_model, rms_normalise

TIED = Architecture(layers=1, loops=3, tied=True, vocab=12, tokens=6, batch=4)


def adamw_run(model, steps: int, lr: float = 3e-3) -> list[dict[str, torch.Tensor]]:
    """Parameters before the first step and after each."""
    p = {name: tensor.clone().requires_grad_() for name, tensor in model.parameters.items()}
    optimiser, path = torch.optim.AdamW(p.values(), lr=lr, weight_decay=0.1), []
    path.append({name: tensor.detach().clone() for name, tensor in p.items()})
    for _ in range(steps):
        optimiser.zero_grad()
        model.loss(p).backward()
        optimiser.step()
        path.append({name: tensor.detach().clone() for name, tensor in p.items()})
    return path


def groups_of(a: Architecture, names) -> dict[str, list[str]]:
    blocks = block_writers(a)
    return {
        "embeddings": [n for n in names if n.endswith("embedding")],
        "block writers": list(blocks),
        "readers": [n for n in names if n not in blocks and not n.endswith("embedding")],
    }


def test_the_account_of_an_adamw_run_sums_up_and_grows_far_more_than_the_writers_norm():
    """Growth of |h| is not growth of |w|: block writers and readers align while |w| stays where it is."""
    model = random_model(TIED)
    path = adamw_run(model, 30)
    groups = groups_of(TIED, model.parameters)
    found = attribute_growth(lambda p: p16.last_states(model, p), path, groups)
    assert found.actual > 0.2
    assert abs(found.error) < 2e-3 * found.actual
    assert found.contributions["block writers"] + found.contributions["readers"] > 0.8 * found.actual
    w0, w1 = (sum(p[n].square().sum() for n in writers(TIED)).log().item() / 2 for p in (path[0], path[-1]))
    assert abs(w1 - w0) < 0.3 * found.actual


def test_the_left_rule_would_be_off_by_far_more_and_the_trapezoid_is_of_third_order():
    model = random_model(TIED)
    quantity = lambda p: p16.last_states(model, p)  # noqa: E731
    ends = [model.parameters, p16.neighbour(model, 0.1)]
    errors = [abs(attribute_growth(quantity, ends, segments=n).error) for n in (1, 2, 4, 8)]
    for coarse, fine in zip(errors[1:], errors[2:], strict=False):
        assert coarse / fine == pytest.approx(4, rel=0.2)  # third order a step, second over a path


def test_trap_a_large_error_may_be_of_the_right_order(monkeypatch):
    """Three channels behind LayerNorm: 470 times the usual curvature. A rule of first order does not pass for it."""
    sharp = Case(seed=19, d=3, vocab=2, tokens=1)
    assert abs(p16.attribution_error(random_model(p16.architecture(sharp)), p16.STEP)) > 1e-7
    assert p16.check(sharp).holds
    monkeypatch.setattr(p16, "attribution_error", lambda model, relative: relative)
    assert not p16.check(sharp).holds


@pytest.mark.parametrize("readout", ["rmsnorm", "raw", "tanh"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("between", ["none", "rmsnorm", "damping"])
def test_eulers_constraint_is_about_states_and_holds_for_every_readout(readout, tied, between):
    a = replace(TIED, readout=readout, tied=tied, between=between, biases=True)
    model = random_model(a)
    assert p16.euler_error(model, writers(a)) < 1e-13
    assert p16.euler_error(model, block_writers(a)) > 1e-3 or between == "rmsnorm"
    degrees = norm_degrees(lambda p: p16.last_states(model, p), model.parameters)
    if between == "rmsnorm":  # h_0's scale is removed at once
        assert abs(degrees["token_embedding"] + degrees["position_embedding"]) < 1e-13


def test_a_step_of_adam_moves_an_mlps_output_by_at_most_its_bound_times_the_activations_one_norm():
    """Per step and coordinate, |d b|_inf <= C lr |act|_1 for the writer's own part."""
    model, lr, decay = random_model(TIED), 3e-3, 0.1
    path = adamw_run(model, 6, lr)
    h = rms_normalise(model.embed(), 0.0)
    closest = 0.0
    for t, (before, after) in enumerate(zip(path, path[1:], strict=False), 1):
        x = h * before["0.mlp.gain"]
        act = torch.nn.functional.silu(x @ before["0.mlp.gate"].T) * (x @ before["0.mlp.up"].T)
        step = after["0.mlp.down"] - (1 - lr * decay) * before["0.mlp.down"]
        moved = (act @ step.T).abs().amax(-1)
        allowed = adam_step_bound(0.9, 0.999, step=t) * lr * act.abs().sum(-1)
        closest = max(closest, (moved / allowed).max().item())
    assert 0.3 < closest <= 1.0 + 1e-9


def test_tied_unit_embeddings_press_on_the_state_before_any_training_and_others_do_not(monkeypatch):
    """<G_0, h_0> > 0 pushes block writers up. It comes from tying and initialisation, not from blindness alone."""
    monkeypatch.setattr(p11, "loop_weights", lambda a: (1.0 / a.loops,) * a.loops)

    def pressure(**changes) -> list[float]:
        models = [random_model(replace(TIED, d=24, vocab=24, seed=seed, **changes)) for seed in range(4)]
        found = [p11.derivatives(model) for model in models]
        return [(each.initial_gradient * each.initial_state).sum().item() for each in found]

    tied = pressure()
    assert min(tied) > 1.0
    assert max(map(abs, pressure(tied=False))) < 0.2
    assert max(map(abs, pressure(embedding_std=0.1))) < 0.2  # the small-init control
    # A raw readout is pushed harder still, and yet need not grow: its own gap term counts too.
    assert min(pressure(readout="raw")) > 2 * max(tied)


def test_wrong_orders_of_the_rules_are_rejected(monkeypatch):
    real = p16.quadrature_error
    monkeypatch.setattr(p16, "quadrature_error", lambda rule: real("left"))
    with pytest.raises(ProofError, match="trapezoid"):
        p16.prove()


def test_broken_copies_do_not_survive_the_check(monkeypatch):
    assert p16.check(Case()).holds
    monkeypatch.setattr(p16, "writers", lambda a: writers(a)[:-1])
    assert not p16.check(Case()).holds
    monkeypatch.undo()

    def left_out(quantity, checkpoints, groups=None, segments=1):
        found = attribute_growth(quantity, checkpoints, groups, segments)
        first = next(iter(found.contributions))
        return replace(found, predicted=found.predicted - found.contributions[first])

    monkeypatch.setattr(p16, "attribute_growth", left_out)
    assert not p16.check(Case()).holds

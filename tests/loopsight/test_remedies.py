"""Every remedy, checked by auditing again, and by training with it."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import loopsight
from loopsight import LoopedMaps, audit, remedies, unroll

WIDTH, CLASSES, LOOPS = 16, 24, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)

    def forward(self, h):
        return h + self.down(F.silu(self.up(F.rms_norm(h, (WIDTH,), eps=1e-6))))


class Model(nn.Module):
    """A residual block looped, behind an RMSNorm readout: blind and active."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.block = nn.Embedding(CLASSES, WIDTH), Block()
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)
        self.num_loops = LOOPS

    def embed(self, tokens):
        return self.table(tokens)

    def step(self, h):
        return self.block(h)

    def readout(self, h):
        return self.head(F.rms_norm(h, (WIDTH,), eps=1e-6))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(CLASSES, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def maps(model):
    return LoopedMaps(embed=model.embed, step=model.step, readout=model.readout, num_loops=LOOPS, module=model)


def scale(subject, tokens, **options):
    return audit(subject, tokens, symmetries=False, **options).directions[0].verdict


def test_auditing_again_confirms_every_remedy(maps, tokens):
    report = audit(maps, tokens, symmetries=False)
    assert report.directions[0].verdict == "blind and active"
    settings = {remedy.name: remedy.setting for remedy in report.remedies}
    predicted = {remedy.name: remedy.verdict for remedy in report.remedies}
    assert set(settings) == {"norm penalty", "raw readout", "final-only norm", "between-loop norm", "damping"}
    seen = {
        "raw readout": scale(remedies.with_raw_readout(maps, settings["raw readout"]), tokens),
        "between-loop norm": scale(remedies.with_between_norm(maps, settings["between-loop norm"]), tokens),
        "damping": scale(remedies.with_damping(maps, settings["damping"]), tokens),
        "norm penalty": scale(maps, tokens, penalty=remedies.token_penalty(settings["norm penalty"])),
    }
    assert seen == {name: predicted[name] for name in seen}


def test_final_only_readouts_are_blind_at_the_last_loop_alone(maps, tokens):
    readouts = remedies.final_only_readouts(maps.readout, LOOPS, 2.0)
    h = maps.embed(tokens)
    changes = [(readout(2 * h) - readout(h)).abs().max().item() for readout in readouts]
    assert len(readouts) == LOOPS and changes[-1] < 1e-4 < 1e-1 < min(changes[:-1])


def test_predicted_norms_are_those_seen_under_the_remedy(maps, tokens):
    report = audit(maps, tokens, symmetries=False)
    found = {remedy.name: remedy for remedy in report.remedies}
    looped = {
        "between-loop norm": remedies.with_between_norm(maps, found["between-loop norm"].setting),
        "damping": remedies.with_damping(maps, found["damping"].setting),
    }
    for name, changed in looped.items():
        h = maps.embed(tokens).detach()
        for _ in range(8 * LOOPS):
            h = changed.step(h).detach()
        assert h.norm(dim=-1).mean().item() == pytest.approx(found[name].l2_norm, rel=0.35), name
    free = report.growth.forecasts[-1].observed
    assert all(found[name].l2_norm < free for name in looped)


def test_a_raw_readout_is_the_head_on_the_state_itself(model):
    h = 7.0 * torch.randn(5, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(remedies.raw_readout(model.readout, h, 2.0), model.head(h) / 2.0)


def test_the_penalty_is_the_mean_square_of_all_states():
    states = [torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), 4.0)]
    assert remedies.norm_penalty(states, 0.1).item() == pytest.approx(0.1 * (4 + 16) / 2)
    torch.testing.assert_close(remedies.token_penalty(0.1)(states[0]), torch.full((2, 3), 0.4))


@pytest.mark.parametrize(
    "call",
    [
        lambda: remedies.norm_penalty([], 0.1),
        lambda: remedies.norm_penalty([torch.ones(2)], -1.0),
        lambda: remedies.Damped(nn.Identity(), 1.0),
        lambda: remedies.final_only_readouts(lambda h: h, 1, 1.0),
        lambda: remedies.norm_penalty([torch.ones(2)], math.inf),
        lambda: remedies.token_penalty(-1.0),
        lambda: remedies.with_raw_readout(None, 0.0),
        lambda: remedies.raw_readout(lambda h: h, torch.ones(2), -1.0),
        lambda: remedies.with_between_norm(None, 0.0),
        lambda: remedies.BetweenNorm(nn.Identity(), math.nan),
    ],
)
def test_what_cannot_be_asked_is_refused(call):
    with pytest.raises((ValueError, TypeError)):
        call()


def test_the_penalty_s_starting_weight_is_a_hundredth_of_the_cross_entropy(model, tokens):
    report = audit(model, tokens, symmetries=False)
    (weight,) = (remedy.setting for remedy in report.remedies if remedy.name == "norm penalty")
    with torch.no_grad():
        states = unroll(model.step, model.embed(tokens), LOOPS)[1:]
    penalty = remedies.norm_penalty(states, weight).item()
    assert penalty == pytest.approx(0.01 * report.loops[LOOPS].cross_entropy, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "promised"), [("between-loop norm", "blind but removed"), ("damping", "blind but contracted")]
)
def test_the_printed_line_does_what_is_promised_where_the_residual_is_added_outside_of_the_block(
    name, promised, tokens
):
    class Outside(Model):
        def step(self, h):
            h = eval(line, {"h": h, "loopsight": loopsight, "rms": setting}) if line else h
            return h + (self.block(h) - h)

    line = setting = None
    torch.manual_seed(0)
    model = Outside()
    (remedy,) = (remedy for remedy in audit(model, tokens, symmetries=False).remedies if remedy.name == name)
    assert remedy.verdict == promised
    line, setting = remedy.line.removeprefix("h = "), remedy.setting
    assert scale(model, tokens) == promised


def rms_of(h):
    return h.square().mean(-1, keepdim=True).sqrt()


# By remedy: what its printed line sets, and to what.
PRINTED = {
    "norm penalty": ("loss", lambda model, states, setting: 1.0 + setting * torch.stack(states).square().mean()),
    "raw readout": ("logits", lambda model, states, setting: model.head(states[-1]) / setting),
    "final-only norm": (
        "readouts",
        lambda model, states, setting: [model.head(h) / setting for h in states[:-1]] + [model.readout(states[-1])],
    ),
    "between-loop norm": ("h", lambda model, states, setting: setting * states[-1] / rms_of(states[-1])),
    "damping": ("h", lambda model, states, setting: setting * states[-1]),
}


def test_every_printed_line_is_code_for_the_setting_beside_it(model, tokens):
    with torch.no_grad():
        states = unroll(model.step, model.embed(tokens), LOOPS)[1:]
        for remedy in audit(model, tokens, symmetries=False).remedies:
            assert remedy.name in PRINTED, f"add to PRINTED in tests/loopsight/test_remedies.py: {remedy.name}"
            name, expected = PRINTED[remedy.name]
            known = {"loss": 1.0, "states": states, "h": states[-1], "readout": model.readout, "num_loops": LOOPS}
            settings = dict.fromkeys(("weight", "reference", "rms"), remedy.setting)
            exec(remedy.line, scope := {"loopsight": loopsight} | known | settings)
            found = scope[name]
            if name == "readouts":
                found = [readout(h) for readout, h in zip(found, states, strict=True)]
            torch.testing.assert_close(found, expected(model, states, remedy.setting), rtol=1e-4, atol=1e-4)


def trained_norm(model, loss, *, steps=150, noise=0.5):
    """Mean norm at the last loop after a short training run: successors of a fixed table, some of them random."""
    with torch.no_grad():
        model.head.weight.mul_(8.0)  # a head for which the states are too large, to those who can see it
    successor = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(1))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        tokens = torch.randint(CLASSES, (16, 8), generator=generator)
        random = torch.randint(CLASSES, tokens.shape, generator=generator)
        targets = torch.where(torch.rand(tokens.shape, generator=generator) < noise, random, successor[tokens])
        states = [model.embed(tokens)]
        for _ in range(LOOPS):
            states.append(model.step(states[-1]))
        optimiser.zero_grad()
        loss(states[1:], targets).backward()
        optimiser.step()
    return states[-1].detach().norm(dim=-1).mean().item()


def cross_entropy(readout, states, targets):
    losses = [F.cross_entropy(readout(h).flatten(0, 1), targets.flatten()) for h in states]
    return torch.stack(losses).mean()


@pytest.fixture(scope="module")
def untreated():
    torch.manual_seed(0)
    model = Model()
    return trained_norm(model, lambda states, y: cross_entropy(model.readout, states, y))


def test_training_with_a_penalty_holds_the_norm(model, untreated):
    def loss(states, targets):
        return cross_entropy(model.readout, states, targets) + remedies.norm_penalty(states, 0.1)

    assert trained_norm(model, loss) < 0.5 * untreated


def trained_raw(model, **options):
    def loss(states, targets):
        return cross_entropy(lambda h: remedies.raw_readout(model.readout, h, 1.0), states, targets)

    return trained_norm(model, loss, **options)


def test_training_with_a_readout_that_sees_the_scale_holds_the_norm(model, untreated):
    assert trained_raw(model) < 0.8 * untreated


def test_but_on_data_that_can_be_fitted_wholly_it_does_not(model):
    """Negative control, theory P6: without a calibrated optimum the logits, and the norm, grow on."""
    noisy, fitted = (trained_raw(type(model)(), noise=noise, steps=250) for noise in (0.5, 0.0))
    assert fitted > 1.5 * noisy


@pytest.mark.parametrize("wrap", [remedies.BetweenNorm, lambda block: remedies.Damped(block, 0.5)])
def test_training_with_a_wrapped_block_stops_growth_over_loops(model, wrap):
    model.block = wrap(model.block)
    trained_norm(model, lambda states, y: cross_entropy(model.readout, states, y), steps=60)
    with torch.no_grad():
        h = model.embed(torch.arange(CLASSES)[None])
        norms = []
        for _ in range(32):
            h = model.step(h)
            norms.append(h.norm(dim=-1).mean().item())
    assert norms[31] == pytest.approx(norms[15], rel=0.05)
    assert scale(model, torch.arange(CLASSES)[None]) in ("blind but removed", "blind but contracted")


def test_remedies_hold_in_float16_and_at_a_zero_state():
    """Squares overflow float16 from 256 on; a zero state has no direction to normalise."""
    large = torch.full((2, 4), 300.0, dtype=torch.float16)
    assert remedies.norm_penalty([large], 1e-3).item() == pytest.approx(90.0, rel=1e-3)
    assert remedies.token_penalty(1e-3)(large).isfinite().all()
    zero = torch.zeros(2, WIDTH, requires_grad=True)
    value = remedies.BetweenNorm(nn.Identity())(zero)
    value.sum().backward()
    assert torch.equal(value, torch.zeros_like(value)) and zero.grad.isfinite().all()


def test_damping_that_a_gain_outgrows_predicts_no_norm(maps, tokens):
    """A tenth less of a gain of 2.5 still grows."""
    grown = LoopedMaps(
        embed=maps.embed, step=lambda h: 2.5 * maps.step(h), readout=maps.readout, num_loops=LOOPS, module=maps.module
    )
    found = {remedy.name: remedy for remedy in audit(grown, tokens, symmetries=False).remedies}
    assert found["damping"].l2_norm is None and found["damping"].verdict == "blind and active"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_a_state_of_any_size_is_normalised(dtype, size):
    h = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = 2.0 * h / h.square().mean(-1, keepdim=True).sqrt()
    found = remedies.rms_normalised((size * h).to(dtype), 2.0)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_the_normalisation_s_gradient_is_its_own_and_zero_at_a_zero_state():
    h = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(remedies.rms_normalised, h.clone().requires_grad_())
    h[1] = 0.0
    h.requires_grad_()
    (gradient,) = torch.autograd.grad(remedies.rms_normalised(h).sum(), h)
    assert gradient[1].eq(0.0).all() and gradient[0].ne(0.0).all() and gradient.isfinite().all()


def test_a_remedy_that_breaks_the_model_is_not_the_cheapest(maps, tokens, monkeypatch):
    """One whose loss is no number any more has no cost to be ranked by, and comes last."""
    monkeypatch.setattr("loopsight.auditing.advice._change", lambda *_: None)
    names = [remedy.name for remedy in audit(maps, tokens, symmetries=False).remedies]
    assert names == ["norm penalty", "final-only norm", "raw readout", "between-loop norm", "damping"]


def test_every_remedy_that_changes_the_maps_is_tried(maps, tokens):
    made = [name for name in vars(remedies) if name.startswith("with_")]
    tried = [remedy.name for remedy in audit(maps, tokens, symmetries=False).remedies if remedy.loss_change is not None]
    assert len(tried) == len(made), f"only {tried} have maps of {made} in `entries` of loopsight/auditing/advice.py"


def test_remedies_of_equal_cost_stand_as_they_are_listed(model):
    """Without targets none costs anything."""
    maps = LoopedMaps(embed=lambda h: h, step=model.step, readout=model.readout, num_loops=LOOPS, module=model)
    found = audit(maps, torch.randn(2, 6, WIDTH), symmetries=False).remedies
    assert [remedy.loss_change for remedy in found] == [None] * 5
    names = ["norm penalty", "raw readout", "final-only norm", "between-loop norm", "damping"]
    assert [remedy.name for remedy in found] == names


@pytest.fixture
def exact(model):
    """The maps in float64, so that what is measured in exact arithmetic is what they do."""
    model.double()
    return LoopedMaps(embed=model.embed, step=model.step, readout=model.readout, num_loops=LOOPS, module=model)


def test_a_remedy_costs_what_the_cross_entropy_gains_when_the_loop_runs_with_it(exact, tokens):
    def loss(maps):
        logits = maps.readout(unroll(maps.step, maps.embed(tokens), LOOPS)[-1])
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()

    found = audit(exact, tokens, symmetries=False).remedies
    settings = {remedy.name: remedy.setting for remedy in found}
    tried = {
        "raw readout": remedies.with_raw_readout(exact, settings["raw readout"]),
        "between-loop norm": remedies.with_between_norm(exact, settings["between-loop norm"]),
        "damping": remedies.with_damping(exact, settings["damping"]),
    }
    costs = {remedy.name: remedy.loss_change.estimate for remedy in found if remedy.loss_change is not None}
    with torch.no_grad():
        assert costs == pytest.approx({name: loss(maps) - loss(exact) for name, maps in tried.items()}, rel=1e-4)


@pytest.mark.parametrize("seed", [0, 2, 4])
def test_remedies_stand_by_what_they_cost_and_a_gain_costs_nothing(tokens, seed):
    torch.manual_seed(seed)
    found = audit(Model(), tokens, symmetries=False).remedies
    costs = [max(0.0, remedy.loss_change.estimate) if remedy.loss_change else 0.0 for remedy in found]
    assert costs == sorted(costs) and costs[-1] > 0.0
    listed = ["norm penalty", "raw readout", "final-only norm", "between-loop norm", "damping"]
    free = [remedy.name for remedy, cost in zip(found, costs, strict=True) if cost == 0.0]
    assert free == [name for name in listed if name in free]


def test_settings_keep_the_rms_that_the_model_has(exact, tokens):
    found = {remedy.name: remedy for remedy in audit(exact, tokens, symmetries=False).remedies}
    with torch.no_grad():
        states = unroll(exact.step, exact.embed(tokens), LOOPS)
        first, last = (states[k].square().mean(-1).sqrt().mean().item() for k in (1, LOOPS))
        rescaled = exact.step(remedies.rms_normalised(states[LOOPS], first)).norm(dim=-1).mean().item()
    assert found["raw readout"].setting == pytest.approx(last) == found["final-only norm"].setting
    assert found["between-loop norm"].setting == pytest.approx(first)
    assert found["between-loop norm"].l2_norm == pytest.approx(rescaled, rel=1e-6)


def test_damping_predicts_no_norm_for_a_decay_of_every_channel(exact, tokens):
    """Its displacement far out is the decay's, and no limit."""
    decay = torch.linspace(0.9, 1.1, WIDTH, dtype=torch.float64)
    uneven = dataclasses.replace(exact, step=lambda h: decay * h + (exact.step(h) - h))
    found = {remedy.name: remedy for remedy in audit(uneven, tokens, symmetries=False).remedies}
    assert found["damping"].l2_norm is None and found["damping"].verdict == "blind but contracted"

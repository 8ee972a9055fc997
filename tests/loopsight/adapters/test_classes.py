"""What the instruments say of every family: the classes that its structure implies, each beside a cut that differs."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from loopsight.adapters import discover, loop_layers
from loopsight.adapters.hrm_text import hrm_text_maps
from loopsight.adapters.ouro import ouro_maps
from loopsight.invariance import invariance
from loopsight.observability import activity, visibility
from loopsight.protocol import unroll


def examined(maps, tokens, action="scale"):
    """(invariance of the loss, activity of the scale, ratio of norms after a loop from a state four times as large)."""
    with torch.no_grad():
        h = unroll(maps.step, maps.embed(tokens), maps.num_loops)[-1]
        targets = tokens.flatten().roll(-1)
        generator = torch.Generator().manual_seed(0)
        verdict = invariance(
            lambda h: F.cross_entropy(maps.readout(h).flatten(0, 1), targets), h, generator=generator, action=action
        )
        ratio = maps.step(4 * h).norm(dim=-1) / maps.step(h).norm(dim=-1)
    return verdict, activity(maps.step, h, h), ratio


def test_hrm_text_is_blind_to_the_scale_and_does_not_carry_it(build, tokens):
    verdict, active, ratio = examined(discover(build("hrm_text"), tokens), tokens)
    assert verdict.verdict == "blind"
    assert active.max() < 1e-9
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-9)


def test_ouro_is_blind_to_the_scale_and_does_not_carry_it(build, tokens):
    verdict, active, ratio = examined(discover(build("ouro"), tokens), tokens)
    assert verdict.verdict == "blind"
    assert active.max() < 1e-9
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "cut_at"), [("hrm_text", hrm_text_maps), ("ouro", ouro_maps)])
def test_the_cut_decides(build, tokens, name, cut_at):
    """The same model behind its norm: there the scale is seen."""
    verdict, _, _ = examined(cut_at(build(name), tokens, cut="carried"), tokens)
    assert verdict.verdict == "sees" and verdict.ratio > 1e-2


def test_huginn_is_blind_to_the_scale_and_its_next_state_has_the_same_norm(build, tokens):
    verdict, active, ratio = examined(discover(build("huginn"), tokens), tokens)
    assert verdict.verdict == "blind"
    assert active.max() > 1e-3  # the direction moves: the state is mixed with the injection before it is normalised
    assert (ratio - 1).abs().max() < 0.2


def test_parcae_is_blind_in_the_limit_of_large_states_carries_the_scale_and_contracts_it(build, tokens):
    """The readout's own pre-norm layers see the scale, the less the larger the state is against what they add."""
    maps = discover(build("parcae"), tokens)
    verdict, active, _ = examined(maps, tokens)
    larger, _, _ = examined(dataclasses.replace(maps, readout=lambda h: maps.readout(1e3 * h)), tokens)
    assert verdict.verdict == "sees" and 0 < larger.ratio < 1e-2 * verdict.ratio
    assert 0.1 < active.min() and active.max() < 1.0
    with torch.no_grad():
        h = maps.embed(tokens)
        moved, own = unroll(maps.step, 8 * h, 8), unroll(maps.step, h, 8)
    ratios = [(x.norm() / y.norm()).item() for x, y in zip(moved, own, strict=True)]
    assert 1.5 < ratios[1] < 8.0 and abs(ratios[-1] - 1.0) < 0.1


def test_albert_sees_scale_and_mean_and_carries_neither(build, tokens):
    """The natural negative."""
    maps = discover(build("albert"), tokens)
    for action in ("scale", "shift"):
        verdict, _, ratio = examined(maps, tokens, action)
        assert verdict.verdict == "sees"
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-6)


def test_looped_prenorm_layers_are_blind_to_the_scale_and_carry_it(build, tokens):
    """The positive example that no public checkpoint is: pre-norm layers, nothing between the loops, one final norm."""
    maps = loop_layers(build("llama"), tokens, 4)
    verdict, active, ratio = examined(maps, tokens)
    assert verdict.verdict == "blind"
    assert active.min() > 0.3
    assert ratio.min() > 2.0


def test_the_scale_of_half_of_hrm_texts_state_is_not_what_the_readout_decodes(build, tokens):
    """h_L is not read before the next loop; the visibility of h_H's own direction is that of any other."""
    maps = discover(build("hrm_text"), tokens)
    h = maps.embed(tokens).detach()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(h.shape, generator=generator, dtype=h.dtype)
    half = torch.cat([torch.ones(16), torch.zeros(16)]).double()
    high = visibility(maps.readout, h, noise * half, generator=generator)
    low = visibility(maps.readout, h, noise * (1 - half), generator=generator)
    assert low.chi_uniform.max() < 1e-20 < 1e-1 < high.chi_uniform.min()
    assert (maps.step(h + 0.1 * noise * (1 - half)) - maps.step(h)).norm() > 1e-3 * h.norm()

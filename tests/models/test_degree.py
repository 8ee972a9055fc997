"""The degree a readout declares, R(c h) = c^p R(h), is the degree it has, and the one loopsight measures."""

import pytest
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from readouts import KINDS, readout_of

from loopsight import radial_gradient_fraction

READOUTS = [
    *(readout_of(kind) for kind in KINDS),
    readout_of("raw", tied=False),
    readout_of("rmsnorm", gain=False, tied=False),
    readout_of("layernorm", gain=False),
]
EXPONENTS = st.floats(-3.0, 3.0).filter(lambda exponent: abs(exponent) > 0.3)


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("readout", READOUTS, ids=lambda r: f"{r.kind}-gain={r.gain}-tied={r.tied}")
@given(exponent=EXPONENTS)
@settings(derandomize=True, deadline=None, max_examples=8)
def test_the_declared_degree_is_the_measured_one(build, states, readout, is_last, exponent):
    model = build(readout=readout, norm_eps=0.0).requires_grad_(False)
    c, degree = 10.0**exponent, model.readout_features.degree(is_last=is_last)
    scaled, unscaled = model.readout(c * states, is_last=is_last), model.readout(states, is_last=is_last)

    def error(degree: int) -> float:
        return ((scaled - c**degree * unscaled).abs().max() / scaled.abs().max()).item()

    assert error(degree) < 1e-12
    assert error(1 - degree) > 1e-2


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("readout", READOUTS, ids=lambda r: f"{r.kind}-gain={r.gain}-tied={r.tied}")
def test_degree_zero_is_what_makes_the_radial_gradient_vanish(build, states, targets, readout, is_last):
    model = build(readout=readout, norm_eps=0.0)

    def loss(h):
        return F.cross_entropy(model.readout(h, is_last=is_last).flatten(0, 1), targets.flatten())

    fraction = radial_gradient_fraction(loss, states)
    if model.readout_features.degree(is_last=is_last) == 0:
        assert fraction.max() < 1e-13
    else:
        assert fraction.min() > 1e-4

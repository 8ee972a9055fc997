"""Bad states are refused in one sentence that says what is wrong."""

import pytest
import torch

from loopsight import asymptotic_step, radial_gradient_fraction, regime_number
from loopsight.checks import require_states


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (
            torch.ones(2, 3, dtype=torch.int64),
            r"states must be a floating-point tensor .* got dtype torch.int64",
        ),
        (torch.ones(2, 3, dtype=torch.complex64), "states must be a floating-point tensor"),
        (torch.tensor(1.0), r"states must be a non-empty tensor .* got shape \(\)"),
        (torch.ones(0, 3), r"states must be a non-empty tensor .* got shape \(0, 3\)"),
        (torch.ones(3, 0), r"states must be a non-empty tensor .* got shape \(3, 0\)"),
        (torch.tensor([[1.0, float("nan")]]), "states holds NaN or infinite entries"),
        (torch.tensor([[1.0, -float("inf")]]), "states holds NaN or infinite entries"),
        (torch.tensor([[1.0, 2.0], [0.0, 0.0]]), "states holds a zero state"),
    ],
)
def test_bad_states_are_refused(h, message):
    with pytest.raises(ValueError, match=message):
        require_states(h, "states")


@pytest.mark.parametrize(
    "h",
    [
        torch.ones(3),
        torch.ones(2, 3, 4, dtype=torch.float64),
        torch.tensor([[0.0, 1e-30]]),  # a zero entry is no zero state, however small the rest
        torch.tensor([[-1.0, 0.0]]),
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.ones(2, 3, requires_grad=True),
    ],
)
def test_good_states_are_accepted(h):
    require_states(h)


@pytest.mark.parametrize(
    "instrument",
    [
        lambda h: radial_gradient_fraction(lambda h: h.sum(), h),
        lambda h: asymptotic_step(lambda h: h, h),
        lambda h: regime_number(lambda h: h, h),
    ],
    ids=["radial_gradient_fraction", "asymptotic_step", "regime_number"],
)
@pytest.mark.parametrize(
    ("h", "message"),
    [
        (torch.ones(0, 3), "h must be a non-empty tensor"),
        (torch.tensor([[1.0, float("nan")]]), "h holds NaN or infinite entries"),
        (torch.tensor([[1.0, 2.0], [0.0, 0.0]]), "h holds a zero state"),
    ],
)
def test_every_instrument_refuses_them(instrument, h, message):
    with pytest.raises(ValueError, match=message):
        instrument(h)

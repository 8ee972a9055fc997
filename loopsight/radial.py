"""How much of a loss's gradient at a state points along the state itself.

Convention: every leading index of a state tensor is a token, and each token's state has its own radius.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from loopsight.checks import require_states


def radial_gradient_fraction(loss: Callable[[Tensor], Tensor], h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """r = |<g, h>| / (|g| |h|) of every token's state, g = gradient of `loss` at `h`.

    0 means that the loss does not see the state's scale to first order; 1 that it sees nothing else; a random
    direction gives about sqrt(2 / (pi d)). The floor is about 1e-16 in float64, 1e-8 in float32 and 5e-4 in
    bfloat16, so only float64 (parameters included) can tell an epsilon leak from rounding. A token whose gradient
    is exactly zero, or NaN, has no fraction: NaN, never 0.

    Args:
        loss: state tensor to scalar, differentiable in reverse mode.
        h: states, (..., d), any floating dtype; computed in that dtype.

    Returns:
        Fractions in [0, 1], shape (...).

    Raises:
        ValueError: h is not a finite nonzero float tensor, or the loss is not a differentiable scalar of h.

    Source: arXiv 2606.24898, section 5 (radial gradient fraction).
    """
    require_states(h)
    h = h.detach().clone().requires_grad_()  # a clone, since states made in inference mode cannot require gradients
    with torch.enable_grad():
        value = loss(h)
    if value.ndim != 0:
        raise ValueError(f"the loss must be a scalar, got shape {tuple(value.shape)}.")
    gradient = torch.autograd.grad(value, h, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        raise ValueError("the loss does not depend on h by differentiable operations (a no-grad region or a detach?).")
    # Directions first: squares of a small gradient underflow in float32.
    gradient, h = (x / x.abs().amax(-1, keepdim=True) for x in (gradient, h.detach()))
    radial = (gradient * h).sum(-1).abs()
    fraction = radial / (gradient.norm(dim=-1) * h.norm(dim=-1))
    return fraction.clamp(max=1.0)  # rounding can carry a radial gradient just above 1

"""How much of a state is one vector, the same for every token.

With m the mean state over tokens, h_t = m + r_t. A blind readout sees no token's scale, <G_t, h_t> = 0, so that
sum_t <G_t, m> = -sum_t <G_t, r_t>: to its loss a larger common vector is what smaller differences between tokens are.
A readout that sees the scale tells the two apart.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from loopsight.checks import require_floating_tensor, require_states


def common_vector(h: Float[Tensor, "*tokens d"]) -> Float[Tensor, " d"]:
    """The mean state over all tokens, in the dtype of `h`.

    Raises:
        ValueError: h is not a finite float tensor of nonzero states.

    Source: Mu and Viswanath, arXiv 1702.01417 (of word vectors).
    """
    require_states(h)
    return h.reshape(-1, h.shape[-1]).mean(0)


def common_fraction(h: Float[Tensor, "*tokens d"]) -> Float[Tensor, ""]:
    """|mean h|^2 / mean |h|^2 over all tokens: 1 where every token has the same state, about 1/n for n independent ones
    without a mean, 0 where they cancel.

    Args:
        h: states, (..., d), any floating dtype; computed in that dtype.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: h is not a finite float tensor of nonzero states.
    """
    mean = common_vector(h)
    largest = h.detach().abs().max()  # squares of large states overflow in half precision
    return ((mean / largest).square().sum() / (h / largest).square().sum(-1).mean()).clamp(max=1.0)


def common_derivative(gradient: Float[Tensor, "*tokens d"], h: Float[Tensor, "*tokens d"]) -> Float[Tensor, ""]:
    """sum_t <G_t, m>: what a loss gains when the common vector grows e-fold and the differences stay, to first order.

    In the loss's units. Negative: the loss falls as the common vector grows.

    Args:
        gradient: G, of the loss with respect to every token's state, (..., d).
        h: the states it was taken at, (..., d).

    Raises:
        ValueError: h is not a finite float tensor of nonzero states, or the gradient not one of its shape.
    """
    mean = common_vector(h)
    require_floating_tensor(gradient, "the gradient")
    if gradient.shape != h.shape or not torch.isfinite(gradient).all():
        raise ValueError(
            f"the gradient must be finite and of the states' shape, {tuple(h.shape)}, got {tuple(gradient.shape)}."
        )
    return gradient.reshape(-1, h.shape[-1]).sum(0) @ mean

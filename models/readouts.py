"""Readouts: state to features; the head, a linear map, makes logits of the features.

A readout declares its degree of homogeneity p, R(c h) = c^p R(h) at eps = 0: 1 for raw, 0 for normalised. The
declaration is tested against the degree that `loopsight` measures.
"""

from jaxtyping import Float
from torch import Tensor, nn

from models.config import ModelConfig, NormKind
from models.norms import Norm


class RawReadout(nn.Module):
    """The state itself, at every loop."""

    def forward(self, h: Float[Tensor, "*batch d"], *, is_last: bool) -> Float[Tensor, "*batch d"]:
        return h

    def degree(self, *, is_last: bool) -> int:
        return 1


class NormedReadout(nn.Module):
    """The normalised state, at every loop."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, h: Float[Tensor, "*batch d"], *, is_last: bool) -> Float[Tensor, "*batch d"]:
        return self.norm(h)

    def degree(self, *, is_last: bool) -> int:
        return 0


class FinalNormReadout(NormedReadout):
    """The state itself at every loop but the last, where it is normalised."""

    def forward(self, h: Float[Tensor, "*batch d"], *, is_last: bool) -> Float[Tensor, "*batch d"]:
        return self.norm(h) if is_last else h

    def degree(self, *, is_last: bool) -> int:
        return 0 if is_last else 1


Readout = RawReadout | NormedReadout


def build_readout(config: ModelConfig) -> Readout:
    readout = config.readout

    def norm(kind: NormKind) -> Norm:
        return Norm(kind, config.d_model, config.norm_eps, affine=readout.gain, num_groups=readout.num_groups or 1)

    match readout.kind:
        case "raw":
            return RawReadout()
        case "raw_final_rmsnorm":
            return FinalNormReadout(norm("rmsnorm"))
        case "rmsnorm" | "group_rmsnorm":
            return NormedReadout(norm("rmsnorm"))
        case "layernorm" | "group_layernorm":
            return NormedReadout(norm("layernorm"))

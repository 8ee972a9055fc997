"""The operation N at the entrance of every loop: nothing, RMSNorm (removes the scale), damping (contracts it)."""

from jaxtyping import Float
from torch import Tensor, nn

from models.config import ModelConfig
from models.norms import Norm


class Damping(nn.Module):
    """h -> factor h."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return self.factor * h


def build_between(config: ModelConfig) -> nn.Module:
    match config.between.kind:
        case "none":
            return nn.Identity()
        case "rmsnorm":
            return Norm("rmsnorm", config.d_model, config.norm_eps)
        case "damping":
            assert config.between.factor is not None  # ensured by BetweenConfig
            return Damping(config.between.factor)

"""Models that have embed, step and readout already; nothing is recorded or replaced."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from loopsight.adapters.exact import exact
from loopsight.protocol import LoopedMaps, LoopedModel


def own_maps(model: LoopedModel, batch: Any, num_loops: int | None = None) -> LoopedMaps:
    """The model's own maps, K from its `num_loops` or its config's.

    A mapping as batch is embedded by its only value, or by its `input_ids` or `tokens`.

    Raises:
        ValueError: K is not to be found, or the model is in training mode.
    """
    for owner in (model, getattr(model, "config", None)):
        num_loops = getattr(owner, "num_loops", None) if num_loops is None else num_loops
    if not isinstance(num_loops, int):
        raise ValueError(
            f"{type(model).__name__} has embed, step and readout, but its num_loops is unknown: "
            "pass num_loops to the audit, or build LoopedMaps(embed=..., step=..., readout=..., num_loops=...)."
        )
    module = model if isinstance(model, nn.Module) else None
    if module is not None and module.training:
        raise ValueError(f"{type(model).__name__} is in training mode: call model.eval() first.")

    def embed(batch: Any) -> Tensor:
        with exact(nn.Identity() if module is None else module):
            return model.embed(_tokens(batch))

    embed(batch)  # a batch that does not fit is refused now
    return LoopedMaps(
        embed=embed,
        step=model.step,
        readout=model.readout,
        num_loops=num_loops,
        module=module,
        sublayers=tuple(getattr(model, "sublayers", ())),
        name=type(getattr(model, "_orig_mod", model)).__name__,
    )


def _tokens(batch: Any) -> Any:
    if not isinstance(batch, Mapping):
        return batch
    names = [
        name for name in ("input_ids", "tokens", *batch) if name in batch and (len(batch) == 1 or name != "labels")
    ]
    return batch[names[0]]

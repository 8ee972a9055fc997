"""Huginn (remote code) and Parcae (authors' package): prelude, a looped core that takes its output in again, coda.

    h_{k+1} = core(adapter(h_k, e)),  e the prelude's output;  logits = readout(h_K)

Both keep their parts in `transformer`. The audited state is what the core returns and the adapter takes, K of them.

- Huginn: the last layer of the core normalises behind its add (norm_4), and the readout is ln_f, coda, ln_f again,
  lm_head: blind to the scale, and the scale is not carried. Default K is the config's mean_recurrence.
- Parcae: the adapter decays the state channel by channel and adds the injection; nothing normalises it. The readout
  starts with a linear map C into a pre-norm coda, so the scale is nearly blind, carried, and contracted.

Both start from a random state, drawn here from seed 0 (Huginn: or the batch's input_states), and loop without gradient
in evaluation mode; these maps have it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from loopsight.adapters.exact import arguments
from loopsight.adapters.family import Family, has
from loopsight.adapters.segments import in_sequence, maps, of_path, record, replay, tail
from loopsight.protocol import LoopedMaps

PARTS = ("transformer.wte", "transformer.adapter", "transformer.core_block.0", "transformer.coda", "lm_head")


def huginn_maps(model: nn.Module, batch: Any) -> LoopedMaps:
    """The maps of one pass through Huginn's core; num_steps and input_states of the batch are respected.

    Raises:
        ValueError: noise is injected into the state, which leaves no map; or as `loopsight.adapters.discover`.
    """
    if getattr(getattr(model, "config", None), "test_time_noise", 0):
        raise ValueError("this Huginn model adds noise in every loop: set config.test_time_noise to 0.")
    return _core_maps(model, batch, _keywords(model, batch), "Huginn, state at the output of core_block")


def parcae_maps(model: nn.Module, batch: Any) -> LoopedMaps:
    """The maps of one pass through Parcae's core.

    Raises:
        ValueError: as `loopsight.adapters.discover`.
    """
    wanted = {"return_logits": True, **_keywords(model, batch)}
    return _core_maps(model, batch, wanted, "Parcae, state at the output of core_block")


def _keywords(model: nn.Module, batch: Any) -> dict[str, Any]:
    args, kwargs = arguments(batch)
    return {**({"input_ids": args[0]} if args else {}), **kwargs}


def _core_maps(model: nn.Module, batch: Any, inputs: dict[str, Any], name: str) -> LoopedMaps:
    adapter = "transformer.adapter"
    core = [path for path, _ in model.named_modules() if path.removeprefix("transformer.core_block.").isdigit()]
    calls, output = record(model, inputs, adapter, *core)
    adapters = of_path(calls, adapter)
    stack = [calls[path, 0] for path in core]
    width = stack[-1].state.shape[-1]  # type: ignore[union-attr]

    def injected(h: Tensor) -> Tensor:
        first = adapters[0]
        if len(first.args) > 1:
            return replay(first, h, 0)
        return first.module(torch.cat([h, first.args[0][..., width:].to(h)], dim=-1))

    return maps(
        model,
        batch,
        embed=lambda: _entering(record(model, inputs, adapter)[0][adapter, 0], width),
        step=lambda h: in_sequence(stack, injected(h)),
        readout=lambda h: tail(model, inputs, stack, h),
        states=[
            _entering(adapters[0], width),
            *(call.state for call in of_path(calls, core[-1]) if call.state is not None),
        ],
        output=output,
        name=name,
    )


def _entering(adapter_call: Any, width: int) -> Tensor:
    return adapter_call.args[0][..., :width]


HUGINN = Family(
    name="Huginn",
    looks_for="transformer.wte, adapter (a Linear), core_block, coda and ln_f, and lm_head",
    recognises=lambda model: (
        has(model, *PARTS, "transformer.ln_f") and isinstance(model.get_submodule("transformer.adapter"), nn.Linear)
    ),
    maps=huginn_maps,
)
PARCAE = Family(
    name="Parcae",
    looks_for="transformer.wte, adapter, core_block, C, coda and ln_f, and lm_head",
    recognises=lambda model: has(model, *PARTS, "transformer.C"),
    maps=parcae_maps,
)

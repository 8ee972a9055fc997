"""How many loops until a residual stream stored in bfloat16 or float16 stops moving: predicted from h_K, and run."""

import math

import pandas as pd
import torch
from torch import Tensor, nn

from experiments.measure.context import FAR_LOOPS, Context
from loopsight.precision import LowPrecisionRun, low_precision_run, predicted_freeze
from models import LoopedLM

WINDOWS, TOKENS = 2, 16
MAX_LOOPS = {torch.bfloat16: 1024, torch.float16: 4096}  # a constant step needs at most 1.5 x 256 and 1.5 x 2048


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """`precision`: dtype, loops_predicted, loops_seen, moving_fraction_at_64, overflow_loop.

    Loops are counted from h_K, and are medians over tokens; a token stops when its last coordinate does. Predicted:
    the displacement of loop K + 1, taken as constant (theory P17), which it is where the regime number is small and
    the direction has settled. loops_seen is empty where half of the tokens still moved after 1024 (bfloat16) or 4096
    (float16) loops, or the format overflowed first, at overflow_loop. Only the stream is kept in the format, the
    branches are computed in float32.
    """
    inputs = context.windows[:WINDOWS, :TOKENS]
    with torch.no_grad():
        h = context.model(inputs)[-1].float()
        rows = [_row(context.model, h, dtype) for dtype in MAX_LOOPS]
    return {"precision": pd.DataFrame(rows)}


def _row(model: LoopedLM, h: Tensor, dtype: torch.dtype) -> dict[str, object]:
    predicted = predicted_freeze(h, model.step(h) - h, dtype).loops.amax(-1).median().item()
    first, whole = _run(model, h, dtype)
    overflowed = not whole.states.isfinite().all()
    stopped = whole.stopped.float().mean().item() > 0.5 and not overflowed
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "loops_predicted": predicted,
        "loops_seen": whole.moved.median().item() if stopped else math.nan,
        "moving_fraction_at_64": 1.0 - first.stopped.float().mean().item(),
        "overflow_loop": whole.moved.max().item() if overflowed else math.nan,
    }


def _run(model: LoopedLM, h: Tensor, dtype: torch.dtype) -> tuple[LowPrecisionRun, LowPrecisionRun]:
    """The run up to loop 64, and the whole of it."""
    sublayers = list(model.sublayers)
    if not isinstance(model.between, nn.Identity):
        sublayers.insert(0, model.between)  # its result, too, is rounded to the format
    first = low_precision_run(sublayers, h, dtype, FAR_LOOPS)
    if first.stopped.all() or not first.states.isfinite().all():
        return first, first
    rest = low_precision_run(sublayers, first.states.to(h.dtype), dtype, MAX_LOOPS[dtype] - FAR_LOOPS)
    moved = torch.where(rest.moved > 0, FAR_LOOPS + rest.moved, first.moved)
    return first, LowPrecisionRun(states=rest.states, moved=moved, stopped=rest.stopped)

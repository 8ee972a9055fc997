"""Cross-entropy by loop and under clamps of the norm, in the model's own precision, with bootstrap intervals."""

import torch
import torch.nn.functional as F
from torch import Tensor

from loopsight.auditing.report import Interval, LossReport
from loopsight.auditing.subject import IGNORED, Subject
from loopsight.protocol import LoopedMaps, unroll

RESAMPLES = 2_000
AT_ONCE = 2**22  # units drawn in one piece: 2000 resamples of a long text's tokens would fill the memory
SEQUENCES = 8  # from so many on, whole sequences are drawn, since tokens of one are not independent


@torch.no_grad()
def token_losses(maps: LoopedMaps, h: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every token behind one state, (...), float64; NaN where there is no target."""
    logits = maps.readout(h)
    wide = logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(wide, targets.flatten(), ignore_index=IGNORED, reduction="none").double()
    return losses.view(targets.shape).masked_fill(targets == IGNORED, torch.nan)


def by_loop(subject: Subject) -> list[Tensor]:
    """`token_losses` after loops 1..2K.

    Raises:
        ValueError: the subject has no targets.
    """
    if subject.targets is None:
        raise ValueError("without targets there is no cross-entropy.")
    return [token_losses(subject.maps, h, subject.targets) for h in subject.states[1:]]


@torch.no_grad()
def loss_report(subject: Subject, losses: list[Tensor]) -> LossReport:
    """The K-gap, the change past the trained depth, and what two clamps of the norm do; see the report's fields."""
    maps, targets, states, last = subject.maps, subject.targets, subject.states, subject.num_loops
    assert targets is not None  # by_loop has run
    trained = losses[last - 1]
    held = states[1].norm(dim=-1, keepdim=True)

    def at_first_norm(h: Tensor) -> Tensor:
        return h * (held / h.norm(dim=-1, keepdim=True))

    clamped = unroll(lambda h: at_first_norm(maps.step(h)), states[1], last - 1)[-1]
    return LossReport(
        k_gap=bootstrap(losses[0] - trained) if last > 1 else None,
        beyond=bootstrap(losses[2 * last - 1] - trained),
        decode_clamp=bootstrap(token_losses(maps, at_first_norm(states[last]), targets) - trained),
        recurrent_clamp=bootstrap(token_losses(maps, clamped, targets) - trained),
    )


def bootstrap(values: Tensor) -> Interval:
    """Mean of the values that are not NaN, with its 95 % percentile interval over sequences, or tokens if few.

    Args:
        values: (..., time), one sequence a row.
    """
    rows = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values[:, None]
    sequences = len(rows) >= SEQUENCES
    units = rows if sequences else rows.reshape(-1, 1)
    known = ~units.isnan()
    sums, counts = units.nan_to_num().sum(1).cpu(), known.sum(1).double().cpu()
    sums, counts = sums[counts > 0], counts[counts > 0]
    generator = torch.Generator().manual_seed(0)
    means = torch.cat(
        [
            sums[drawn].sum(1) / counts[drawn].sum(1)
            for rows in torch.arange(RESAMPLES).split(max(1, AT_ONCE // len(sums)))
            for drawn in [torch.randint(len(sums), (len(rows), len(sums)), generator=generator)]
        ]
    )
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    estimate = (sums.sum() / counts.sum()).item()
    return Interval(estimate=estimate, low=low, high=high, unit="sequences" if sequences else "tokens", count=len(sums))

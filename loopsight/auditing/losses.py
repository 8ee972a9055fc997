"""Cross-entropy by loop and under clamps of the norm, in the model's own precision, with intervals."""

import torch
import torch.nn.functional as F
from torch import Tensor

from loopsight.auditing.report import Interval, LossReport
from loopsight.auditing.subject import IGNORED, Subject
from loopsight.protocol import LoopedMaps, unroll

RESAMPLES = 2_000
AT_ONCE = 2**22  # units drawn in one piece: 2000 resamples of a long text's tokens would fill the memory
SEQUENCES = 8  # from so many on they are drawn with replacement
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447)  # 97.5 % quantiles for 1 to 6 degrees of freedom


@torch.no_grad()
def token_losses(maps: LoopedMaps, h: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every token behind one state, (...), float64; NaN where there is no target, and there only:
    infinite logits have an infinite loss."""
    logits = maps.readout(h)
    wide = logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(wide, targets.flatten(), ignore_index=IGNORED, reduction="none").double()
    losses = losses.masked_fill(losses.isnan(), torch.inf)
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
    held = states[1].double().norm(dim=-1, keepdim=True)

    def at_first_norm(h: Tensor) -> Tensor:
        wide = h.double()  # in float16 a norm overflows before its entries do
        return (wide * (held / wide.norm(dim=-1, keepdim=True))).to(h.dtype)

    clamped = unroll(lambda h: at_first_norm(maps.step(h)), states[1], last - 1)[-1]
    return LossReport(
        k_gap=mean_change(losses[0], trained) if last > 1 else None,
        beyond=mean_change(losses[2 * last - 1], trained),
        decode_clamp=mean_change(token_losses(maps, at_first_norm(states[last]), targets), trained),
        recurrent_clamp=mean_change(token_losses(maps, clamped, targets), trained),
    )


def mean_change(after: Tensor, before: Tensor) -> Interval | None:
    """`mean_interval` of the difference of two `token_losses`; None where one is not finite, or of one token."""
    finite = not (after.isinf().any() or before.isinf().any())
    return mean_interval(after - before) if finite and (~after.isnan()).sum() > 1 else None


def mean_interval(values: Tensor) -> Interval:
    """Mean of the values that are not NaN, with its 95 % interval over sequences, or over the tokens of a single one.

    Percentile bootstrap, but Student's t where sequences are few: then its intervals are much too narrow.

    Args:
        values: (..., time), one sequence a row; at least two values are not NaN, none is infinite.
    """
    rows = values.reshape(-1, values.shape[-1])
    known = ~rows.isnan()
    rows, known = rows[known.any(1)], known[known.any(1)]
    sequences = len(rows) > 1
    units, counted = (rows, known) if sequences else (rows[known][:, None], known[known][:, None])
    sums, counts = units.nan_to_num().sum(1).cpu(), counted.sum(1).double().cpu()
    estimate = (sums.sum() / counts.sum()).item()
    low, high = _student(sums, counts) if sequences and len(sums) < SEQUENCES else _bootstrap(sums, counts)
    return Interval(estimate=estimate, low=low, high=high, unit="sequences" if sequences else "tokens", count=len(sums))


def _student(sums: Tensor, counts: Tensor) -> tuple[float, float]:
    """Of a ratio of sums, linearised."""
    n, estimate = len(sums), sums.sum() / counts.sum()
    error = ((sums - estimate * counts).square().sum() * n / (n - 1)).sqrt() / counts.sum()
    half = STUDENT[n - 2] * error
    return (estimate - half).item(), (estimate + half).item()


def _bootstrap(sums: Tensor, counts: Tensor) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    means = torch.cat(
        [
            sums[drawn].sum(1) / counts[drawn].sum(1)
            for rows in torch.arange(RESAMPLES).split(max(1, AT_ONCE // len(sums)))
            for drawn in [torch.randint(len(sums), (len(rows), len(sums)), generator=generator)]
        ]
    )
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return low, high

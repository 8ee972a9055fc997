"""Remedies for a scale that is blind and active: predicted from the model as it is, tried on it where that means
something, and ranked by what they cost it now (penalty and readouts leave a trained model's last loss nearly as it is;
a norm or damping between loops changes its computation and wants training from there)."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from loopsight import remedies
from loopsight.auditing.directions import ACTIVE
from loopsight.auditing.forecast import has_limit
from loopsight.auditing.losses import mean_change, token_losses
from loopsight.auditing.report import Interval, Remedy
from loopsight.auditing.subject import Subject
from loopsight.growth import AsymptoticStep
from loopsight.protocol import LoopedMaps, unroll

DAMPING = 0.9
PENALTY_SHARE = 0.01  # of the cross-entropy, at the states as they are


@torch.no_grad()
def advise(subject: Subject, far: AsymptoticStep, step: Callable[[Tensor], Tensor], h: Tensor) -> tuple[Remedy, ...]:
    """Cheapest first; what makes the model's loss infinite as it is last.

    Args:
        far: the step far out, from `h`, states (..., d) float64; `step` in exact arithmetic.
    """
    maps = subject.maps
    last = subject.states[subject.num_loops].double()
    mean_square = sum(h.double().square().mean().item() for h in subject.states[1 : subject.num_loops + 1])
    mean_square /= subject.num_loops
    rms = last.square().mean(-1).sqrt().mean().item()
    first = subject.states[1].double().square().mean(-1).sqrt().mean().item()
    rescaled = step(remedies.rms_normalised(h, first)).norm(dim=-1).mean().item()
    kept = DAMPING * far.gain.median().item()
    settles = kept < 1.0 and has_limit(far, h)
    damped = (far.displacement.norm(dim=-1) / (1.0 - kept)).mean().item() if settles else None
    # Without and with a remedy by the same arithmetic.
    targets, trained = subject.targets, subject.states[subject.num_loops]
    losses = None if targets is None else token_losses(maps, trained, targets)
    loss = None if losses is None or losses.isinf().any() else losses.nanmean().item()
    penalty = Remedy(
        name="norm penalty",
        verdict="visible",
        l2_norm=None,
        loss_change=None,
        setting=None if loss is None else PENALTY_SHARE * loss / mean_square,
        effect="the loss sees the scale through the penalty; this weight makes it 1 % of today's cross-entropy, "
        "raise it until norms stop growing (0.01 when training from unit scale)",
        line="loss = loss + loopsight.remedies.norm_penalty(states, weight)",
    )
    raw = Remedy(
        name="raw readout",
        verdict="visible",
        l2_norm=None,
        loss_change=None,
        setting=rms,
        effect="logits grow with the state, so cross-entropy pins the scale in training (without a norm to rescale "
        "untied writers into it, it is the product of writers and head that is pinned)",
        line="logits = loopsight.remedies.raw_readout(readout, h, reference)",
    )
    final_only = Remedy(
        name="final-only norm",
        verdict="blind at the last loop, visible at the others",
        l2_norm=None,
        loss_change=None,
        setting=rms,
        effect="the losses of the earlier loops see the scale, the last readout stays as it is",
        line="readouts = loopsight.remedies.final_only_readouts(readout, num_loops, reference)",
    )
    between = Remedy(
        name="between-loop norm",
        verdict="blind but removed",
        l2_norm=rescaled,
        loss_change=None,
        setting=first,
        effect="no loop inherits the scale: norms stop growing over loops, though not over training, where a loop's "
        "own update can grow; at the first entrance it is h_0 that gets this rms, which raised norms in training where "
        "it raised h_0 (seen with tied N(0, 1) embeddings); from loop 2 on it kept them down in both small models "
        "tried, at a higher loss in that one (results/remedies)",
        line="h = loopsight.remedies.rms_normalised(h, rms)  # at the entrance of every loop",
    )
    damping = Remedy(
        name="damping",
        verdict="blind but contracted" if kept < ACTIVE else "blind and active",
        l2_norm=damped,
        loss_change=None,
        setting=DAMPING,
        effect="every loop keeps this share of the scale: norms settle at |b| / (1 - factor) or below",
        line=f"h = {DAMPING} * h  # at the entrance of every loop",
    )
    # Each with the maps to try it on, None where the last loss stays as it is; of equal cost the first comes first.
    entries: list[tuple[Remedy, LoopedMaps | None]] = [
        (penalty, None),
        (raw, remedies.with_raw_readout(maps, rms)),
        *([(final_only, None)] if subject.num_loops > 1 else []),
        (between, remedies.with_between_norm(maps, first)),
        (damping, remedies.with_damping(maps, DAMPING)),
    ]
    costed = []
    for remedy, changed in entries:
        change = None if changed is None else _change(subject, losses, changed)
        broken = changed is not None and loss is not None and change is None
        cost = math.inf if broken else 0.0 if change is None else max(0.0, change.estimate)
        costed.append((cost, dataclasses.replace(remedy, loss_change=change)))
    return tuple(remedy for _, remedy in sorted(costed, key=lambda entry: entry[0]))


def _change(subject: Subject, losses: Tensor | None, maps: LoopedMaps) -> Interval | None:
    """Cross-entropy at K under the remedy less that without; None without targets or where it is not finite."""
    if losses is None or subject.targets is None:
        return None
    h = subject.states[subject.num_loops]
    if maps.step is not subject.maps.step:
        h = unroll(maps.step, subject.states[0], subject.num_loops)[-1]
    return mean_change(token_losses(maps, h, subject.targets), losses)

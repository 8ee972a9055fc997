"""The audit, from a model and a batch to a report."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from loopsight.auditing import gauge as gauges
from loopsight.auditing.advice import advise
from loopsight.auditing.blindspots import BlindSpace, blind_space, unsearched
from loopsight.auditing.directions import SEEN, Bench, isotropic, judge, moved_together, scale_action, seen_when_moved
from loopsight.auditing.exact import exact_arithmetic
from loopsight.auditing.families import families
from loopsight.auditing.forecast import growth
from loopsight.auditing.losses import by_loop, loss_report
from loopsight.auditing.report import (
    VERSION,
    AuditReport,
    Calibration,
    Direction,
    Gauge,
    LoopRow,
    Remedy,
)
from loopsight.auditing.subject import Subject, as_maps, at_rest, prepare
from loopsight.checks import is_whole
from loopsight.derivatives import directional_derivative
from loopsight.growth import AsymptoticStep, asymptotic_step
from loopsight.invariance import Invariance
from loopsight.observability import drive
from loopsight.protocol import unroll
from loopsight.radial import degree
from loopsight.responses import StateMap

ACTION_TOKENS = 64  # moved in the finite test, where the readout treats every token by itself
SEARCHES = (2, 8)  # tokens searched for blind directions, fewest and most
SEARCH_COST = 2e11  # multiply-adds that decide between them
OBSERVED_COST = 3e11  # multiply-adds of the loops beyond 2 K up to which 4 K, or 8 K, are really run
ROW_TOKENS = 16  # a batch of sequences at least so long is analysed on its first one, losses on all


def audit(
    model: Any,
    batch: Any,
    *,
    targets: Tensor | None = None,
    num_loops: int | None = None,
    paths: str | Sequence[str] | None = None,
    groups: int | None = None,
    penalty: StateMap | None = None,
    symmetries: bool | None = None,
    seed: int = 0,
) -> AuditReport:
    """What a looped model's loss cannot see of its state, whether the recurrence keeps it, and what would help.

    The loss is any cross-entropy of the logits. One that reads the state in another way too (a halting unit, an
    auxiliary head) sees what that shows it: append such outputs to the logits of `readout`, or give it as `penalty`.

    Nothing is assumed of the architecture. Blind directions are searched for with no hint, at several tokens' states;
    finite motions of the states decide, derivatives measure. Everything that needs it is recomputed in float64, with
    the weights as they are, in whatever dtype and on whatever device; compiled callables are run uncompiled.

    Args:
        model: `loopsight.protocol.LoopedMaps`, or a module with their three methods, or any module that
            `loopsight.adapters` recognises. Weights and modes are left as they were.
        batch: what `embed` takes; token ids (batch, time), or a mapping with `input_ids`, bring their own targets. Use
            data, not noise: the states should be typical of the model.
        targets: class of every token (..., ), int64, -100 for none. When not given: the batch's `labels` as
            `transformers` has them (at the token itself, shifted here for a causal model), else the next token if no
            loop looks ahead; none at padding (`attention_mask`).
        num_loops: K, as trained; needed if the model does not say it.
        paths: where to cut a module that can be cut at several places, as `loopsight.adapters.discover` takes it.
        groups: number of equal groups of channels to ask about; detected when not given.
        penalty: a penalty on the state that the training loss has, states (..., d) to its weighted value per token.
        symmetries: count scaling symmetries of the parameters (as many backward passes as tensors); when None, if
            that is cheap.
        seed: of random motions, labels and probes.

    Raises:
        ValueError: one sentence saying what of model, batch, targets or penalty is wrong. A model that cannot be judged
            is no error: the report is not `valid` and says why.

    Source: this project; theory/ P1, P3, P4, P8, P10, P11, P13, P17.
    """
    started = time.perf_counter()
    if torch.is_inference_mode_enabled():
        raise ValueError("an audit takes derivatives: call it outside torch.inference_mode().")
    with at_rest(model):
        maps = as_maps(model, batch, num_loops, paths)
    with at_rest(maps.module):
        subject = prepare(maps, batch, targets)
        width = subject.audited.shape[-1]
        if groups is not None and (not is_whole(groups) or groups < 2 or width % groups):
            raise ValueError(f"groups must be at least 2 and divide the width of the state, {width}, got {groups}.")
        if penalty is not None:
            _require_penalty(penalty, subject.audited)
        return _audit(subject, groups, penalty, symmetries, seed, started)


def _audit(
    subject: Subject, groups: int | None, penalty: StateMap | None, symmetries: bool | None, seed: int, started: float
) -> AuditReport:
    maps, last = subject.maps, subject.num_loops
    notes: list[str] = []
    generator = torch.Generator(subject.audited.device).manual_seed(seed)
    with torch.no_grad(), exact_arithmetic(maps.module):
        rows = _independent_rows(maps.step, maps.readout, subject.audited)
        h = subject.audited[:rows]
        bench = _bench(subject, h, penalty, generator)
        bench = _confirmed(bench, notes)
        spaces = _search(bench, notes)
        scale = scale_action(bench)
        calibration = _calibration(scale, spaces)
        judged = _judged(bench, scale, spaces, groups)
        if not calibration.valid:
            judged = tuple(replace(direction, verdict="undecided") for direction in judged)
        notes += _unsaid(bench, judged)
        classes = bench.action_readout(bench.action_states).shape[-1]
        readout_degree = _degree(bench)
        far = asymptotic_step(maps.step, h)
        grown = growth(maps.step, subject.states[1][:rows].double(), h, far, last, _observed(subject, rows))
        remedies = _remedies(subject, judged, far, h) if calibration.valid else ()
    losses = by_loop(subject) if subject.targets is not None else None
    loss = None if losses is None else loss_report(subject, losses)
    if loss is None:
        notes.append("no targets, so no cross-entropy: pass targets (token ids bring them to causal models only).")
    counted = _gauge(subject, symmetries, notes)
    module = maps.module
    if any(direction.deferred is None for direction in judged):
        notes.append("no deferred visibility: no direction of the state reaches the logits of later loops.")
    return AuditReport(
        version=VERSION,
        name=maps.name,
        dtype=str(subject.states[0].dtype).removeprefix("torch."),
        device=str(subject.states[0].device),
        parameters=None if module is None else sum(p.numel() for p in module.parameters()),
        tokens=subject.states[0][..., 0].numel(),
        width=h.shape[-1],
        classes=classes,
        num_loops=last,
        valid=calibration.valid,
        calibration=calibration,
        directions=judged,
        least_visible=_least_visible(spaces),
        readout_degree=readout_degree,
        epsilon_leak=abs(readout_degree) if judged[0].verdict.startswith("blind") else None,
        growth=grown,
        loops=_loop_rows(subject, losses),
        loss=loss,
        gauge=counted,
        remedies=remedies,
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
    )


def _unsaid(bench: Bench, judged: tuple[Direction, ...]) -> list[str]:
    """What the verdicts, one direction a token, leave open."""
    scale, notes = judged[0], []
    if scale.verdict == "visible" and 0 < scale.tokens_with < scale.tokens_searched:
        where = f"{scale.tokens_with} of {scale.tokens_searched} tokens"
        notes.append(f"the scale is visible, but not everywhere: at {where} searched the readout is blind to it.")
    if bench.tokens_alone:
        return notes
    notes.append(
        "the readout mixes tokens, or holds for this batch only: what spans several tokens was not searched for."
    )
    together = moved_together(bench)
    if scale.verdict == "visible" and together["scale"] < SEEN:
        notes.append("one factor for the states of all tokens is not seen, though a factor for each of them is.")
    if together["shift"] < SEEN:
        notes.append("one and the same vector added to the states of all tokens is not seen.")
    return notes


def _require_penalty(penalty: StateMap, h: Tensor) -> None:
    value = penalty(h)
    if not isinstance(value, Tensor) or value.shape != h.shape[:-1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"penalty must give one value for every token, shape {tuple(h.shape[:-1])}, got {got}.")


def _independent_rows(step: StateMap, readout: StateMap, h: Tensor) -> int:
    """How many sequences of the batch to analyse: one, if the maps treat it the same when it comes alone."""
    if h.ndim < 3 or h.shape[0] == 1 or h[0, ..., 0].numel() < ROW_TOKENS:
        return len(h)
    try:
        alone, together = readout(step(h[:1])), readout(step(h))[:1]
    except Exception:  # maps made for this batch only may fail in any way on another
        return len(h)
    same = alone.shape == together.shape and torch.allclose(alone, together, rtol=1e-6, atol=1e-9)
    return 1 if same else len(h)


def _bench(subject: Subject, h: Tensor, penalty: StateMap | None, generator: torch.Generator) -> Bench:
    maps = subject.maps
    flat, count = h.flatten(0, -2), min(ACTION_TOKENS, h[..., 0].numel())
    sample = flat[_spread(len(flat), count)].view(*[1] * (h.ndim - 2), count, h.shape[-1])
    alone = _treats_tokens_alone(maps.readout, h, sample, count)
    classes = maps.readout(sample if alone else h).shape[-1]
    cost = float(h.shape[-1] ** 2 * classes) * (4 if alone else 4 * len(flat))
    searches = int(min(max(SEARCH_COST // cost, SEARCHES[0]), SEARCHES[1], len(flat)))
    return Bench(
        step=maps.step,
        readout=maps.readout,
        h=h,
        num_loops=subject.num_loops,
        searched=tuple(_spread(len(flat), searches)),
        action_readout=maps.readout,
        action_states=sample if alone else h,
        tokens_alone=alone,
        penalty=penalty,
        generator=generator,
    )


def _treats_tokens_alone(readout: StateMap, h: Tensor, sample: Tensor, count: int) -> bool:
    together, last = readout(h).flatten(0, -2), sample[..., -1:, :]
    try:
        alone, single = readout(sample).flatten(0, -2), readout(last).flatten(0, -2)
    except Exception:  # a readout made for this batch only may fail in any way on another
        return False
    chosen = together[_spread(len(together), count)]
    # A sample of all tokens is the batch itself: only a token without company shows what company does.
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in ((alone, chosen), (single, chosen[-1:])))


def _spread(total: int, count: int) -> list[int]:
    """`count` different indices, from the middle of as many equal parts."""
    return [(2 * n + 1) * total // (2 * count) for n in range(count)]


def _search(bench: Bench, notes: list[str]) -> list[BlindSpace]:
    flat = bench.h.flatten(0, -2)
    spaces = []
    for index in bench.searched:
        if bench.tokens_alone:
            shape = [1] * (bench.h.ndim - 1)

            def read(x: Tensor) -> Tensor:
                return bench.readout(x.reshape(*shape, -1)).reshape(-1)  # noqa: B023
        else:
            here = (torch.arange(len(flat), device=flat.device) == index)[:, None]

            def read(x: Tensor) -> Tensor:
                return bench.readout(torch.where(here, x, flat).view(bench.h.shape)).flatten(0, -2)  # noqa: B023

        try:
            spaces.append(blind_space(read, flat[index]))
        except ValueError as error:
            notes.append(f"only named directions are judged; no others were searched for, since {error}")
            return [unsearched(flat[n]) for n in bench.searched]
    if any(space.saturated for space in spaces):
        notes.append("at some tokens the readout answers to nothing (saturated), and nothing is called blind there.")
    return spaces


def _confirmed(bench: Bench, notes: list[str]) -> Bench:
    """The bench as it is if finite differences confirm forward mode on it; else one that uses them instead."""
    noise = torch.randn(bench.h.shape, generator=bench.generator, dtype=bench.h.dtype, device=bench.h.device)
    size = bench.h.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    try:
        directional_derivative(lambda x: bench.readout(bench.step(x)), bench.h, noise * size)
    except ValueError as error:
        notes.append(f"derivatives are finite differences, since {error}")
        return replace(bench, forward_mode=False)
    return bench


def _degree(bench: Bench) -> float:
    """Of the readout, by finite rescaling; NaN for a readout that `degree` cannot take."""
    try:
        return degree(bench.action_readout, bench.action_states).by_action.median().item()
    except ValueError:
        return float("nan")


def _calibration(action: Invariance, spaces: list[BlindSpace]) -> Calibration:
    valid, reason = action.verdict != "invalid", action.reason
    if all(space.saturated for space in spaces):
        valid, reason = False, "the readout answers to no direction at all at these states."
    return Calibration(
        valid=valid,
        raw_head_change=action.canary_seen,
        normalised_head_change=action.canary_blind,
        random_change=action.random_change,
        reason=reason,
    )


def _judged(bench: Bench, scale: Invariance, spaces: list[BlindSpace], groups: int | None) -> tuple[Direction, ...]:
    tokens = bench.h.shape[:-1]
    everywhere = isotropic(bench, bench.h.new_ones(tokens, dtype=torch.bool))
    found = families(spaces, groups, lambda family: seen_when_moved(bench, family))
    sampled = None
    if any(family.sampled is not None for family in found):
        mask = bench.h.new_zeros(tokens, dtype=torch.bool)
        mask.view(-1)[list(bench.searched)] = True
        sampled = isotropic(bench, mask)
    return judge(bench, found, scale, everywhere, sampled)


def _least_visible(spaces: list[BlindSpace]) -> tuple[float, ...]:
    """Smallest first, each the largest over the searched tokens."""
    return tuple(max(values) for values in zip(*(space.least for space in spaces), strict=False))


def _observed(subject: Subject, rows: int) -> dict[int, float]:
    """Mean norms over the analysed sequences at K, 2 K, and further where it costs little, in the model's own dtype."""
    last, states = subject.num_loops, [h[:rows] for h in subject.states]
    module = subject.maps.module
    a_loop = states[0][..., 0].numel() * (0 if module is None else sum(p.numel() for p in module.parameters()))
    further = max((n for n in (2 * last, 6 * last) if a_loop * n <= OBSERVED_COST), default=0)
    states += unroll(subject.maps.step, states[-1], further)[1:]
    norms = [h.double().norm(dim=-1).mean().item() for h in states]
    return {k: norm for k, norm in enumerate(norms) if k <= 2 * last or math.isfinite(norm)}


def _remedies(subject: Subject, judged: tuple[Direction, ...], far: AsymptoticStep, h: Tensor) -> tuple[Remedy, ...]:
    """For a scale that is blind and kept and that a loop makes grow; nothing else needs one."""
    scale = judged[0]
    if scale.verdict != "blind and active" or drive(subject.maps.step, h).mean() <= 0.0:
        return ()
    return advise(subject, far, subject.maps.step, h)


def _loop_rows(subject: Subject, losses: list[Tensor] | None) -> tuple[LoopRow, ...]:
    rows = []
    for k, h in enumerate(subject.states):
        loss = None if losses is None or k == 0 else losses[k - 1].nanmean().item()
        rows.append(LoopRow(k=k, cross_entropy=loss, l2_norm=h.double().norm(dim=-1).mean().item()))
    return tuple(rows)


def _gauge(subject: Subject, wanted: bool | None, notes: list[str]) -> Gauge | None:
    cost = gauges.backward_cost(subject)
    if wanted is False:
        return None
    if subject.maps.module is None:
        notes.append("parameter symmetries not counted: the maps name no module that owns the parameters.")
        return None
    if wanted is None and cost > gauges.AFFORDABLE:
        notes.append(f"parameter symmetries not counted: about {cost:.0e} multiply-adds; ask with symmetries=True.")
        return None
    try:
        with exact_arithmetic(subject.maps.module):
            return gauges.gauge(subject, torch.Generator().manual_seed(0))
    except ValueError as error:
        notes.append(f"parameter symmetries not counted: {error}")
        return None

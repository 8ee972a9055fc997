"""Go on training a blind model with a remedy that its audit names: does the norm stop growing, and what does it cost?

An arm is one remedy, or none, or a control that does a part of what a remedy does, from the same weights, optimiser
state and batches on.
"""

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from experiments.config import RunConfig
from experiments.corpus import TokenCorpus
from experiments.errors import RunError
from experiments.measure.forward import EVALUATION_BATCH
from experiments.measure.validation import VALIDATION_WINDOWS, Validation, held_out_windows, validate
from experiments.training import checkpoint as checkpoints
from experiments.training.checkpoint import Checkpoint
from experiments.training.gradients import release
from experiments.training.optimiser import build_optimisers
from experiments.training.trainer import Execution, build_model, run_gradients, training_step, training_windows
from loopsight import AuditReport, audit, remedies
from loopsight.auditing.report import Remedy
from models import LoopedLM, Supervision

NONE = "none"
RESCALED = "rescaled embedding"
AT_ENTRY = "between-loop norm at h_0's size"
DETACHED = "raw readout, scale detached"
FROM_SECOND = "between-loop norm from loop 2"
CONTROLS = (RESCALED, AT_ENTRY, DETACHED, FROM_SECOND)
AUDITED_WINDOWS = 8  # of the held-out ones


class Entrance(nn.Module):
    """An operation at the entrance of every loop, before the model's own."""

    def __init__(self, act: Callable[[Tensor], Tensor], own: nn.Module) -> None:
        super().__init__()
        self.act, self.own = act, own

    def forward(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        entered: Tensor = self.own(self.act(h))
        return entered


def _nothing_embedded() -> None:
    """Stands for the reference to h_0 until there is one."""


class LaterEntrance(Entrance):
    """The same at every entrance but the first, which is known by the tensor that comes: the very one that the
    embedding gave."""

    def __init__(self, act: Callable[[Tensor], Tensor], own: nn.Module, embedding: nn.Module) -> None:
        super().__init__(act, own)
        self._first: Callable[[], Tensor | None] = _nothing_embedded
        embedding.register_forward_hook(self._note)

    def _note(self, module: nn.Module, arguments: tuple[Tensor, ...], h: Tensor) -> None:
        self._first = weakref.ref(h)  # not the state itself: its graph would outlive the step

    def forward(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        entered: Tensor = self.own(h) if h is self._first() else super().forward(h)
        return entered


class SeeingReadout(nn.Module):
    """A model's own readout made to see the scale, at every loop or at every one but the last; with `detached` its
    logits are as large as the state has become, but no gradient says so."""

    def __init__(self, own: nn.Module, reference: float, *, last_too: bool, detached: bool = False) -> None:
        super().__init__()
        self.own, self.reference, self.last_too, self.detached = own, reference, last_too, detached

    def forward(self, h: Float[Tensor, "*batch d"], *, is_last: bool) -> Float[Tensor, "*batch d"]:
        # On features: the head behind them is linear.
        own: Tensor = self.own(h, is_last=is_last)
        if is_last and not self.last_too:
            return own
        return remedies.raw_readout(lambda _: own, h.detach() if self.detached else h, self.reference)


def apply(model: LoopedLM, supervision: Supervision, remedy: Remedy) -> Supervision:
    """Change a model as a remedy of its audit says, with the audit's setting; returns the loss to train it with.

    Raises:
        ValueError: a remedy that nobody has written down here.
    """
    setting = remedy.setting
    if setting is None:
        raise ValueError(f"the audit names no setting for the remedy '{remedy.name}'.")
    match remedy.name:
        case "norm penalty":
            return replace(supervision, norm_penalty=setting)
        case "raw readout" | "final-only norm":
            last_too = remedy.name == "raw readout"
            model.readout_features = SeeingReadout(model.readout_features, setting, last_too=last_too)  # type: ignore[assignment]
        case name if name == DETACHED:
            model.readout_features = SeeingReadout(model.readout_features, setting, last_too=True, detached=True)  # type: ignore[assignment]
        case name if name == RESCALED:
            model.embedding_dropout = Entrance(
                partial(remedies.rms_normalised, target=setting), model.embedding_dropout
            )  # type: ignore[assignment]
        case name if name in ("between-loop norm", AT_ENTRY):
            model.between = Entrance(partial(remedies.rms_normalised, target=setting), model.between)
        case name if name == FROM_SECOND:
            normalised = partial(remedies.rms_normalised, target=setting)
            model.between = LaterEntrance(normalised, model.between, model.embedding_dropout)
        case "damping":
            model.between = Entrance(partial(torch.mul, setting), model.between)
        case _:
            raise ValueError(f"there is no way to train with the remedy '{remedy.name}' here.")
    return supervision


@dataclass(frozen=True, kw_only=True)
class Start:
    """A model some steps into its training.

    Attributes:
        saved: its weights and the optimiser's state.
        parameters: how many there are.
        report: its audit.
        entering_rms: root mean square of h_0, mean over tokens.
        validation: on held-out tokens.
    """

    saved: Checkpoint
    parameters: int
    report: AuditReport
    entering_rms: float
    validation: Validation


def begin(config: RunConfig, corpus: TokenCorpus, at: int, execution: Execution) -> Start:
    """Train the first `at` steps of a run, and audit what is there.

    Raises:
        RunError: the audit names no remedy, or the loss became NaN or infinite.
    """
    model = build_model(config, execution.device)
    optimisers = build_optimisers(model, config.training)
    _train(config, model, optimisers, corpus, range(at), execution)
    saved = checkpoints.capture(model, optimisers, at, config.to_dict(), checkpoints.random_state())
    windows = _held_out(config, corpus)
    model.eval()
    audited = windows[:AUDITED_WINDOWS, :-1].to(execution.device)
    report = audit(model, audited, symmetries=False, seed=config.seed)
    if not report.remedies:
        scale = report.directions[0].verdict
        raise RunError(
            f"the audit of {config.name} names no remedy at step {at}: its scale is {scale}; choose a variant whose "
            "readouts are blind to a scale that grows, such as scale_invariant."
        )
    return Start(
        saved=saved,
        parameters=model.num_parameters(),
        report=report,
        entering_rms=_entering_rms(model, audited),
        validation=_validated(config, model, windows),
    )


@torch.no_grad()
def _entering_rms(model: LoopedLM, tokens: Int[Tensor, "batch time"]) -> float:
    return model.embed(tokens).square().mean(-1).sqrt().mean().item()


def controls(start: Start) -> tuple[Remedy, ...]:
    """What a norm between loops does to h_0 and nothing else, one that leaves h_0 at its size, the raw readout's
    logits without their gradient to the scale, and a norm between loops that leaves h_0 alone."""
    named, untreated = {remedy.name: remedy for remedy in start.report.remedies}, start.report.directions[0].verdict
    norm, raw = named["between-loop norm"], named["raw readout"]
    return (
        replace(norm, name=RESCALED, verdict=untreated),
        replace(norm, name=AT_ENTRY, setting=start.entering_rms),
        replace(raw, name=DETACHED, verdict=untreated),
        replace(norm, name=FROM_SECOND),
    )


def treat(
    config: RunConfig, corpus: TokenCorpus, start: Start, remedy: Remedy | None, execution: Execution
) -> dict[str, Any]:
    """Train a started run to its last step with a remedy, or without any: what a JSON file keeps of it.

    Raises:
        RunError: the loss became NaN or infinite.
    """
    model = build_model(config, execution.device)
    optimisers = build_optimisers(model, config.training)
    checkpoints.restore(copy.deepcopy(start.saved), model, optimisers)
    supervision = config.supervision if remedy is None else apply(model, config.supervision, remedy)
    windows = _held_out(config, corpus)
    at_once = _validated(config, model.eval(), windows)
    steps = range(start.saved.step, config.training.steps)
    curve = _train(replace(config, supervision=supervision), model.train(), optimisers, corpus, steps, execution)
    after = _validated(config, model.eval(), windows)
    return {
        "remedy": NONE if remedy is None else remedy.name,
        "setting": None if remedy is None else remedy.setting,
        "promised": None if remedy is None else remedy.verdict,
        "at": start.saved.step,
        "before": asdict(start.validation),
        "at_once": asdict(at_once),
        "validation": asdict(after),
        "curve": curve,
    }


def _train(
    config: RunConfig,
    model: LoopedLM,
    optimisers: Sequence[torch.optim.Optimizer],
    corpus: TokenCorpus,
    steps: range,
    execution: Execution,
) -> list[dict[str, Any]]:
    """The loss and norms of the last loop, at every step that is logged."""
    windows = training_windows(config, corpus.train, execution.device)
    gradients = run_gradients(config, model, execution)
    curve = []
    for step in steps:
        loss = training_step(config, gradients, optimisers, windows, step)
        if (step + 1) % execution.log_every == 0 or step + 1 == steps.stop:
            if not torch.isfinite(loss.total):
                raise RunError(
                    f"the loss of {config.name} became NaN or infinite after at most {step + 1} steps; the arms that "
                    "ended before are kept."
                )
            ends = {"cross_entropy": loss.cross_entropy[-1].item(), "l2_norm": loss.mean_l2_norm[-1].item()}
            curve.append({"step": step + 1} | ends)
    release(model)
    return curve


def _held_out(config: RunConfig, corpus: TokenCorpus) -> Int[Tensor, "windows time"]:
    return held_out_windows(corpus.validation, config.model.context, VALIDATION_WINDOWS)


def _validated(config: RunConfig, model: LoopedLM, windows: Int[Tensor, "windows time"]) -> Validation:
    return validate(model, windows, num_loops=config.model.num_loops, batch_size=EVALUATION_BATCH)

"""When the monitor warns. Three rules, each on the last samples only, each said once in a run.

blind growth   in each of the last 4 samples the radial gradient fraction at the last state is below a tenth of a random
               gradient's; the norm of the last state that all samples of the window have (where the number of loops
               varies, an earlier one) has grown by 10 % or more over the window, and its trend's 95 % interval is
               positive; the last loop still adds 1 % or more (drive), so that the recurrence carries it.
overflow       a state holds infinities or NaN, or its format's largest number is expected within 4 times the steps of
               the window, or within 4 times the loops that were run.
stagnation     a state kept in bfloat16 or float16 grows (as above), and within 4 times the loops that were run half of
               its coordinates will no longer move.

A tenth: a readout that sees the scale gives about a random gradient's fraction or more, a blind one rounding, which is
more than six decades lower in float32 and more than one in bfloat16. Four times: further is no extrapolation. No
gradient at all decides nothing. The rules see the gradients of training only; the audit decides what is blind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from loopsight.monitoring.outlook import Outlook, Sample
from loopsight.monitoring.trend import Reach

MINIMUM_SAMPLES = 4
BLIND_FRACTION = 0.1  # radial fraction, of that of a random gradient
GROWTH = 1.1  # of the norm over the window
DRIVE = 0.01
REACH = 4.0  # times what was seen

Kind = Literal["blind growth", "overflow", "stagnation", "nothing seen"]


class LoopMonitorWarning(UserWarning):
    """A looped state grows unseen, is about to overflow or to stagnate, or the monitor itself sees nothing."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """What a rule says, and which."""

    kind: Kind
    message: str


def alarms(history: Sequence[Sample], ahead: Outlook) -> list[Alarm]:
    """The rules that hold now, history's newest sample last."""
    found = (_blind_growth(history, ahead), _overflow(history, ahead), _stagnation(history, ahead))
    return [alarm for alarm in found if alarm is not None]


def grows(history: Sequence[Sample], ahead: Outlook) -> bool:
    """The compared state's norm has grown over the window, by a tenth and beyond the fit's uncertainty."""
    first, last = (sample.l2_norm_after(ahead.compared) for sample in (history[0], history[-1]))
    trend = ahead.growth_by_step
    if len(history) < MINIMUM_SAMPLES or first is None or last is None or trend is None:
        return False
    return trend.growing and last >= GROWTH * first


def blind(sample: Sample) -> bool:
    """The loss does not see the last state's scale to first order. No gradient, no verdict."""
    fraction = sample.total_radial_gradient_fraction[-1]
    return fraction is not None and fraction < BLIND_FRACTION * sample.isotropic_fraction


def _blind_growth(history: Sequence[Sample], ahead: Outlook) -> Alarm | None:
    newest, drive, k = history[-1], history[-1].drive[-1], ahead.compared
    if not grows(history, ahead) or drive is None or drive < DRIVE:
        return None
    if not all(blind(sample) for sample in history[-MINIMUM_SAMPLES:]):
        return None
    message = (
        f"the looped state's norm after loop {k} grew from {history[0].l2_norm_after(k):.3g} to "
        f"{newest.l2_norm_after(k):.3g} in steps {history[0].step} to {newest.step}, and the loss does not see it "
        f"(radial gradient fraction {newest.total_radial_gradient_fraction[-1]:.1e} at the last loop, "
        f"{newest.isotropic_fraction:.1e} for a random gradient), while the last loop adds {100 * drive:.0f} %; "
        "remedies: a penalty on the mean of h_k^2, or a readout that sees the scale (a normalisation between loops "
        "ends growth over loops, and need not end it over training)."
    )
    return Alarm(kind="blind growth", message=message)


def _overflow(history: Sequence[Sample], ahead: Outlook) -> Alarm | None:
    newest = history[-1]
    remedy = (
        "keep the residual stream in a wider format, or hold its norm by a penalty or a normalisation between loops."
    )
    if any(newest.nonfinite_tokens):
        worst = max(newest.nonfinite_tokens)
        message = (
            f"a looped state in {newest.dtype} holds NaN or infinity in {worst} tokens at step {newest.step}; {remedy}"
        )
        return Alarm(kind="overflow", message=message)
    spans = {"steps": newest.step - history[0].step, "loops": newest.loops[-1]}
    reaches = {"steps": ahead.steps_to_overflow, "loops": ahead.loops_to_overflow}
    for unit, span in spans.items():
        reach = reaches[unit].get(newest.dtype)
        if (len(history) >= MINIMUM_SAMPLES or unit == "loops") and _within(reach, REACH * span):
            assert reach is not None
            message = (
                f"at step {newest.step} the looped state is expected to overflow {newest.dtype} after "
                f"{reach.expected:.0f} more {unit} ({reach.earliest:.0f} to {reach.latest:.0f}, {reach.model} growth); "
                f"{remedy}"
            )
            return Alarm(kind="overflow", message=message)
    return None


def _within(reach: Reach | None, limit: float) -> bool:
    return reach is not None and reach.expected <= limit


def _stagnation(history: Sequence[Sample], ahead: Outlook) -> Alarm | None:
    newest = history[-1]
    state = newest.stagnation.get(newest.dtype)
    if state is None or not grows(history, ahead) or state.median_loops > REACH * newest.loops[-1]:
        return None
    message = (
        f"at step {newest.step} the looped state has grown to {newest.mean_l2_norm[-1]:.3g} in {newest.dtype}, where "
        f"{100 * state.frozen:.0f} % of its coordinates no longer move by a loop's update, and half of them will not "
        f"after {state.median_loops:.0f} more loops; keep the residual stream in float32, or hold its norm by a "
        "penalty or a normalisation between loops."
    )
    return Alarm(kind="stagnation", message=message)

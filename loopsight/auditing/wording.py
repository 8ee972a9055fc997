"""An audit in sentences and tables: the verdict first, then what it rests on."""

import math
from collections.abc import Sequence

from loopsight.auditing.forecast import IN_REGIME
from loopsight.auditing.report import AuditReport, Direction, Interval

SCALE_FREE = 0.1  # degree of a readout below which its logits hardly grow with the state
FAINT = 0.05  # a finite change of the scale, relative to random motions, that is little to be called seen
STEADY = 1e-3  # a gain so near to 1 needs no saying
HEADER = ("direction", "dim", "verdict", "visibility", "finite change", "activity", "drive", "deferred")


def headline(report: AuditReport) -> str:
    """The verdict in one sentence or two."""
    if not report.valid:
        return f"AUDIT INVALID: nothing can be said about blindness, because {report.calibration.reason}"
    active, blind, undecided = report.blind_and_active, report.blind, report.undecided
    if not blind and undecided:
        return f"UNDECIDED: nothing is called blind, but {_names(undecided)} could not be judged."
    if not blind:
        # A penalty shows a scale as well, and the report does not know of one. A bounded readout sees it at degree 0.
        scale = report.directions[0].finite_change
        faint = abs(report.readout_degree) < SCALE_FREE and scale is not None and scale < FAINT
        hardly = ", though only faintly, as through a normalisation's epsilon or a small penalty"
        return (
            "VISIBLE: the readout sees every direction searched for, the scale of the state included"
            f"{hardly if faint else ''}."
        )
    unsure = f" Undecided: {_names(undecided)}." if undecided else ""
    if not active:
        return (
            f"BLIND, BUT NOT KEPT: the readout cannot see {_names(blind)}, and the recurrence does not keep it.{unsure}"
        )
    predictable = report.growth.regime_number <= IN_REGIME
    rises = predictable and report.growth.radial_increment > 0 and report.growth.gain > 0
    grows = rises and any(d.kind == "scale" for d in active)
    growth = f" {_growth_in_words(report.growth.gain, report.growth.radial_increment)}" if grows else ""
    return f"BLIND AND ACTIVE: the readout cannot see {_names(active)}, and the recurrence keeps it.{growth}{unsure}"


def _growth_in_words(gain: float, added: float) -> str:
    if abs(gain - 1.0) < STEADY:
        return f"A loop adds {added:.4g} to the norm."
    kept = f"A loop makes {gain:.4g} of the norm and adds {added:.4g}"
    return f"{kept}, so that it settles." if gain < 1.0 else f"{kept}."


def in_words(report: AuditReport) -> str:
    """The whole report as text, Markdown tables included."""
    sections = [headline(report), _facts(report), directions_table(report), _growth(report), _losses(report)]
    sections += [_gauge(report), _remedies(report), "\n".join(f"note: {note}" for note in report.notes)]
    return "\n\n".join(section for section in sections if section) + "\n"


def directions_table(report: AuditReport) -> str:
    return table(HEADER, [direction_cells(d) for d in report.directions])


def direction_cells(d: Direction) -> tuple[str, ...]:
    return (
        d.name,
        str(d.dimension),
        d.verdict,
        f"{d.visibility:.1e}",
        "-" if d.finite_change is None else f"{d.finite_change:.1e}",
        f"{d.activity:.4g}" if d.dimension == 1 else f"{d.activity_low:.4g} to {d.activity:.4g}",
        f"{d.drive:+.3g}" if d.dimension == 1 else f"{d.drive:.3g}",
        "-" if d.deferred is None else f"{d.deferred:.1e}",
    )


def interval(value: Interval | None) -> str:
    if value is None:
        return "-"
    return f"{value.estimate:+.4f} ({value.low:+.4f} to {value.high:+.4f})"


def number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


def loops_until(value: float) -> str:
    return "never" if math.isinf(value) else number(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    rendered = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([rendered[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *rendered[1:]])


def _names(directions: Sequence[Direction]) -> str:
    names = [f"the {d.name}" if d.kind in ("scale", "mean") else d.name for d in directions]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _facts(report: AuditReport) -> str:
    size = "" if report.parameters is None else f", {report.parameters / 1e6:.3g}M parameters"
    least = ", ".join(f"{chi:.2g}" for chi in report.least_visible) or "none"
    leak = "" if report.epsilon_leak is None else f" Epsilon leaves a leak of {report.epsilon_leak:.1e} of the scale."
    return (
        f"{report.name}: {report.num_loops} loops, width {report.width}, {report.classes} classes{size}, "
        f"{report.dtype} on {report.device}; {report.tokens} tokens, {report.seconds:.1f} s.\n"
        f"Readout of degree {report.readout_degree:.3g} in the state (1 raw, 0 blind to its scale).{leak}\n"
        f"Least visible directions that are not blind: {least} of an isotropic one.\n"
        f"Calibration: a raw head sees these states rescaled ({report.calibration.raw_head_change:.2g} nats), a "
        f"parameter-free RMSNorm does not ({report.calibration.normalised_head_change:.1g})."
    )


def _growth(report: AuditReport) -> str:
    g = report.growth
    rows = [
        (str(f.loops), number(f.predicted), f"{number(f.low)} to {number(f.high)}", number(f.observed))
        for f in g.forecasts
    ]
    if g.forecasts[-1].predicted is not None:
        holds = f"holds. Of a large norm a loop keeps {g.gain:.4g} and adds {g.radial_increment:.4g}"
    else:
        holds = "does not hold, so nothing is predicted"
    precision = "\n".join(
        f"Loops until a residual stream in {p.dtype} stops moving: {loops_until(p.loops_until_stagnation)}; until it "
        f"overflows: {loops_until(p.loops_until_overflow)}."
        for p in g.low_precision
    )
    return (
        f"Regime number {g.regime_number:.2g}: the large-norm regime {holds}.\n\n"
        + table(("loops", "predicted norm", "bounds", "observed"), rows)
        + f"\n\n{precision}"
    )


def _losses(report: AuditReport) -> str:
    if report.loss is None:
        return ""
    loops = [(str(row.k), number(row.cross_entropy), number(row.l2_norm)) for row in report.loops]
    loss = report.loss
    rows = [
        ("1 loop instead of K", interval(loss.k_gap)),
        ("2 K loops instead of K", interval(loss.beyond)),
        ("norm clamped at readout", interval(loss.decode_clamp)),
        ("norm clamped in every loop", interval(loss.recurrent_clamp)),
    ]
    measured = next((x for x in (loss.beyond, loss.decode_clamp, loss.recurrent_clamp, loss.k_gap) if x), None)
    unit = "change of cross-entropy" + (f", 95 % over {measured.count} {measured.unit}" if measured else "")
    return table(("loops", "cross-entropy", "mean norm"), loops) + "\n\n" + table(("what", unit), rows)


def _gauge(report: AuditReport) -> str:
    if report.gauge is None:
        return ""
    g = report.gauge
    if not g.clear:
        least = f"{g.smallest_visible:.0e}"
        if not g.dimension:
            return f"Scaling symmetries between {g.tensors} parameter tensors: none, but one nearly is ({least})."
        return (
            f"Scaling symmetries between {g.tensors} parameter tensors: {g.dimension} or so, since there is no gap "
            f"between the singular values of those that count ({g.largest_blind:.0e}) and of the others ({least})."
        )
    lines = [
        f"Scaling symmetries between {g.tensors} parameter tensors: {g.dimension} (singular values "
        f"{g.largest_blind:.0e} against {g.smallest_visible:.0e})."
    ]
    for symmetry in g.generators:
        named = zip(symmetry.tensors, symmetry.degrees, strict=True)
        lines.append("  " + ", ".join(f"{name} x c^{degree:.3g}" for name, degree in named))
    return "\n".join([*lines, *(f"{law.optimiser}: {law.law}." for law in g.laws)])


def _remedies(report: AuditReport) -> str:
    if not report.remedies:
        return ""
    rows = [
        (r.name, r.verdict, number(r.l2_norm), interval(r.loss_change), number(r.setting), r.line)
        for r in report.remedies
    ]
    header = ("remedy", "scale then", "norm it settles at", "loss now, untrained", "setting", "how")
    return table(header, rows)

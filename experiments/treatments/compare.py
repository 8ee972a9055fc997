"""Arms side by side: what each remedy did to the norm and to the loss, and what had been predicted of it.

The predictions (1) to (5) were made before any arm of these variants was run, (6) to (10) before any control was,
(11) to (14) before any norm from loop 2 was (LOG.md, 2026-11-30).
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.comparison import require_comparable
from experiments.errors import UsageError
from experiments.expectations import Side, as_dicts
from experiments.figures import draw_remedies
from experiments.files import atomic_path, write_json
from experiments.grids.design import Estimand, Estimate
from experiments.measure.statistics import geometric_interval, t_interval
from experiments.provenance import provenance
from experiments.tables import markdown, rows_as_markdown
from experiments.treatments.arms import AT_ENTRY, CONTROLS, DETACHED, FROM_SECOND, NONE, RESCALED

TIED, UNTIED = "scale_invariant", "untied_small_init_scale_invariant"
FROM_FIRST = "between-loop norm"
REMEDIES = ("norm penalty", "raw readout", "final-only norm", FROM_FIRST, "damping")
SEEING = ("raw readout", "final-only norm")
AFTER = "l2_norm_after"
NOTE = (
    "Norm: mean L2 norm of the state after the last loop, CE: its cross-entropy, both on held-out tokens; before: when "
    "the remedy was chosen, at once: under it, weights as they were; after: at the end of training. Setting: the "
    "audit's, or what the name says, geometric mean. The last four of each variant are controls. Intervals: 95 %, "
    "Student t over seeds, of the logarithm for norms and ratios. "
)


def compare_arms(runs: Sequence[dict[str, Any]], out: Path) -> str:
    """Write tables, verdicts, figure and Markdown into `out`; return the Markdown.

    Args:
        runs: of every variant and seed what the command keeps, complete.
        out: folder.

    Raises:
        UsageError: runs differ in more than variant and seed, or in when the remedies were begun.
    """
    require_comparable(runs)
    if len({run["at"] for run in runs}) > 1:
        raise UsageError("the remedies of these runs were begun at different steps; compare those of one step.")
    pairs = [(run, arm) for run in runs for arm in sorted(run["arms"], key=_place)]
    arms = pd.DataFrame([_row(run, arm) for run, arm in pairs])
    by_step = pd.DataFrame([_identity(run, arm) | point for run, arm in pairs for point in arm["curve"]])
    rows = [judgement.judge(arms) for judgement in JUDGEMENTS]
    summaries = [run | {"validation": run["arms"][0]["validation"]} for run in runs]
    text = "\n\n".join([_table(arms), rows_as_markdown(as_dicts(rows)), NOTE + _begun(runs) + provenance(summaries)])
    for name, frame in (("arms", arms), ("by_step", by_step)):
        with atomic_path(out / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False, float_format="%.6g")
    write_json(out / "claims.json", as_dicts(rows))
    draw_remedies(out / "remedies.png", by_step[~by_step["remedy"].isin(CONTROLS)])
    with atomic_path(out / "remedies.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return text


def _place(arm: dict[str, Any]) -> int:
    return (NONE, *REMEDIES, *CONTROLS).index(arm["remedy"])


def _identity(run: dict[str, Any], arm: dict[str, Any]) -> dict[str, Any]:
    return {"variant": run["variant"], "seed": run["seed"], "remedy": arm["remedy"]}


def _row(run: dict[str, Any], arm: dict[str, Any]) -> dict[str, Any]:
    row = _identity(run, arm) | {"setting": arm["setting"], "promised": arm["promised"]}
    for when, key in (("before", "before"), ("at_once", "at_once"), ("after", "validation")):
        row[f"l2_norm_{when}"] = arm[key]["l2_norm"]["mean"][-1]
        row[f"cross_entropy_{when}"] = arm[key]["cross_entropy"][-1]
    return row


def _column(arms: pd.DataFrame, variant: str, remedy: str, column: str) -> "pd.Series[float]":
    """Of one arm, by seed."""
    return arms[(arms["variant"] == variant) & (arms["remedy"] == remedy)].set_index("seed")[column]


def _growth(remedy: str, variant: str) -> Estimate:
    """Norm after over norm before."""
    return lambda arms: _column(arms, variant, remedy, AFTER) / _column(arms, variant, remedy, "l2_norm_before")


def _against(other: str, remedy: str, variant: str) -> Estimate:
    """Norm after over that of another arm."""
    return lambda arms: _column(arms, variant, remedy, AFTER) / _column(arms, variant, other, AFTER)


_against_none = partial(_against, NONE)


def _cost_over(other: str, remedy: str, variant: str) -> Estimate:
    """Cross-entropy after less that of another arm, nats."""
    loss = "cross_entropy_after"
    return lambda arms: _column(arms, variant, remedy, loss) - _column(arms, variant, other, loss)


_cost = partial(_cost_over, NONE)


def _cost_of(prefix: str, variant: str, arm: str, side: Side | None = None, *, over: str = NONE) -> Estimand:
    """That cost, seen from 0."""
    other = "without" if over == NONE else f"with {over}"
    quantity = f"{prefix}{variant}, {arm}: CE after - {other}, nats"
    return Estimand(quantity=quantity, estimate=_cost_over(over, arm, variant), side=side, bound=0.0, geometric=False)


def _of_both(quantity: str, estimate: Callable[[str], Estimate], **prediction: Any) -> list[Estimand]:
    return [Estimand(quantity=quantity.format(name), estimate=estimate(name), **prediction) for name in (TIED, UNTIED)]


JUDGEMENTS = (
    *_of_both("(1) {}, no remedy: norm after / before", partial(_growth, NONE), side="above"),
    *chain.from_iterable(
        _of_both(f"(2) {{}}, {remedy}: norm after / without", partial(_against_none, remedy), side="below")
        for remedy in REMEDIES
    ),
    *chain.from_iterable(
        _of_both(f"(3) {{}}, {remedy}: norm after / before", partial(_growth, remedy), side="below")
        for remedy in SEEING
    ),
    _cost_of("(4) ", UNTIED, "raw readout", "below"),
    *_of_both(
        "(5) {}, norm penalty: CE after - without, nats",
        partial(_cost, "norm penalty"),
        side="below",
        bound=0.1,
        geometric=False,
    ),
    Estimand(
        quantity=f"(6) {TIED}, {RESCALED}: norm after / without",
        estimate=_against_none(RESCALED, TIED),
        side="above",
    ),
    Estimand(
        quantity=f"(7) {TIED}, {AT_ENTRY}: norm after / without",
        estimate=_against_none(AT_ENTRY, TIED),
        side="below",
    ),
    _cost_of("(8) ", UNTIED, RESCALED, "below"),
    *_of_both(
        "(9) {}, raw readout: norm after / with the scale detached",
        partial(_against, DETACHED, "raw readout"),
        side="below",
    ),
    _cost_of("(10) ", TIED, DETACHED, "below"),
    _cost_of("(10) ", UNTIED, DETACHED, "above"),
    *_of_both(f"(11) {{}}, {FROM_SECOND}: norm after / without", partial(_against_none, FROM_SECOND), side="below"),
    Estimand(
        quantity=f"(12) {TIED}, {FROM_SECOND}: norm after / with {FROM_FIRST}",
        estimate=_against(FROM_FIRST, FROM_SECOND, TIED),
        side="below",
    ),
    _cost_of("(13) ", TIED, FROM_SECOND, "above"),
    _cost_of("(14) ", UNTIED, FROM_SECOND, "above", over=FROM_FIRST),
    *chain.from_iterable(
        _of_both(f"{{}}, {remedy}: norm after / before", partial(_growth, remedy))
        for remedy in REMEDIES
        if remedy not in SEEING
    ),
    _cost_of("", TIED, "raw readout"),
    *chain.from_iterable(
        _of_both(f"{{}}, {remedy}: CE after - without, nats", partial(_cost, remedy), geometric=False)
        for remedy in ("final-only norm", FROM_FIRST, "damping")
    ),
    Estimand(quantity=f"{UNTIED}, {RESCALED}: norm after / without", estimate=_against_none(RESCALED, UNTIED)),
    Estimand(quantity=f"{UNTIED}, {AT_ENTRY}: norm after / without", estimate=_against_none(AT_ENTRY, UNTIED)),
    *_of_both(f"{{}}, {DETACHED}: norm after / without", partial(_against_none, DETACHED)),
    _cost_of("", TIED, RESCALED),
    *_of_both(f"{{}}, {AT_ENTRY}: CE after - without, nats", partial(_cost, AT_ENTRY), geometric=False),
    _cost_of("", UNTIED, FROM_SECOND),
    _cost_of("", TIED, FROM_SECOND, over=FROM_FIRST),
)
"""What was predicted, by number, and what was not."""


def _table(arms: pd.DataFrame) -> str:
    header = ["variant", "remedy", "setting", "norm before", "at once", "after", "/ without"]
    header += ["CE before", "at once", "after", "- without"]
    rows = []
    for (variant, remedy), arm in arms.groupby(["variant", "remedy"], sort=False):
        one = str(variant), str(remedy)
        norms = [arm[f"l2_norm_{when}"] for when in ("before", "at_once", "after")]
        losses = [arm[f"cross_entropy_{when}"] for when in ("before", "at_once", "after")]
        untreated = remedy == NONE
        rows.append(
            [
                *one,
                "" if untreated else f"{geometric_interval(arm['setting'].tolist()).mean:.2g}",
                *(geometric_interval(values.tolist()).text(3) for values in norms),
                "" if untreated else geometric_interval(_against_none(*reversed(one))(arms).tolist()).text(3),
                *(t_interval(values.tolist()).text(4) for values in losses),
                "" if untreated else t_interval(_cost(*reversed(one))(arms).tolist()).text(3),
            ]
        )
    return markdown(header, rows)


def _begun(runs: Sequence[dict[str, Any]]) -> str:
    return f"The remedies were begun at step {runs[0]['at']}. "

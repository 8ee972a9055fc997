"""Variants side by side over seeds, with intervals, and the claims that only a comparison can test."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.config import RunConfig
from experiments.curves import look
from experiments.effects import CORE, as_markdown, balanced, core_runs, tables
from experiments.errors import UsageError
from experiments.expectations import Row, Side, Verdict, as_dicts, below_or_above
from experiments.factorial import FACTORIAL
from experiments.figures import draw_comparison
from experiments.files import atomic_path, write_json
from experiments.measure.statistics import Interval, geometric_interval, t_interval
from experiments.provenance import provenance
from experiments.tables import markdown, rows_as_markdown
from experiments.variants import VARIANTS, visible_partner


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A claim about the last loop's mean norm: a product of variants' norms to given powers, seed by seed.

    Attributes:
        text: what it is, in words.
        powers: variant to exponent; a ratio has +1 and -1.
        side: where the claim puts it, seen from `bound`; None where nobody has made a prediction.
        note: anything a reader must know of the prediction.
        paper: the paper makes it.
    """

    text: str
    powers: Mapping[str, int]
    bound: float = 1.0
    side: Side | None = None
    note: str = ""
    paper: bool = False


def _ratio(
    numerator: str,
    denominator: str,
    *,
    side: Side,
    bound: float = 1.0,
    note: str = "",
    paper: bool = False,
) -> Contrast:
    powers = {numerator: 1, denominator: -1}
    text = f"{numerator} / {denominator}"
    return Contrast(text=text, powers=powers, side=side, bound=bound, note=note, paper=paper)


CONTRASTS = (
    _ratio("scale_invariant", "scale_visible", side="above", bound=5.0, paper=True),
    _ratio("terminal_scale_invariant", "terminal_scale_visible", side="above", bound=5.0, paper=True),
    _ratio("untied_scale_invariant", "untied_scale_visible", side="above", note=" (blindness without the tied head)"),
    _ratio(
        "small_init_scale_invariant", "small_init_scale_visible", side="above", note=" (without N(0, 1) embeddings)"
    ),
    Contrast(
        text="the first ratio, tied over untied head",
        powers={
            "scale_invariant": 1,
            "scale_visible": -1,
            "untied_scale_invariant": -1,
            "untied_scale_visible": 1,
        },
    ),
    Contrast(
        text="the first ratio, N(0, 1) over small embeddings",
        powers={
            "scale_invariant": 1,
            "scale_visible": -1,
            "small_init_scale_invariant": -1,
            "small_init_scale_visible": 1,
        },
    ),
    _ratio("norm_penalty", "scale_invariant", side="below", paper=True),
    _ratio("scale_removing", "scale_invariant", side="below", paper=True),
    Contrast(
        text="scale_removing",
        powers={"scale_removing": 1},
        side="below",
        bound=100.0,
        note=" (withdrawn after seed 0 was seen, LOG.md)",
    ),
)


INTERVALS = (
    "Intervals: 95 % each, Student t over seeds (of the logarithm for norms, ratios and fractions); none with one "
    "seed. The raw partner is the variant with a raw readout and the same head, initialisation and loss placement, "
    "same seed. "
)


def compare(summaries: list[dict[str, Any]], out: Path) -> str:
    """Write the comparison of finished runs into `out`: tidy table, claims, figure, Markdown; return the Markdown.

    Args:
        summaries: the contents of the runs' `summary.json`; all of one size, data and number of steps.
        out: folder.

    Raises:
        UsageError: the runs differ in more than variant and seed.
    """
    require_comparable(summaries)
    summaries = in_order(summaries)
    by_loop = pd.DataFrame([row for summary in summaries for row in _rows_by_loop(summary)])
    claims = _claims(_final_norms(by_loop))
    text = _markdown(summaries, by_loop, claims)
    with atomic_path(out / "by_loop.csv") as temporary:
        by_loop.to_csv(temporary, index=False)
    write_json(out / "claims.json", as_dicts(claims))
    configs = {summary["variant"]: RunConfig.from_dict(summary["config"]) for summary in summaries}
    draw_comparison(out / "comparison.png", by_loop, {variant: look(config) for variant, config in configs.items()})
    with atomic_path(out / "comparison.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return text


def in_order(summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By variant as the registry has them, then by seed."""
    order = [*VARIANTS, *FACTORIAL]
    return sorted(summaries, key=lambda summary: (order.index(summary["variant"]), summary["seed"]))


def require_comparable(summaries: Sequence[dict[str, Any]], free: Sequence[str] = ()) -> None:
    """Check that runs are of one kind and none is there twice.

    Args:
        summaries: the contents of the runs' `summary.json`.
        free: settings of training and size, beside variant and seed, that may differ.

    Raises:
        UsageError: naming two runs, and what to do.
    """

    configs = [RunConfig.from_dict(summary["config"]) for summary in summaries]
    for summary, config in zip(summaries, configs, strict=True):
        if config.kind(free) != configs[0].kind(free):
            raise UsageError(
                f"{summaries[0]['run']} and {summary['run']} differ in size, training, data, loops or their weights "
                "and cannot be compared; put runs of one kind into one folder."
            )
    if len({(config.name, config.kind()) for config in configs}) < len(configs):
        raise UsageError("a run was given twice; seeds must differ, or their interval means nothing.")


def _rows_by_loop(summary: dict[str, Any]) -> list[dict[str, Any]]:
    validation, state = summary["validation"], summary["state"]
    return [
        {
            "variant": summary["variant"],
            "seed": summary["seed"],
            "loop": k,
            "cross_entropy": validation["cross_entropy"][k - 1],
            "l2_norm": validation["l2_norm"]["mean"][k - 1],
            **{f"l2_norm_{name}": validation["l2_norm"][name][k - 1] for name in ("median", "p99", "max")},
            "radial_gradient_fraction": state["radial_gradient_fraction"][k - 1],
        }
        for k in range(1, len(validation["cross_entropy"]) + 1)
    ]


def _final_norms(by_loop: pd.DataFrame) -> dict[str, dict[int, float]]:
    last = by_loop[by_loop["loop"] == by_loop["loop"].max()]
    norms: dict[str, dict[int, float]] = {}
    for variant, seed, norm in zip(last["variant"], last["seed"], last["l2_norm"], strict=True):
        norms.setdefault(variant, {})[int(seed)] = float(norm)
    return norms


def _claims(norms: dict[str, dict[int, float]]) -> list[Row]:
    rows = []
    for contrast in CONTRASTS:
        seeds = sorted(set.intersection(*(set(norms.get(variant, {})) for variant in contrast.powers)))
        if seeds:
            values = [math.prod(norms[v][seed] ** power for v, power in contrast.powers.items()) for seed in seeds]
            interval, name = geometric_interval(values), f"final norm: {contrast.text}"
            rows.append(judged(name, values, interval, contrast.side, contrast.bound, contrast.note))
    return rows


def over_seeds(values: list[float], interval: Interval, low: float, high: float, expect: Side) -> Verdict:
    """`below_or_above` where every seed and both ends of the interval agree; one seed decides nothing."""
    if interval.low is None or interval.high is None:
        return "inconclusive"
    verdicts = {below_or_above(value, low, high, expect) for value in (*values, interval.low, interval.high)}
    return verdicts.pop() if len(verdicts) == 1 else "inconclusive"


def judged(
    quantity: str,
    values: list[float],
    interval: Interval,
    side: Side | None,
    bound: float,
    note: str = "",
) -> Row:
    """A line of the table: one value a seed, their interval, and where it was put."""
    return Row(
        quantity=quantity,
        basis="empirical",
        predicted=f"{side} {bound:g}{note}" if side else "none made",
        observed=f"{interval.text(3)} over {len(values)} seed{'s' * (len(values) > 1)}",
        verdict=over_seeds(values, interval, bound, bound, side) if side else "no prediction",
    )


def _markdown(summaries: list[dict[str, Any]], by_loop: pd.DataFrame, claims: list[Row]) -> str:
    last = by_loop["loop"].max()
    norms = _final_norms(by_loop)
    rows = []
    for name, group in by_loop.groupby("variant", sort=False):
        variant = str(name)
        end = group[group["loop"] == last]
        raw = visible_partner(variant)
        partner = {} if raw is None or raw == variant else norms.get(raw, {})
        ratios = [norm / partner[seed] for seed, norm in norms[variant].items() if seed in partner]
        fractions = end["radial_gradient_fraction"].dropna().tolist()
        rows.append(
            [
                variant,
                str(len(end)),
                geometric_interval(end["l2_norm"].tolist()).text(3),
                geometric_interval(ratios).text(3) if ratios else "",
                t_interval(group[group["loop"] == 1]["cross_entropy"].tolist()).text(4),
                t_interval(end["cross_entropy"].tolist()).text(4),
                geometric_interval(fractions).text(1) if fractions else "",
            ]
        )
    header = [
        "variant",
        "seeds",
        f"L2 norm, loop {last}",
        "/ its raw partner",
        "CE, loop 1",
        f"CE, loop {last}",
        f"radial fraction, loop {last}",
    ]
    parts = [markdown(header, rows)]
    if claims:
        parts.append(rows_as_markdown(as_dicts(claims)))
    core = balanced(core_runs(summaries), CORE, 2 ** len(CORE))
    if not core.empty:
        seeds = sorted(set(core["seed"]))
        named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        head = f"Full factorial of readout, head and embeddings, {named}:"
        parts.append(f"{head}\n\n{as_markdown(tables(core, CORE))}")
    parts.append(INTERVALS + provenance(summaries))
    return "\n\n".join(parts)

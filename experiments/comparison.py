"""Variants side by side over seeds, with intervals, and the claims that only a comparison can test."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from experiments.errors import UsageError
from experiments.expectations import Row, Verdict, as_dicts
from experiments.figures import draw_comparison
from experiments.files import atomic_path, write_json
from experiments.tables import markdown
from experiments.variants import VARIANTS

REFERENCE = "scale_visible"
BLIND = "scale_invariant"
MINIMUM_RATIO = 5.0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its two-sided 95 % Student-t interval; the interval is None with fewer than two values."""

    mean: float
    low: float | None
    high: float | None

    def text(self, digits: int) -> str:
        mean = f"{self.mean:.{digits}g}"
        return mean if self.low is None else f"{mean} [{self.low:.{digits}g}, {self.high:.{digits}g}]"


def t_interval(values: list[float]) -> Interval:
    """Mean and 95 % interval under normality, values independent (seeds)."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return Interval(mean=mean, low=None, high=None)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = float(stats.t.ppf(0.975, n - 1)) * spread
    return Interval(mean=mean, low=mean - half, high=mean + half)


def geometric_interval(values: list[float]) -> Interval:
    """Geometric mean and 95 % interval of positive values: the t-interval of their logarithms."""
    log = t_interval([math.log(value) for value in values])
    if log.low is None or log.high is None:
        return Interval(mean=math.exp(log.mean), low=None, high=None)
    return Interval(mean=math.exp(log.mean), low=math.exp(log.low), high=math.exp(log.high))


def compare(summaries: list[dict[str, Any]], out: Path) -> str:
    """Write the comparison of finished runs into `out`: tidy table, claims, figure, Markdown; return the Markdown.

    Args:
        summaries: the contents of the runs' `summary.json`; all of one size, data and number of steps.
        out: folder.

    Raises:
        UsageError: the runs differ in more than variant and seed.
    """
    _require_comparable(summaries)
    order = list(VARIANTS)
    summaries = sorted(summaries, key=lambda summary: (order.index(summary["variant"]), summary["seed"]))
    by_loop = pd.DataFrame([row for summary in summaries for row in _rows_by_loop(summary)])
    claims = _claims(_final_norms(by_loop))
    text = _markdown(summaries, by_loop, claims)
    with atomic_path(out / "by_loop.csv") as temporary:
        by_loop.to_csv(temporary, index=False)
    write_json(out / "claims.json", as_dicts(claims))
    draw_comparison(out / "comparison.png", by_loop)
    with atomic_path(out / "comparison.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return text


def _require_comparable(summaries: list[dict[str, Any]]) -> None:
    def shared(summary: dict[str, Any]) -> tuple[Any, ...]:
        config = summary["config"]
        return config["preset"], config["training"], config["corpus_key"], summary["num_loops"]

    first = summaries[0]
    for other in summaries:
        if shared(other) != shared(first):
            raise UsageError(
                f"{first['run']} and {other['run']} differ in preset, training, data or evaluated loops and cannot be "
                "compared; put runs of one kind into one folder."
            )


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
    tests = [
        (BLIND, REFERENCE, MINIMUM_RATIO, "above"),
        ("norm_penalty", BLIND, 1.0, "below"),
        ("scale_removing", BLIND, 1.0, "below"),
    ]
    return [
        _ratio_claim(norms, above, below, bound, side)
        for above, below, bound, side in tests
        if above in norms and below in norms and norms[above].keys() & norms[below].keys()
    ]


def _ratio_claim(norms: dict[str, dict[int, float]], numerator: str, denominator: str, bound: float, side: str) -> Row:
    """Supported when the ratio lies on the predicted side for every seed and so does its interval, if it has one."""
    seeds = sorted(norms[numerator].keys() & norms[denominator].keys())
    ratios = [norms[numerator][seed] / norms[denominator][seed] for seed in seeds]
    interval = geometric_interval(ratios)
    extremes = [*ratios, *(edge for edge in (interval.low, interval.high) if edge is not None)]
    verdict: Verdict = "inconclusive"
    if min(extremes) > bound:
        verdict = "supported" if side == "above" else "not supported"
    elif max(extremes) < bound:
        verdict = "supported" if side == "below" else "not supported"
    return Row(
        quantity=f"final norm, {numerator} / {denominator}, same seed",
        predicted=f"{side} {bound:g}",
        observed=f"{interval.text(3)} over {len(seeds)} seed{'s' * (len(seeds) > 1)}",
        verdict=verdict,
    )


def _markdown(summaries: list[dict[str, Any]], by_loop: pd.DataFrame, claims: list[Row]) -> str:
    last = by_loop["loop"].max()
    reference = _final_norms(by_loop).get(REFERENCE, {})
    rows = []
    for variant, group in by_loop.groupby("variant", sort=False):
        end = group[group["loop"] == last]
        ratios = [
            norm / reference[seed] for seed, norm in zip(end["seed"], end["l2_norm"], strict=True) if seed in reference
        ]
        rows.append(
            [
                str(variant),
                str(len(end)),
                geometric_interval(end["l2_norm"].tolist()).text(3),
                geometric_interval(ratios).text(3) if ratios else "",
                t_interval(group[group["loop"] == 1]["cross_entropy"].tolist()).text(4),
                t_interval(end["cross_entropy"].tolist()).text(4),
                geometric_interval(end["radial_gradient_fraction"].tolist()).text(1),
            ]
        )
    header = [
        "variant",
        "seeds",
        f"L2 norm, loop {last}",
        f"/ {REFERENCE}",
        "CE, loop 1",
        f"CE, loop {last}",
        f"radial fraction, loop {last}",
    ]
    parts = [markdown(header, rows)]
    if claims:
        columns = ["quantity", "predicted", "observed", "verdict"]
        parts.append(markdown(columns, [[row[c] for c in columns] for row in as_dicts(claims)]))
    parts.append(_provenance(summaries))
    return "\n\n".join(parts)


def _provenance(summaries: list[dict[str, Any]]) -> str:
    first = summaries[0]
    environment, training, corpus = first["environment"], first["config"]["training"], first["corpus"]
    seeds = sorted({summary["seed"] for summary in summaries})
    dates = sorted(summary["environment"]["date"][:10] for summary in summaries)
    return (
        "Intervals: 95 %, Student t over seeds (of the logarithm for norms, ratios and fractions); none with one "
        "seed. "
        f"Cross-entropy (CE) in nats a token, {first['validation']['tokens']:,} held-out tokens. "
        f"Preset {first['config']['preset']} ({first['parameters']:,} parameters), {training['steps']} steps of "
        f"{training['batch_size']} x {first['config']['model']['context']} tokens, learning rate "
        f"{training['learning_rate']:g}, seeds {', '.join(map(str, seeds))}. {corpus['note']} Made "
        f"{dates[0]} to {dates[-1]} on {environment['processor']}, {environment['torch_threads']} threads, Python "
        f"{environment['python']}, torch {environment['packages']['torch']}."
    )

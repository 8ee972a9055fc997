"""The figures of a report: title, what it shows and how to read it, and the words for those who cannot see it."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from experiments.figures import plain_ticks, png
from experiments.reporting import charts, figures
from experiments.reporting.collect import MeasuredRun
from experiments.reporting.style import svg, table, themed

Runs = tuple[MeasuredRun, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure to be drawn.

    Attributes:
        key: its anchor and file name.
        title: what it shows.
        caption: how to read it.
        table, column: whose last values stand for the picture in its description.
        draw: from runs to a figure, None where nothing of it was measured.
    """

    key: str
    title: str
    caption: str
    table: str
    column: str
    draw: Callable[[Runs], Figure | None]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure as SVG for the page and PNG for the folder; None of both where nothing of it was measured."""

    picture: Picture
    svg: str | None
    png: bytes | None
    description: str

    @property
    def view_box(self) -> str:
        """Of the SVG, for those who show it a second time."""
        found = re.search(r'viewBox="([^"]*)"', self.svg or "")
        return found[1] if found else ""


BAND = "Lines are means over seeds (geometric on a logarithmic axis), bands their 95 % intervals."
PICTURES = (
    Picture(
        key="norm_by_loop",
        title="Norm of the state by loop",
        caption="Mean over held-out tokens of the Euclidean norm after each loop, to twice the trained depth. " + BAND,
        table="loops",
        column="l2_norm_mean",
        draw=figures.norm_by_loop,
    ),
    Picture(
        key="cross_entropy_by_loop",
        title="Cross-entropy by loop",
        caption="Held-out nats a token when leaving after each loop; beyond K the model was never trained. " + BAND,
        table="loops",
        column="cross_entropy",
        draw=figures.cross_entropy_by_loop,
    ),
    Picture(
        key="token_norms",
        title="Norms over tokens",
        caption="Median, mean, 99th percentile and maximum over held-out tokens of the norm after loop K.",
        table="loops",
        column="l2_norm_p99",
        draw=charts.token_norms,
    ),
    Picture(
        key="radial_fractions",
        title="Radial-gradient fractions",
        caption="|<g, h>| / (|g| |h|), in float64. Above: gradient of the loop's own cross-entropy, blind for a "
        "normalising readout by construction. Below: gradient of the whole training loss, penalty included. " + BAND,
        table="radial",
        column="immediate",
        draw=figures.radial_fractions,
    ),
    Picture(
        key="epsilon_leak",
        title="Epsilon leak, predicted and seen",
        caption="What is left of the radial derivative is the normalisation's epsilon. One point a loop and seed.",
        table="radial",
        column="epsilon_leak_seen",
        draw=charts.epsilon_leak,
    ),
    Picture(
        key="increments",
        title="Increments of a loop",
        caption="Regime number (0: the displacement depends on the direction only; 1: a linear map), radial increment, "
        "angular step, and cosine of successive direction steps, to 64 loops. " + BAND,
        table="increments",
        column="regime_number",
        draw=figures.increments,
    ),
    Picture(
        key="growth",
        title="Growth to 64 loops, predicted from the trained state",
        caption="Broad: norm as run. Thin: predictions made from the state after loop K; means over seeds. Band: what "
        "direction_flow says of its own error. A predictor that leaves the panel has failed.",
        table="growth",
        column="l2_norm_seen",
        draw=figures.growth,
    ),
    Picture(
        key="clamp",
        title="Clamping the scale at inference",
        caption="Change of held-out cross-entropy when the growth is clamped away: the radial part of every update "
        "removed, of every update but the first, the norm frozen at loop 1's, or the state rescaled before the readout "
        "alone (decode_time). Bars: 95 % over seeds.",
        table="clamp",
        column="change",
        draw=charts.clamp,
    ),
    Picture(
        key="pareto",
        title="Loss against throughput",
        caption="One point a number of loops, 1 to 2K from right to left, means over seeds; speeds are those of the "
        "machine that measured.",
        table="depth",
        column="cross_entropy",
        draw=charts.pareto,
    ),
    Picture(
        key="halting",
        title="Calibrated halting",
        caption="Average loops used at 1 % of perplexity, threshold calibrated on one half of the held-out windows and "
        "applied to the other. Bars: 95 % over seeds, cut to 1 and K, which a mean cannot pass.",
        table="halting",
        column="average_loops",
        draw=charts.halting,
    ),
    Picture(
        key="scale_sensitivity",
        title="Scale sensitivity of the readout",
        caption="Change of cross-entropy when the last state is multiplied before its readout. " + BAND,
        table="scale_sensitivity",
        column="change",
        draw=figures.scale_sensitivity,
    ),
    Picture(
        key="attribution",
        title="Which parameters moved the norm",
        caption="Contributions of parameter groups to the change of mean log |h_K| over training; means over seeds. "
        "The tick is the change itself, which the groups should add up to.",
        table="attribution",
        column="contribution",
        draw=charts.attribution,
    ),
    Picture(
        key="pressure",
        title="Deferred pressure during training",
        caption="<G_0, h_0> summed over tokens: how hard the whole loss pulls at the scale of the embeddings' state. "
        + BAND,
        table="pressure",
        column="k0_pressure",
        draw=figures.pressure,
    ),
    Picture(
        key="common",
        title="What is common to all tokens during training",
        caption="Square of the mean state after the last loop, over the mean square: 1 where every token has the same "
        "state. Bands are cut to 0 and 1. " + BAND,
        table="common",
        column="common_fraction",
        draw=figures.common,
    ),
    Picture(
        key="own_token",
        title="The token that went in, during training",
        caption="Mean logit of the token that went in, after the last loop, without what all tokens have alike. A tied "
        "head starts with it; it falls as the embedding is taken back, and behind a norm as the state grows across it. "
        + BAND,
        table="own_token",
        column="own_logit",
        draw=figures.own_token,
    ),
    Picture(
        key="deferred",
        title="Deferred visibility",
        caption="How well the later readouts see the scale of h_k, against a random direction; above by loop, below as "
        "h_1 is multiplied: the slope is the law. " + BAND,
        table="deferred",
        column="visibility",
        draw=figures.deferred,
    ),
    Picture(
        key="coefficient_law",
        title="Coefficient law: terminal against per-loop loss",
        caption="Coefficient of 1/s in the pull of the loss on the initial scale. Bars: 95 % over seeds.",
        table="coefficient_law",
        column="coefficient_seen",
        draw=charts.coefficient_law,
    ),
    Picture(
        key="precision",
        title="Low-precision residual streams",
        caption="Share of tokens that still move at loop 64, and after how many loops the stream stops, predicted and "
        "run. No point as seen: half of the tokens still moved after 1024 (bfloat16) or 4096 (float16) loops, or the "
        "format overflowed. Bars: 95 % over seeds.",
        table="precision",
        column="moving_fraction_at_64",
        draw=charts.precision,
    ),
    Picture(
        key="factorial",
        title="The confound: head, embeddings and readout",
        caption="Final norm and loss by head (tied or untied), embeddings (N(0, 1) or small), readout; per-loop loss. "
        "Bars: 95 % over seeds.",
        table="loops",
        column="l2_norm_mean",
        draw=charts.factorial,
    ),
)


def draw_all(runs: Runs) -> list[Drawn]:
    """Every figure; the same runs give the same bytes."""
    return [_draw(picture, runs) for picture in PICTURES]


def _draw(picture: Picture, runs: Runs) -> Drawn:
    with themed():
        figure = picture.draw(runs) if runs else None
        if figure is None:
            return Drawn(picture=picture, svg=None, png=None, description=f"{picture.title}: not measured.")
        plain_ticks(figure)
        drawn = svg(figure, picture.key)
        figure.set_layout_engine("none")  # laid out by the first drawing, which takes as long as the drawing itself
        figure.set_facecolor("white")  # the page's SVG shows what is behind it
        return Drawn(picture=picture, svg=drawn, png=png(figure), description=_describe(picture, runs))


def _describe(picture: Picture, runs: Runs) -> str:
    rows = table(runs, picture.table).dropna(subset=[picture.column])
    ends = rows.groupby(["variant", "seed"], sort=False)[picture.column].last().groupby(level="variant", sort=False)
    values = ", ".join(f"{variant} {value:.3g}" for variant, value in ends.mean().items())
    return f"{picture.title}. {picture.caption} Last {picture.column} in each table, mean over seeds: {values}."

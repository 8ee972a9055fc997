"""What an audit found: plain numbers in frozen records, for people, for JSON and for tests.

None stands for what was not asked, could not be measured, or has no meaning here; `notes` say which and why.
"""

from dataclasses import dataclass
from typing import Literal

from loopsight.auditing import codec

VERSION = 1
COUNTED = 1e-8  # singular value of a parameter symmetry; an epsilon of 1e-6 at large norms stays below
GAP = 100.0  # between singular values on either side of a count

Verdict = Literal["visible", "blind and active", "blind but contracted", "blind but removed", "undecided"]
Kind = Literal["scale", "mean", "group scale", "fixed", "rotation", "field"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with a 95 % interval; `unit` is what was taken as independent, `count` how many there were."""

    estimate: float
    low: float
    high: float
    unit: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Could this audit have told? The user's own states under a raw head and under a parameter-free RMSNorm.

    Attributes:
        raw_head_change: of a cross-entropy behind a raw random head when the states are rescaled: must be seen.
        normalised_head_change: the same behind a parameter-free RMSNorm: must not.
        random_change: of the user's readout under random motions of the same size.
    """

    valid: bool
    raw_head_change: float
    normalised_head_change: float
    random_change: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Direction:
    """A direction of the state, or a family of them, and what loss and recurrence make of it.

    Attributes:
        name: for people.
        kind: `scale` h, `mean` 1, `group scale` h within a group of channels, `fixed` the same vectors at every token,
            `rotation` turning within a fixed plane, `field` depends on the token's state in a way not recognised.
        dimension: of the family, per token.
        visibility: chi, largest of the family: logit variance relative to an isotropic direction's; below 1e-6 blind.
        finite_change: change of a cross-entropy under the finite motion, relative to random motions of the same size;
            None where no finite motion is known, and then the derivative, confirmed by finite differences, decides.
        activity: |D step[v]| / |v|, root mean square over tokens, of the direction in the family's span that keeps
            most; of fixed directions and the mean only what stays in the fixed blind subspace counts.
        activity_low: of the direction that keeps least.
        drive: what one loop adds along it, relative to |h|: signed for one direction, a length for a family.
        deferred: logit variance over K further loops, relative to an isotropic direction's, drawn once for every token;
            None where not even that reaches those logits.
        tokens_with, tokens_searched: at how many of the searched tokens it is blind.
        span: dimension of the smallest fixed subspace that holds it at all searched tokens, where it was searched for.
        basis: orthonormal vectors of that subspace, if it is fixed and small; empty otherwise.
    """

    name: str
    kind: Kind
    dimension: int
    visibility: float
    finite_change: float | None
    activity: float
    activity_low: float
    drive: float
    deferred: float | None
    verdict: Verdict
    tokens_with: int
    tokens_searched: int
    span: int | None
    basis: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Mean Euclidean norm after `loops` loops, predicted and seen: after the trained loops from the state after the
    first, further on from the state after the trained ones."""

    loops: int
    predicted: float | None
    low: float | None
    high: float | None
    observed: float | None


@dataclass(frozen=True, kw_only=True)
class LowPrecision:
    """A residual stream stored in `dtype`: loops (from the trained count on) until half of its coordinates stop
    moving, and until the first exceeds the format. Infinite: never, at the present displacement, or not before it has
    settled. NaN: not known."""

    dtype: str
    loops_until_stagnation: float
    loops_until_overflow: float


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How the state's norm grows over loops. Euclidean units, medians over tokens.

    Attributes:
        regime_number: |b(2h) - b(h)| / |b(h)|: near 0 the displacement depends on the direction only and the forecast
            holds; 0 where the step adds nothing; at least `AsymptoticStep.drift`.
        gain: factor on a large norm in a loop: 1 carried, 0 removed; where it is negative nothing is forecast.
        radial_increment: norm added by a loop, far out; NaN where that depends on how far.
        displacement: |b|, far out; NaN likewise.
    """

    regime_number: float
    gain: float
    radial_increment: float
    displacement: float
    forecasts: tuple[Forecast, ...]
    low_precision: tuple[LowPrecision, ...]


@dataclass(frozen=True, kw_only=True)
class LoopRow:
    """Cross-entropy (nats a token, infinite where a token's is not finite) and mean Euclidean norm after k loops, in
    the model's own precision."""

    k: int
    cross_entropy: float | None
    l2_norm: float


@dataclass(frozen=True, kw_only=True)
class LossReport:
    """Changes of cross-entropy in nats a token; positive is worse. None where a loss is infinite, or of a single token.

    Attributes:
        k_gap: cross-entropy at 1 loop less that at K: what the loop is used for. None for K = 1.
        beyond: cross-entropy at 2 K loops less that at K.
        decode_clamp: every readout sees the state at the norm it had after the first loop.
        recurrent_clamp: every loop's state is set back to that norm.
    """

    k_gap: Interval | None
    beyond: Interval | None
    decode_clamp: Interval | None
    recurrent_clamp: Interval | None


@dataclass(frozen=True, kw_only=True)
class OptimiserLaw:
    optimiser: str
    law: str


@dataclass(frozen=True, kw_only=True)
class ParameterSymmetry:
    """One generator: tensor i is scaled by c^degree_i and no logit moves. Named are the tensors that matter most."""

    tensors: tuple[str, ...]
    degrees: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """Scaling symmetries between whole parameter tensors, counted from gradients.

    Attributes:
        dimension: how many independent ones.
        smallest_visible, largest_blind: singular values on either side of the count; decades apart where it is sure.
        generators: a sparse basis of them.
        laws: what optimisers do to the norm along them.
    """

    dimension: int
    tensors: int
    smallest_visible: float
    largest_blind: float
    generators: tuple[ParameterSymmetry, ...]
    laws: tuple[OptimiserLaw, ...]

    @property
    def clear(self) -> bool:
        """Whether the singular values leave a gap, so that count and generators can be trusted."""
        return self.smallest_visible >= GAP * (self.largest_blind if self.dimension else COUNTED)


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A change that could help, its predicted effect on the scale, and what it costs the model as it is.

    Attributes:
        verdict: of the scale under it.
        l2_norm: predicted mean Euclidean norm where it settles; None where only training decides.
        loss_change: when applied to the weights as they are, without training; None if the loss stays what it is.
        setting: a starting value (penalty weight, damping factor), where it has one.
        line: how to apply it.
    """

    name: str
    verdict: str
    l2_norm: float | None
    loss_change: Interval | None
    setting: float | None
    effect: str
    line: str


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """Everything `loopsight.audit` found about one model on one batch. `str(report)` says it in words.

    Attributes:
        least_visible: chi of the least visible directions that are not blind, smallest first, largest over tokens.
        epsilon_leak: what is left of the scale in a readout that is blind to it: Dz[h] = leak z; None if not blind.
        readout_degree: p in R(c h) = c^p R(h): 0 blind, 1 raw.
    """

    version: int
    name: str
    dtype: str
    device: str
    parameters: int | None
    tokens: int
    width: int
    classes: int
    num_loops: int
    valid: bool
    calibration: Calibration
    directions: tuple[Direction, ...]
    least_visible: tuple[float, ...]
    readout_degree: float
    epsilon_leak: float | None
    growth: Growth
    loops: tuple[LoopRow, ...]
    loss: LossReport | None
    gauge: Gauge | None
    remedies: tuple[Remedy, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def blind(self) -> tuple[Direction, ...]:
        """The directions that the readout cannot see, whatever the recurrence makes of them."""
        return tuple(d for d in self.directions if d.verdict.startswith("blind"))

    @property
    def blind_and_active(self) -> tuple[Direction, ...]:
        """Those that the recurrence keeps as well: what can grow unseen."""
        return tuple(d for d in self.directions if d.verdict == "blind and active")

    @property
    def undecided(self) -> tuple[Direction, ...]:
        """Those that could not be judged: neither seen nor blind."""
        return tuple(d for d in self.directions if d.verdict == "undecided")

    def to_json(self) -> str:
        """Strict JSON; `from_json` reads it back."""
        return codec.to_json(self)

    @classmethod
    def from_json(cls, text: str) -> "AuditReport":
        """The report that `to_json` wrote.

        Raises:
            ValueError: the text is not a report of this version.
        """
        report = codec.from_json(cls, text)
        if report.version != VERSION:
            raise ValueError(f"this report is of version {report.version}; this version of loopsight reads {VERSION}.")
        return report

    def __str__(self) -> str:
        from loopsight.auditing.wording import in_words

        return in_words(self)

"""When the monitor warns, and when it must not; trends and what they say of the time to overflow."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from loopsight.monitor import LoopMonitor, LoopMonitorWarning
from loopsight.monitoring.outlook import Sample, outlook
from loopsight.monitoring.rules import alarms
from loopsight.monitoring.statistics import Stagnation
from loopsight.monitoring.trend import fit_trend
from models import BetweenConfig, LoopedLM, ModelConfig, ReadoutConfig, Supervision, looped_loss

# Trends.


def test_pure_growth_of_either_kind_is_recognised_and_continued_to_the_limit():
    x = [0.0, 50.0, 100.0, 150.0]
    exponential = fit_trend(x, [2.0 * 1.01**a for a in x])
    linear = fit_trend(x, [2.0 + 3.0 * a for a in x])
    assert (exponential.model, linear.model) == ("exponential", "linear")
    assert exponential.rate == pytest.approx(math.log(1.01)) and linear.rate == pytest.approx(3.0)
    reach = exponential.until(65504.0)
    assert 2.0 * 1.01 ** (150 + reach.expected) == pytest.approx(65504.0)
    assert reach.earliest == pytest.approx(reach.latest, rel=1e-6)
    assert 2.0 + 3.0 * (150 + linear.until(65504.0).expected) == pytest.approx(65504.0)
    assert linear.until(1.0).expected == 0.0


def test_the_two_models_disagree_where_it_matters_so_the_better_one_is_named():
    x = [1.0, 2.0, 3.0, 4.0]
    linear = fit_trend(x, [100.0, 200.0, 300.0, 400.0])
    assert linear.model == "linear" and linear.until(3.4e38).expected > 1e35
    exponential = fit_trend(x, [50.0, 100.0, 200.0, 400.0])
    assert exponential.model == "exponential" and 100 < exponential.until(3.4e38).expected < 200


def test_what_does_not_grow_reaches_nothing():
    x = [0.0, 1.0, 2.0, 3.0, 4.0]
    for y in ([5.0] * 5, [5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 3.0, 1.0, 3.0, 1.2]):
        assert fit_trend(x, y).until(1e5) is None


@given(st.integers(0, 2**32 - 1))
def test_the_interval_covers_the_true_rate_of_a_noisy_growth_and_a_narrower_one_does_not(seed):
    generator = torch.Generator().manual_seed(seed)
    x = [float(a) for a in range(6)]
    covered, narrow = 0, 0
    for _ in range(200):
        noise = 0.05 * torch.randn(6, generator=generator, dtype=torch.float64)
        trend = fit_trend(x, [math.exp(0.5 * a + e) for a, e in zip(x, noise.tolist(), strict=True)])
        if trend.model == "exponential":
            covered += trend.low <= 0.5 <= trend.high
            narrow += abs(trend.rate - 0.5) <= (trend.high - trend.low) / 8
        else:
            covered += 1
            narrow += 1
    assert covered >= 175 and narrow <= 130


def test_too_few_points_have_no_trend_and_bad_ones_are_refused():
    assert fit_trend([0.0, 1.0], [1.0, 2.0]) is None
    with pytest.raises(ValueError, match="increasing x"):
        fit_trend([0.0, 0.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="positive and finite"):
        fit_trend([0.0, 1.0, 2.0], [1.0, 0.0, 3.0])


# Rules, each with everything that must hold for it, and one condition at a time broken.


def sample(step: int, norm: float, **changes) -> Sample:
    """Blind, growing by a quarter in the last loop, in float32."""
    values = dict(
        step=step,
        loops=(1, 2, 3, 4),
        width=128,
        dtype="float32",
        compute_dtype="float32",
        tokens=(10,) * 4,
        unusable_tokens=(0,) * 4,
        nonfinite_tokens=(0,) * 4,
        mean_l2_norm=tuple(norm * k / 4 for k in (1, 2, 3, 4)),
        max_l2_norm=(norm,) * 4,
        max_abs=tuple(norm * k / 4 for k in (1, 2, 3, 4)),
        relative_radial_increment=(None, 0.9, 0.5, 0.25),
        drive=(None, 0.9, 0.5, 0.25),
        total_radial_gradient_fraction=(0.01, 0.01, 0.01, 1e-8),
        tokens_without_gradient=(0,) * 4,
        isotropic_fraction=0.07,
        radial_noise_floor=1e-9,
        stagnation={"bfloat16": None, "float16": None},
    )
    return Sample(**(values | changes))


def kinds(history: list[Sample]) -> list[str]:
    return [alarm.kind for alarm in alarms(history, outlook(history))]


NORMS = (10.0, 13.0, 17.0, 22.0, 28.0)
GROWING = [sample(50 * n, norm) for n, norm in enumerate(NORMS)]


def with_loops(loops: int, step: int, norm: float) -> Sample:
    """A sample of so many loops, of which h_4 has the given norm: deeper states are longer in any case."""
    return sample(
        step,
        norm,
        loops=tuple(range(1, loops + 1)),
        tokens=(10,) * loops,
        unusable_tokens=(0,) * loops,
        nonfinite_tokens=(0,) * loops,
        mean_l2_norm=tuple(norm * k / 4 for k in range(1, loops + 1)),
        max_l2_norm=(norm,) * loops,
        max_abs=tuple(norm * k / 4 for k in range(1, loops + 1)),
        relative_radial_increment=(None, *[0.5] * (loops - 1)),
        drive=(None, *[0.5] * (loops - 1)),
        total_radial_gradient_fraction=(*[0.01] * (loops - 1), 1e-8),
        tokens_without_gradient=(0,) * loops,
    )


def test_more_loops_are_no_growth():
    """Where the number of loops varies, states after the same loop are compared."""
    deeper = [with_loops(k, 50 * n, 10.0) for n, k in enumerate((4, 5, 6, 7, 8))]
    assert deeper[-1].mean_l2_norm[-1] == 2 * deeper[0].mean_l2_norm[-1]
    assert kinds(deeper) == [] and outlook(deeper).compared == 4
    assert outlook(deeper).steps_to_overflow["float16"] is None
    grown = [with_loops(k, 50 * n, norm) for n, (k, norm) in enumerate(zip((8, 5, 7, 4, 6), NORMS, strict=True))]
    assert kinds(grown) == ["blind growth"]
    assert "norm after loop 4 grew from 10 to 28" in alarms(grown, outlook(grown))[0].message
    apart = [replace(s, loops=tuple(k + 10 * n for k in s.loops)) for n, s in enumerate(GROWING)]
    assert kinds(apart) == [] and outlook(apart).compared is None


def test_a_state_that_grows_unseen_is_blind_growth():
    assert kinds(GROWING) == ["blind growth"]
    message = alarms(GROWING, outlook(GROWING))[0].message
    assert "after loop 4 grew from 10 to 28 in steps 0 to 200" in message and "a normalisation between loops" in message


@pytest.mark.parametrize(
    "broken",
    [
        GROWING[:3],  # too few samples
        [sample(50 * n, norm) for n, norm in enumerate((10.0, 10.0, 10.1, 10.0, 10.0))],  # pinned
        [sample(50 * n, norm) for n, norm in enumerate((10.0, 10.1, 10.2, 10.3, 10.4))],  # by 4 % only
        [sample(50 * n, norm) for n, norm in enumerate((10.0, 14.0, 9.0, 15.0, 11.5))],  # not beyond its noise
        [replace(s, total_radial_gradient_fraction=(0.01, 0.01, 0.01, 0.05)) for s in GROWING],  # seen
        [replace(s, total_radial_gradient_fraction=(0.01, 0.01, 0.01, None)) for s in GROWING],  # no gradient
        [*GROWING[:-1], replace(GROWING[-1], total_radial_gradient_fraction=(0.1, 0.1, 0.1, 0.1))],  # seen now
        [replace(s, drive=(None, 0.9, 0.5, 0.001)) for s in GROWING],  # settles over the loops
        [replace(s, drive=(None,) * 4) for s in GROWING],  # no two loops in a row
    ],
)
def test_it_is_not_when_one_condition_is_missing(broken):
    assert kinds(broken) == []


def test_overflow_is_expected_from_exponential_growth_within_reach():
    def history(dtype: str, factor: float) -> list[Sample]:
        seen = {"total_radial_gradient_fraction": (0.1,) * 4}
        return [sample(50 * n, 100.0 * factor**n, dtype=dtype, **seen) for n in range(5)]

    assert kinds(history("float16", 2.0)) == ["overflow"]
    assert "float16 after" in alarms(history("float16", 2.0), outlook(history("float16", 2.0)))[0].message
    assert kinds(history("float32", 2.0)) == []
    assert kinds(history("float16", 1.05)) == []


def test_overflow_is_expected_from_growth_over_the_loops():
    powers = tuple(8.0**k for k in (1, 2, 3, 4))
    assert kinds([sample(0, 1.0, dtype="float16", max_abs=powers, mean_l2_norm=powers)]) == ["overflow"]
    assert kinds([sample(0, 1.0, dtype="bfloat16", max_abs=powers, mean_l2_norm=powers)]) == []
    assert kinds([sample(0, 4000.0, dtype="float16")]) == []  # linear: 60 loops away


def test_a_state_that_is_not_finite_has_overflowed():
    gone = sample(0, 10.0, nonfinite_tokens=(0, 0, 0, 2), mean_l2_norm=(1.0, 2.0, 3.0, None))
    assert kinds([replace(gone, max_abs=(1.0, 2.0, 3.0, None))]) == ["overflow"]


def test_stagnation_is_of_the_format_the_state_is_kept_in():
    near = {"bfloat16": Stagnation(frozen=0.3, median_loops=10.0), "float16": None}
    far = {"bfloat16": Stagnation(frozen=0.0, median_loops=300.0), "float16": None}
    seen = {"total_radial_gradient_fraction": (0.1,) * 4}

    def history(dtype: str, stagnation: dict, norms=NORMS) -> list[Sample]:
        return [sample(50 * n, norm, dtype=dtype, stagnation=stagnation, **seen) for n, norm in enumerate(norms)]

    assert kinds(history("bfloat16", near)) == ["stagnation"]
    assert kinds(history("bfloat16", far)) == kinds(history("float32", near)) == []
    assert kinds(history("bfloat16", near, (10.0,) * 5)) == []  # converged, not swamped


# In training.


def trained(readout: ReadoutConfig, between: BetweenConfig, dtype: torch.dtype = torch.float32) -> list[dict]:
    """Records of a small model's training."""
    config = dict(d_model=32, num_layers=1, num_heads=2, vocab_size=64, context=16)
    torch.manual_seed(0)
    model = LoopedLM(ModelConfig(**config, readout=readout, between=between)).to(dtype)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(0))
    records: list[dict] = []
    with LoopMonitor(model, "sublayers.1", optimiser=optimiser, sinks=[records.append], every=5):
        for _ in range(31):
            looped_loss(model, tokens[:, :-1], tokens[:, 1:], Supervision()).total.backward()
            optimiser.step()
            optimiser.zero_grad()
    return records


BLIND, RAW = ReadoutConfig(), ReadoutConfig(kind="raw", gain=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_growing_blind_model_warns_once_with_the_remedy(dtype):
    with pytest.warns(LoopMonitorWarning, match="grew from .* and the loss does not see it .* remedies:") as caught:
        records = trained(BLIND, BetweenConfig(), dtype)
    assert len(caught) == 1
    assert [record["kind"] for record in records if record["event"] == "warning"] == ["blind growth"]
    assert len([record for record in records if record["event"] == "sample"]) == 7


class Pinned(nn.Module):
    """A post-norm loop behind a blind readout: the loss does not see the norm, and nothing can grow."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.block = nn.Embedding(64, 32), nn.Linear(32, 32)

    def loop(self, h: Tensor) -> Tensor:
        return F.rms_norm(h + self.block(h), (32,))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens)
        for k in range(1, 5):
            h = self.loop(h)
            self.observe(k, h)
        return F.rms_norm(h, (32,)) @ self.table.weight.T


def test_pinned_and_visible_models_never_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(RAW, BetweenConfig())
        torch.manual_seed(0)
        model, records = Pinned(), []
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        tokens = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(0))
        with LoopMonitor(model, optimiser=optimiser, sinks=[records.append], every=5) as monitor:
            model.observe = monitor.observe
            for _ in range(31):
                F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
                optimiser.step()
                optimiser.zero_grad()
    blind = [record["total_radial_gradient_fraction"][-1] < 1e-5 for record in records]
    assert blind == [True] * 7  # it is blind, and only pinned

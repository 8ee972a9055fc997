"""When the monitor warns, and when it must not; which numbers of the samples it takes the trends of."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopsight.monitor import LoopMonitor, LoopMonitorWarning
from loopsight.monitoring.outlook import Sample, outlook
from loopsight.monitoring.rules import alarms
from loopsight.monitoring.statistics import Stagnation
from loopsight.monitoring.trend import MAXIMUM_POINTS, Reach, fit_trend
from models import BetweenConfig, LoopedLM, ModelConfig, ReadoutConfig, Supervision, looped_loss


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


# Blind growth, with everything that must hold for it, and one condition at a time broken.

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
    embeddings = [replace(s, loops=(0, *(k + 10 * n for k in s.loops[1:]))) for n, s in enumerate(GROWING)]
    assert outlook(embeddings).compared is None and outlook(embeddings).growth_by_step is None


def test_a_float64_state_beyond_all_squares_has_no_trend():
    history = [sample(50 * n, 10.0 ** (140 + 10 * n), dtype="float64") for n in range(8)]
    assert kinds(history) == [] and outlook(history).growth_by_step is None


def test_a_state_that_grows_unseen_is_blind_growth():
    assert kinds(GROWING) == kinds(GROWING[:4]) == ["blind growth"]
    message = alarms(GROWING, outlook(GROWING))[0].message
    assert "after loop 4 grew from 10 to 28 in steps 0 to 200" in message and "a normalisation between loops" in message


@pytest.mark.parametrize(
    "broken",
    [
        GROWING[:3],  # too few samples, by one
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


@pytest.mark.parametrize("seen", range(5))
def test_the_last_four_samples_must_be_blind_and_no_earlier_one(seen):
    history = list(GROWING)
    history[seen] = replace(GROWING[seen], total_radial_gradient_fraction=(0.1,) * 4)
    assert kinds(history) == (["blind growth"] if seen == 0 else [])


@pytest.mark.parametrize("isotropic", [0.05, 0.5])
def test_blind_is_below_a_tenth_of_a_random_gradients_fraction(isotropic):
    def history(share: float) -> list[Sample]:
        seen = {"total_radial_gradient_fraction": (0.9, 0.9, 0.9, share * isotropic)}
        return [replace(s, isotropic_fraction=isotropic, **seen) for s in GROWING]

    assert kinds(history(0.099)) == ["blind growth"]
    assert kinds(history(0.101)) == []


def test_growth_is_by_a_tenth_over_the_window():
    def history(last: float) -> list[Sample]:
        return [sample(50 * n, 10.0 + (last - 10.0) * n / 4) for n in range(5)]

    assert kinds(history(11.01)) == ["blind growth"]
    assert kinds(history(10.99)) == []


def test_the_last_loop_adds_a_hundredth_whatever_the_others_do():
    assert kinds([replace(s, drive=(None, 0.0, 0.0, 0.0101)) for s in GROWING]) == ["blind growth"]
    assert kinds([replace(s, drive=(None, 0.9, 0.9, 0.0099)) for s in GROWING]) == []


def test_growth_and_drive_of_exactly_their_limits_are_enough():
    norms = (1.0, 1.02, 1.05, 1.08, 1.1)
    history = [sample(50 * n, norm, drive=(None, 0.9, 0.5, 0.01)) for n, norm in enumerate(norms)]
    assert kinds(history) == ["blind growth"]
    assert kinds([*history[:-1], replace(history[-1], drive=(None, 0.9, 0.5, math.nextafter(0.01, 0.0)))]) == []
    assert kinds([*history[:-1], sample(200, math.nextafter(1.1, 0.0))]) == []


# Overflow.


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


def visible(start: int, samples: int = 5) -> list[Sample]:
    """Growing float16 states that the loss sees, 50 steps apart, of which the loops 5 to 8 were observed."""
    changes = {"dtype": "float16", "loops": (5, 6, 7, 8), "total_radial_gradient_fraction": (0.1,) * 4}
    return [replace(s, step=start + s.step, **changes) for s in GROWING[:samples]]


def warned(history: list[Sample], **reaches: float | None) -> list[str]:
    """Messages where overflow is expected after so many `steps` and `loops`, within an interval that says little."""
    after = {
        unit: None if n is None else Reach(model="linear", expected=n, earliest=n / 100, latest=100 * n)
        for unit, n in ({"steps": None, "loops": None} | reaches).items()
    }
    ahead = replace(
        outlook(history), steps_to_overflow={"float16": after["steps"]}, loops_to_overflow={"float16": after["loops"]}
    )
    return [alarm.message for alarm in alarms(history, ahead)]


@pytest.mark.parametrize("start", [0, 100_000])
def test_overflow_is_near_within_four_times_the_steps_of_the_window(start):
    assert [len(warned(visible(start), steps=steps)) for steps in (799.0, 801.0)] == [1, 0]
    assert [len(warned(visible(start, 4), steps=steps)) for steps in (599.0, 601.0)] == [1, 0]
    assert warned(visible(start, 3), steps=1.0) == []


@pytest.mark.parametrize("samples", [1, 5])
def test_overflow_is_near_within_four_times_the_loops_that_were_run(samples):
    assert [len(warned(visible(0, samples), loops=loops)) for loops in (31.9, 32.1)] == [1, 0]


def test_overflow_is_announced_with_its_time_interval_and_model():
    (message,) = warned(visible(1000), steps=200.0, loops=10.0)
    assert "at step 1200 the looped state is expected to overflow float16 after 200 more steps" in message
    assert "(2 to 20000, linear growth)" in message
    (message,) = warned(visible(1000), loops=10.0)
    assert "after 10 more loops (0 to 1000, linear growth)" in message


@pytest.mark.parametrize("nonfinite", [(0, 0, 0, 2), (2, 0, 0, 0)])
def test_a_state_that_is_not_finite_has_overflowed(nonfinite):
    left = tuple(None if count else 1.0 for count in nonfinite)
    gone = sample(0, 10.0, nonfinite_tokens=nonfinite, mean_l2_norm=left, max_abs=left)
    assert kinds([gone]) == ["overflow"]
    assert "in 2 tokens at step 0" in alarms([gone], outlook([gone]))[0].message


# Stagnation.


def test_stagnation_is_of_the_format_the_state_is_kept_in():
    near = {"bfloat16": Stagnation(frozen=0.3, median_loops=10.0), "float16": None}
    far = {"bfloat16": Stagnation(frozen=0.0, median_loops=300.0), "float16": None}
    seen = {"total_radial_gradient_fraction": (0.1,) * 4}

    def history(dtype: str, stagnation: dict, norms=NORMS) -> list[Sample]:
        return [sample(50 * n, norm, dtype=dtype, stagnation=stagnation, **seen) for n, norm in enumerate(norms)]

    assert kinds(history("bfloat16", near)) == ["stagnation"]
    assert kinds(history("bfloat16", far)) == kinds(history("float32", near)) == []
    assert kinds(history("bfloat16", near, (10.0,) * 5)) == []  # converged, not swamped
    assert kinds(history("bfloat16", near, NORMS[:4])) == ["stagnation"]
    assert kinds(history("bfloat16", near, NORMS[:3])) == []


def test_stagnation_is_near_within_four_times_the_loops_that_were_run():
    def history(loops: float) -> list[Sample]:
        state = {"float16": Stagnation(frozen=0.0, median_loops=loops)}
        return [replace(s, stagnation=state) for s in visible(0)]

    assert kinds(history(32.0)) == ["stagnation"]
    assert kinds(history(33.0)) == []


# Trends: of which numbers.


def test_growth_is_of_the_mean_norm_and_overflow_of_the_largest_coordinate():
    x, norms, largest = [1.0, 2.0, 3.0, 4.0], (10.0, 14.0, 15.0, 19.0), (30.0, 50.0, 120.0, 180.0)

    def check(growth, overflow) -> None:
        assert growth == fit_trend(x, list(norms))
        expected = fit_trend(x, list(largest))
        assert expected.growing
        for name in ("float16", "bfloat16", "float32"):
            assert overflow[name] == expected.until(torch.finfo(getattr(torch, name)).max)

    ahead = outlook([sample(0, 1.0, mean_l2_norm=norms, max_abs=largest)])
    check(ahead.growth_by_loop, ahead.loops_to_overflow)
    pairs = zip(norms, largest, strict=True)
    last = [
        sample(n, 1.0, mean_l2_norm=(5.0,) * 3 + (a,), max_abs=(5.0,) * 3 + (b,)) for n, (a, b) in enumerate(pairs, 1)
    ]
    check(outlook(last).growth_by_step, outlook(last).steps_to_overflow)


def test_a_growing_norm_whose_largest_coordinate_stays_does_not_overflow():
    flat = [replace(s, dtype="float16", max_abs=(60000.0,) * 4) for s in GROWING]
    assert kinds(flat) == ["blind growth"]
    assert set(outlook(flat).steps_to_overflow.values()) == set(outlook(flat).loops_to_overflow.values()) == {None}


def test_the_state_before_the_first_loop_is_in_no_trend_over_the_loops():
    without = sample(0, 20.0)
    start = {"loops": (0, *without.loops), "mean_l2_norm": (4.0, *without.mean_l2_norm)}
    ahead = outlook([replace(without, max_abs=(4.0, *without.max_abs), **start)])
    assert ahead.growth_by_loop == outlook([without]).growth_by_loop
    assert ahead.loops_to_overflow == outlook([without]).loops_to_overflow
    assert ahead.growth_by_loop.rate == pytest.approx(5.0)


def test_of_many_loops_the_last_ones_make_the_trend():
    loops = tuple(range(1, MAXIMUM_POINTS + 9))
    norms = tuple(10.0 + max(0, k - 8) for k in loops)
    ahead = outlook([sample(0, 1.0, loops=loops, mean_l2_norm=norms, max_abs=norms)])
    assert ahead.growth_by_loop == fit_trend([float(k) for k in loops[8:]], list(norms[8:]))


def test_a_sample_without_a_finite_state_is_left_out_of_the_trends():
    gone = replace(GROWING[2], mean_l2_norm=(None,) * 4, max_abs=(None,) * 4)
    ahead = outlook([*GROWING[:2], gone, *GROWING[3:]])
    assert ahead.growth_by_step == fit_trend([0.0, 50.0, 150.0, 200.0], [10.0, 13.0, 22.0, 28.0])
    assert ahead.steps_to_overflow == outlook([*GROWING[:2], *GROWING[3:]]).steps_to_overflow


# In training.


def test_the_window_is_the_last_eight_samples():
    with LoopMonitor(every=1) as monitor:
        for _ in range(20):
            monitor.observe(1, torch.ones(3, 4, requires_grad=True))
            monitor.end_step()
    assert [sample.step for sample in monitor.history] == list(range(12, 20))


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
    assert len([record for record in records if record["event"] == "sample"]) == 10


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
    assert blind == [True] * 10  # it is blind, and only pinned

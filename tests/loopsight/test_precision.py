"""Where a low-precision residual stream freezes, predicted and run; and that a wrong prediction is noticed."""

from dataclasses import replace
from inspect import unwrap

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopsight.precision import low_precision_run, predicted_freeze, significand_bits
from models.config import ModelConfig
from models.looped_lm import LoopedLM

FORMATS = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11), (torch.float32, 24), (torch.float64, 53)]
)
def test_significand_bits(dtype, bits):
    assert significand_bits(dtype) == bits


@pytest.mark.parametrize(("dtype", "level"), [(torch.bfloat16, 256), (torch.float16, 2048)])
def test_adding_one_stops_at_256_and_at_2048(dtype, level):
    one = torch.ones(1, 1, dtype=torch.float64)
    freeze = predicted_freeze(one, one, dtype)
    assert freeze.level.item() == level and freeze.loops.item() == level - 1
    run = low_precision_run([lambda h: h + 1.0], one, dtype, 3000)
    assert run.states.item() == level and run.moved.item() == level - 1 and run.stopped.item()


def what_happens(h: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Level and loops, coordinate by coordinate, by adding."""
    x, added, loops = h.to(dtype), b.to(dtype), torch.zeros_like(h)
    for k in range(1, 5000):
        after = x + added
        loops[after != x] = k
        if torch.equal(after, x):
            break
        x = after
    return x.double().abs(), loops


def test_an_update_that_does_not_fit_the_format_overflows_it_at_once():
    h, b = torch.tensor([1.0, 1.0]), torch.tensor([1e5, -1e5])
    freeze = predicted_freeze(h, b, torch.float16)
    assert torch.isinf(freeze.level).all() and freeze.loops.tolist() == [1.0, 1.0]
    assert torch.isinf(h.half() + b.half()).all()
    assert torch.isfinite(predicted_freeze(h, b, torch.bfloat16).level).all()


def assert_the_freeze_is_predicted(predict, dtype: torch.dtype, *, in_line: bool = True) -> None:
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(8, 25, dtype=torch.float64, generator=generator)
    away = torch.rand(8, 25, dtype=torch.float64, generator=generator) * 40.0
    h = b + (0.0 if in_line else -away * b)
    freeze = predict(h, b, dtype)
    level, loops = what_happens(h, b, dtype)
    torch.testing.assert_close(freeze.level, level, rtol=0, atol=0)
    torch.testing.assert_close(freeze.loops, loops, rtol=0 if in_line else 0.02, atol=2)
    if in_line:  # between 2^p and 1.5 x 2^p loops, whatever is added
        share = freeze.loops / 2 ** significand_bits(dtype)
        assert 0.95 < share.min() and share.max() < 1.55


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("in_line", [True, False])
def test_the_freeze_is_predicted(dtype, in_line):
    assert_the_freeze_is_predicted(predicted_freeze, dtype, in_line=in_line)


def at_the_size_of_b_times_a_power(h, b, dtype):
    """|b| 2^p: right up to a factor of two, which rounding decides."""
    return replace(predicted_freeze(h, b, dtype), level=b.abs() * 2.0 ** significand_bits(dtype))


def one_binade_early(h, b, dtype):
    freeze = predicted_freeze(h, b, dtype)
    return replace(freeze, level=freeze.level / 2)


def counting_steps_of_exactly_b(h, b, dtype):
    freeze = predicted_freeze(h, b, dtype)
    return replace(freeze, loops=(freeze.level - h.abs()) / b.abs())


@pytest.mark.parametrize("mutant", [at_the_size_of_b_times_a_power, one_binade_early, counting_steps_of_exactly_b])
def test_wrong_predictions_are_noticed(mutant):
    with pytest.raises(AssertionError):
        assert_the_freeze_is_predicted(mutant, torch.bfloat16)


def test_what_does_not_move_at_all():
    h = torch.tensor([[300.0, 1.0, -600.0]], dtype=torch.float64)
    freeze = predicted_freeze(h, torch.tensor([[0.5, 0.0, 1.0]], dtype=torch.float64), torch.bfloat16)
    assert freeze.level.tolist() == [[300.0, 1.0, 600.0]] and freeze.loops.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("added", [1.0, 0.75, 0.9])
def test_every_number_about_the_level_is_predicted(dtype, added):
    """From half the level to four times it, of both signs: ties go to the even number, which need not be the nearer."""
    significands = torch.arange(2 ** (significand_bits(dtype) - 1), 2 ** significand_bits(dtype), dtype=torch.float64)
    h = torch.cat([sign * 2.0**e * significands for e in (0, 1, 2) for sign in (-1.0, 1.0)])
    b = torch.full_like(h, added)
    freeze, (level, loops) = predicted_freeze(h, b, dtype), what_happens(h, b, dtype)
    torch.testing.assert_close(freeze.level, level, rtol=0, atol=0)
    beyond = level > 2.0 ** significand_bits(dtype)
    torch.testing.assert_close(freeze.loops[beyond | (h > 0)], loops[beyond | (h > 0)], rtol=0, atol=0)
    assert ((freeze.loops == 0) == (loops == 0)).all()


def test_beyond_the_level_a_tie_moves_the_state_once_or_leads_it_back():
    h = torch.tensor([258.0, 260.0, 262.0, 258.0, 256.0], dtype=torch.float64)
    freeze = predicted_freeze(h, torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0], dtype=torch.float64), torch.bfloat16)
    assert freeze.level.tolist() == [260.0, 260.0, 260.0, 256.0, 256.0]
    assert freeze.loops[:3].tolist() == [1.0, 0.0, 1.0] and (freeze.loops[3:] > 500).all()
    largest = torch.tensor([65504.0], dtype=torch.float64)  # odd: half a spacing on overflows
    assert predicted_freeze(largest, largest * 0 + 16.0, torch.float16).level.isinf().all()


def test_float16_overflows_before_a_large_displacement_freezes_and_bfloat16_does_not():
    b = torch.tensor([[16.0, 17.0, 40.0]], dtype=torch.float64)
    assert predicted_freeze(b, b, torch.float16).level.tolist() == [[32768.0, torch.inf, torch.inf]]
    assert predicted_freeze(b, b, torch.bfloat16).level.tolist() == [[4096.0, 8192.0, 16384.0]]
    run = low_precision_run([lambda h: h + b], b, torch.float16, 5000)
    assert run.states.isinf().tolist() == [[False, False, True]]  # it ends with the first that overflows
    assert not run.stopped.any()


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_prenorm_recurrence_freezes_at_the_predicted_norm_whatever_its_displacement(dtype):
    """b(h) = A h / |h|: in line with its leading axis, which is written again and again."""
    for size in (0.01, 1.0, 3.0):
        axis = F.normalize(torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=-1)
        run = low_precision_run(
            [lambda h, size=size, axis=axis: h + size * axis * (F.normalize(h, dim=-1) * axis).sum(-1, keepdim=True)],
            size * axis,
            dtype,
            5000,
        )
        freeze = predicted_freeze(size * axis, size * axis, dtype)
        assert run.stopped.all()
        torch.testing.assert_close(run.states.double().norm(dim=-1), freeze.level.norm(dim=-1), rtol=0.1, atol=0)
        loops = freeze.loops.amax(-1)
        assert ((run.moved - loops).abs() < 0.1 * loops).all()


def test_the_packages_own_model_and_torchs_layer_freeze_in_bfloat16_and_not_in_float32():
    torch.manual_seed(0)
    config = ModelConfig(d_model=8, num_layers=1, num_heads=2, vocab_size=5, context=3)
    own = LoopedLM(config).eval().requires_grad_(False)
    layer = nn.TransformerEncoderLayer(
        8, 2, dim_feedforward=16, dropout=0.0, norm_first=True, batch_first=True
    ).requires_grad_(False)
    h = torch.randn(1, 3, 8)
    for sublayers in (list(own.sublayers), [layer.eval()]):
        frozen = low_precision_run(sublayers, h, torch.bfloat16, 3000)
        assert frozen.stopped.all() and (frozen.moved > 50).all()
        assert not low_precision_run(sublayers, h, torch.float32, 100).stopped.any()


def test_loops_that_run_out_are_reported():
    one = torch.ones(2, 3)
    run = low_precision_run([lambda h: h + 1.0], one, torch.bfloat16, 10)
    assert not run.stopped.any() and run.moved.tolist() == [10, 10]


def test_a_token_that_nothing_is_added_to_never_moves():
    h = torch.ones(2, 3)
    run = low_precision_run([lambda h: h + torch.tensor([[0.0], [1.0]])], h, torch.bfloat16, 1000)
    assert run.moved.tolist() == [0, 255] and run.stopped.all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: predicted_freeze(h, h[:, 1:], torch.bfloat16), "b must be a finite float tensor of the shape of h"),
        (lambda h: predicted_freeze(h, h.long(), torch.bfloat16), "b must be a finite float tensor"),
        (lambda h: predicted_freeze(h, h / 0, torch.bfloat16), "b must be a finite float tensor"),
        (lambda h: predicted_freeze(0 * h, h, torch.bfloat16), "h holds a zero state"),
        (lambda h: predicted_freeze(h, h, torch.int8), "dtype must be a floating-point format, got torch.int8"),
        (lambda h: low_precision_run([], h, torch.bfloat16, 5), "at least 1 sublayer and 1 loop, got 0 and 5"),
        (lambda h: low_precision_run([lambda h: h], h, torch.bfloat16, 0), "1 sublayer and 1 loop, got 1 and 0"),
        (lambda h: low_precision_run([lambda h: h], h.long(), torch.bfloat16, 1), "floating-point tensor of states"),
        (lambda h: low_precision_run([lambda h: h[:, 1:]], h, torch.bfloat16, 1), "must keep the shape of the state"),
    ],
)
def test_bad_input_is_refused(monkeypatch, call, message):
    # Without the type checker of the tests, as a user calls it.
    for name in ("predicted_freeze", "low_precision_run"):
        monkeypatch.setitem(globals(), name, unwrap(globals()[name]))
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 3))


@pytest.mark.parametrize(("added", "start"), [(1000.0, 1.0), (1000.0, -3000.0), (20.0, 1.0), (65000.0, 1.0)])
def test_loops_until_a_format_overflows_are_counted(added, start):
    h, b = torch.tensor([[start]]), torch.tensor([[added]])
    stream, loops = h.half(), 0
    while stream.isfinite().all():
        stream, loops = stream + b.half(), loops + 1
    predicted = predicted_freeze(h, b, torch.float16)
    assert predicted.level.item() == float("inf")
    assert predicted.loops.item() == pytest.approx(loops, abs=2)

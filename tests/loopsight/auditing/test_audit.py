"""The audit of a small model in plain torch: verdicts, what they must not depend on, and what is refused."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loopsight import AuditReport, LoopedMaps, audit
from loopsight.auditing import run
from loopsight.auditing.directions import verdict
from loopsight.auditing.exact import exact_arithmetic
from loopsight.auditing.gauge import gauge
from loopsight.auditing.page import html
from loopsight.auditing.subject import as_maps, prepare
from loopsight.auditing.wording import headline


def verdicts(report: AuditReport) -> dict[str, str]:
    return {direction.kind: direction.verdict for direction in report.directions}


@pytest.fixture(scope="module")
def report(make_model, tokens):
    return audit(make_model(), tokens)


def test_a_normed_readout_on_a_residual_loop_is_blind_and_active_in_the_scale_alone(report):
    assert report.valid
    assert verdicts(report) == {"scale": "blind and active", "mean": "visible"}
    assert report.directions[0].visibility < 1e-12 < 1e-2 < report.directions[1].visibility
    assert abs(report.directions[0].activity - 1.0) < 0.05
    assert report.epsilon_leak < 1e-6 and min(report.least_visible) > 1e-3


def test_a_raw_readout_is_visible(make_model, tokens):
    report = audit(make_model(normed=False), tokens)
    assert report.valid and not report.blind and report.remedies == ()
    assert report.readout_degree == pytest.approx(1.0, abs=1e-6) and report.epsilon_leak is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"between": True}, "blind but removed"), ({"damping": 0.5}, "blind but contracted")],
)
def test_what_the_recurrence_does_not_keep(make_model, tokens, options, expected):
    report = audit(make_model(**options), tokens)
    assert verdicts(report)["scale"] == expected and report.remedies == ()
    assert [p.loops_until_stagnation for p in report.growth.low_precision] == [math.inf, math.inf]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_verdicts_do_not_depend_on_the_dtype(report, make_model, tokens, dtype):
    low = audit(make_model().to(dtype), tokens)
    assert low.valid and low.dtype == str(dtype).removeprefix("torch.")
    assert verdicts(low) == verdicts(report)
    assert low.directions[0].visibility < 1e-12


class NoVmap(torch.autograd.Function):
    """The identity, with derivatives in both modes and no rule for vmap."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: object) -> None:
        pass

    @staticmethod
    def jvp(ctx: object, tangent: torch.Tensor) -> torch.Tensor:
        return tangent.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def test_a_step_that_vmap_cannot_take_is_judged_the_same(report, make_model, tokens):
    model, plain = make_model(), make_model()
    model.step = lambda h: NoVmap.apply(plain.step(h))
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda v: torch.func.jvp(model.step, (torch.ones(1, 2, 24),), (v,))[1])(torch.ones(3, 1, 2, 24))
    found = audit(model, tokens)
    assert found.notes == report.notes
    for one, other in zip(found.directions, report.directions, strict=True):
        assert one.verdict == other.verdict and one.activity == pytest.approx(other.activity, rel=1e-9)
        assert one.deferred == pytest.approx(other.deferred, rel=1e-9)


def test_the_verdicts_do_not_depend_on_the_batch(report, make_model, tokens):
    assert verdicts(audit(make_model(), tokens.flip(-1)[:1, :9])) == verdicts(report)


def test_the_verdicts_do_not_depend_on_compilation(report, make_model, tokens):
    model = make_model()
    maps = LoopedMaps(
        embed=model.embed,
        step=torch.compile(model.step, backend="eager"),
        readout=torch.compile(model.readout, backend="eager"),
        num_loops=3,
        module=model,
    )
    compiled = audit(maps, tokens)
    assert verdicts(compiled) == verdicts(report)
    assert compiled.directions[0].activity == pytest.approx(report.directions[0].activity, rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_verdicts_do_not_depend_on_the_device(report, make_model, tokens, dtype, compiled):
    model = make_model().to("cuda", dtype)
    if compiled:
        model.step = torch.compile(model.step)
    on_gpu = audit(model, tokens.cuda())
    assert on_gpu.valid and on_gpu.device == "cuda:0" and verdicts(on_gpu) == verdicts(report)
    assert on_gpu.directions[0].visibility < 1e-12
    seen = audit(make_model(normed=False).to("cuda", dtype), tokens.cuda())
    assert seen.valid and not seen.blind


@pytest.mark.parametrize(("cost", "furthest"), [(math.inf, 24), (5680 * 20 * 6, 12), (0.0, 6)])
def test_a_large_model_runs_fewer_loops_to_compare_its_forecast_with(make_model, tokens, monkeypatch, cost, furthest):
    model = make_model()
    monkeypatch.setattr(run, "OBSERVED_COST", cost)
    forecasts = audit(model, tokens).growth.forecasts
    assert sum(p.numel() for p in model.parameters()) == 5680 and tokens.shape[-1] == 20
    assert [forecast.loops for forecast in forecasts] == [3, 6, 12, 24]
    assert [forecast.observed is not None for forecast in forecasts] == [loops <= furthest for loops in (3, 6, 12, 24)]


def test_the_model_is_left_as_it_was(make_model, tokens):
    model = make_model().train()
    before = copy.deepcopy(model.state_dict())
    audit(model, tokens)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_asked_groups_are_judged_and_hidden_ones_are_detected(make_model, tokens):
    asked = audit(make_model(), tokens, groups=4)
    assert verdicts(asked)["group scale"] == "visible"
    model = make_model()
    model.norm = lambda h: F.rms_norm(h.unflatten(-1, (4, -1)), (6,), eps=1e-6).flatten(-2)
    found = {d.kind: d for d in audit(model, tokens).directions}
    assert found["group scale"].dimension == 4 and found["group scale"].verdict == "blind and active"


def test_a_penalty_makes_the_scale_visible(report, make_model, tokens):
    seen = audit(make_model(), tokens, penalty=lambda h: 0.01 * h.square().mean(-1))
    assert verdicts(seen)["scale"] == "visible" and verdicts(report)["scale"] == "blind and active"


def test_growth_is_predicted_within_its_bounds(report):
    assert report.growth.regime_number < 0.5
    assert [f.loops for f in report.growth.forecasts] == [3, 6, 12, 24]
    for forecast in report.growth.forecasts:
        assert forecast.low <= forecast.observed <= forecast.high
        assert forecast.predicted == pytest.approx(forecast.observed, rel=0.1)


def test_the_clamps_cost_what_blindness_says(report, make_model, tokens):
    assert abs(report.loss.decode_clamp.estimate) < 1e-5
    raw = audit(make_model(normed=False), tokens)
    assert abs(raw.loss.decode_clamp.estimate) > 1e-3
    assert report.loss.k_gap.low <= report.loss.k_gap.estimate <= report.loss.k_gap.high


def test_parameter_symmetries_are_counted(report, make_model, tokens):
    """Up bias, SiLU and the attention-free mix leave two: head against nothing, writers and embedding together."""
    assert report.gauge.dimension == 1
    assert {"table.weight", "mix.weight", "down.weight"} <= set(report.gauge.generators[0].tensors)
    assert audit(make_model(normed=False), tokens).gauge.dimension == 1  # the head can undo it
    assert report.gauge.largest_blind < 1e-3 * report.gauge.smallest_visible


def test_a_report_survives_json(report):
    assert AuditReport.from_json(report.to_json()) == report
    with pytest.raises(ValueError, match="this version"):
        AuditReport.from_json('{"version": 0}')


def test_a_report_speaks(report):
    assert str(report).startswith("BLIND AND ACTIVE: the readout cannot see the scale")


def test_a_readout_that_answers_to_nothing_makes_the_audit_invalid(make_model, tokens):
    model = make_model()
    model.head = nn.Linear(24, 40)
    nn.init.zeros_(model.head.weight)
    report = audit(model, tokens)
    assert not report.valid and str(report).startswith("AUDIT INVALID")


def test_a_gradient_cut_by_the_model_is_no_blindness(make_model, tokens):
    """The early loops of some models run without gradient: values decide, so the verdict stays."""
    model = make_model(normed=False)
    step = model.step
    model.step = torch.no_grad()(step)
    report = audit(model, tokens)
    assert report.valid and not report.blind


def test_a_readout_that_hides_its_derivative_is_judged_by_its_values(make_model, tokens):
    for normed, expected in ((False, "visible"), (True, "blind and active")):
        model = make_model(normed=normed)
        honest = model.readout
        model.readout = lambda h, honest=honest: honest(h.detach())
        report = audit(model, tokens)
        assert report.valid and verdicts(report)["scale"] == expected
        said = [note.partition(":")[0].partition(",")[0] for note in report.notes if "finite differences" in note]
        assert said == [
            "derivatives are finite differences",
            "only named directions are judged; no others were searched for",
            "parameter symmetries not counted",
        ]


def broken(model, **changes):
    maps = LoopedMaps(embed=model.embed, step=model.step, readout=model.readout, num_loops=3, module=model)
    return replace(maps, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed": lambda t: torch.full((3, 20, 24), torch.nan)}, "embed.batch. holds NaN"),
        ({"step": lambda h: h * torch.inf}, "after loop 1 .trained: 3. holds NaN"),
        ({"step": lambda h: h[..., :5]}, "must keep the shape"),
        ({"step": lambda h: h + torch.rand_like(h)}, "two values for one state"),
        ({"step": lambda h: h.add_(1.0)}, "step writes into the state that it is given"),
        ({"readout": lambda h: h.mul_(2.0)}, "readout writes into the state that it is given"),
        ({"step": lambda h: (h, None)}, "what step returns must be a floating-point tensor, got tuple"),
        ({"embed": lambda t: torch.zeros(3, 20, 0)}, "must be a floating-point tensor of states"),
        ({"readout": lambda h: h.sum(-1)}, "logits"),
        ({"readout": lambda h: h.index_fill(-1, torch.tensor([9, 7]), -torch.inf)}, "2 of 24 classes -inf .* 7 first"),
        ({"readout": lambda h: h.masked_fill((h > 0) & (torch.arange(24) < 3), -torch.inf)}, "readout.h. holds NaN"),
        ({"readout": lambda h: h - torch.inf}, "readout.h. holds NaN"),
        ({"module": nn.Identity()}, "no parameters"),
        ({"num_loops": 0}, "num_loops must be a whole number, at least 1"),
    ],
)
def test_what_cannot_be_audited_is_named(make_model, tokens, changes, message):
    with pytest.raises(ValueError, match=message):
        audit(broken(make_model(), **changes), tokens)


def test_bad_weights_targets_and_devices_are_named(make_model, tokens):
    model = make_model()
    with torch.no_grad():
        model.up.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="'up.weight' holds NaN"):
        audit(model, tokens)
    with pytest.raises(ValueError, match="targets must be integers of shape"):
        audit(make_model(), tokens, targets=tokens[:, :5])
    with pytest.raises(ValueError, match="classes 0 to 39"):
        audit(make_model(), tokens, targets=tokens + 40)
    with pytest.raises(ValueError, match="the model is on meta and the batch on cpu"):
        audit(broken(model, module=copy.deepcopy(model).to("meta")), tokens)
    with pytest.raises(ValueError, match="must be a torch module"):
        audit("model", tokens)


def test_without_targets_there_is_no_loss_and_the_report_says_so(make_model, tokens):
    model = make_model()
    maps = LoopedMaps(embed=lambda h: h, step=model.step, readout=model.readout, num_loops=3, module=model)
    report = audit(maps, model.embed(tokens).detach())
    assert report.loss is None and any("no targets" in note for note in report.notes)
    assert verdicts(report)["scale"] == "blind and active"


def test_what_reaches_no_later_logits_has_no_deferred_visibility(make_model, tokens):
    model = make_model()
    fixed = model.embed(tokens).detach()
    report = audit(broken(model, step=lambda h: fixed.to(h)), tokens)
    assert {direction.deferred for direction in report.directions} == {None}
    assert any("no deferred visibility" in note for note in report.notes) and "nan" not in str(report)
    assert AuditReport.from_json(report.to_json()) == report


def test_the_headline_says_what_a_loop_does_to_the_norm(report):
    assert "A loop adds " in headline(report)
    for gain, words in (
        (1.5, "A loop makes 1.5 of the norm and adds 3."),
        (0.97, "A loop makes 0.97 of the norm and adds 3, so that it settles."),
        (-1.0, "the recurrence keeps it."),
    ):
        grown = replace(report, growth=replace(report.growth, gain=gain, radial_increment=3.0))
        assert headline(grown).endswith(words)


def test_a_norm_of_torch_s_own_gives_no_warning(make_model, tokens, recwarn):
    model = make_model()
    model.final = nn.RMSNorm(24, eps=1e-6)
    model.readout = lambda h: model.head(model.final(h))
    assert verdicts(audit(model, tokens))["scale"] == "blind and active"
    assert not recwarn.list


def test_a_readout_that_mixes_few_tokens_is_not_taken_token_by_token(make_model, tokens):
    """As many tokens as are sampled: the sample is the batch, and says nothing of what a token sees of others."""
    model = make_model(normed=False)
    own = model.readout
    model.readout = lambda h: own(h - h.mean(-2, keepdim=True))
    report = audit(model, tokens[:1])
    assert not [d for d in report.directions if d.verdict == "undecided"] and report.valid
    assert report.directions[0].tokens_searched == 8 and "VISIBLE" in headline(report)
    assert any("one and the same vector added to the states of all tokens is not seen" in note for note in report.notes)
    assert not any("one factor for the states of all tokens" in note for note in report.notes)


def test_a_scale_that_all_tokens_share_is_told_from_each_token_s_own(make_model, tokens):
    model = make_model(normed=False)
    own = model.readout
    model.readout = lambda h: own(h / h.square().mean((-1, -2), keepdim=True).sqrt())
    report = audit(model, tokens)
    assert report.directions[0].verdict == "visible"
    assert any("one factor for the states of all tokens is not seen" in note for note in report.notes)
    alone = audit(make_model(normed=False), tokens)
    assert not any("tokens is not seen" in note or "mixes tokens" in note for note in alone.notes)


def test_a_scale_that_is_hidden_at_some_tokens_is_noted(make_model, tokens):
    model = make_model()
    model.readout = lambda h: model.head(torch.where(h[..., :1] > 0.0, h, model.norm(h)))
    report = audit(model, tokens)
    scale = report.directions[0]
    assert scale.verdict == "visible" and 0 < scale.tokens_with < scale.tokens_searched
    assert any(f"at {scale.tokens_with} of {scale.tokens_searched} tokens" in note for note in report.notes)


def test_symmetries_without_a_gap_are_not_counted_out(report):
    clear = report.gauge
    assert clear.clear and "no gap" not in str(report)
    blurred = replace(report, gauge=replace(clear, smallest_visible=2e-8, largest_blind=2e-9))
    assert not blurred.gauge.clear and "no gap between the singular values" in str(blurred)
    nearly = replace(report, gauge=replace(clear, dimension=0, largest_blind=0.0, smallest_visible=1e-7))
    assert not nearly.gauge.clear and "none, but one nearly is (1e-07)" in str(nearly)


def test_an_activity_that_is_no_number_is_undecided():
    for finite in (0.0, None):
        assert verdict(0.0, finite, math.nan) == verdict(0.0, finite, math.inf) == "undecided"
    assert verdict(0.0, 0.0, 1.0) == "blind and active"


def test_the_headline_counts_what_could_not_be_judged(make_model, tokens, report):
    raw = audit(make_model(normed=False), tokens)
    assert headline(raw).startswith("VISIBLE") and "epsilon" not in headline(raw)
    bounded = replace(raw, readout_degree=-0.05)  # a head behind a tanh, whose logits no longer grow
    assert headline(bounded).startswith("VISIBLE") and "epsilon" not in headline(bounded)
    directions = (replace(raw.directions[0], finite_change=0.01), *raw.directions[1:])
    faint = replace(bounded, directions=directions)
    assert headline(faint).startswith("VISIBLE") and "only faintly, as through a normalisation's eps" in headline(faint)
    assert "epsilon" not in headline(replace(raw, directions=directions))
    unsure = replace(raw, directions=(raw.directions[0], replace(raw.directions[1], verdict="undecided")))
    assert headline(unsure) == "UNDECIDED: nothing is called blind, but the mean direction could not be judged."
    both = replace(report, directions=(report.directions[0], replace(report.directions[1], verdict="undecided")))
    assert headline(both).startswith("BLIND AND ACTIVE") and headline(both).endswith("Undecided: the mean direction.")


def test_only_counts_of_loops_are_never(report):
    first = replace(report.loops[1], cross_entropy=math.inf)
    text = str(replace(report, loops=(report.loops[0], first, *report.loops[2:])))
    assert "| inf " in text and "| never" not in text


def test_a_page_is_drawn_of_numbers_that_are_none(report):
    odd = replace(report.directions[0], activity=math.nan, visibility=math.inf, verdict="undecided")
    assert "UNDECIDED" in html(replace(report, directions=(odd, report.directions[1])))


def test_a_report_of_another_version_is_refused(report):
    with pytest.raises(ValueError, match="version 99; this version of loopsight reads 1"):
        AuditReport.from_json(replace(report, version=99).to_json())


def test_loops_without_gradient_count_no_symmetries(make_model, tokens):
    model = make_model().eval()
    step, calls = model.step, []

    def early_without(h):
        calls.append(1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and len(calls) % 3 == 0):
            return step(h)

    model.step = early_without
    subject = prepare(as_maps(model, tokens, None), tokens, None)
    calls.clear()
    with pytest.raises(ValueError, match="some loops run without them"), exact_arithmetic():
        gauge(subject, torch.Generator().manual_seed(0))


class Unnamed(nn.Module):
    """No three maps: to be discovered."""

    def __init__(self):
        super().__init__()
        self.table, self.block, self.head = nn.Embedding(40, 24), nn.Linear(24, 24), nn.Linear(24, 40)

    def forward(self, tokens):
        h = self.table(tokens)
        for _ in range(3):
            h = self.block(h)
        return self.head(h)


def test_weights_and_devices_are_named_before_a_loop_is_looked_for(tokens):
    model = Unnamed()
    with pytest.raises(ValueError, match="the model is on meta and the batch on cpu"):
        audit(copy.deepcopy(model).to("meta"), tokens)
    with torch.no_grad():
        model.block.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="'block.weight' holds NaN"):
        audit(model, tokens)


@pytest.mark.parametrize("groups", [0, 1, 7])
def test_groups_that_cannot_be_are_refused(make_model, tokens, groups):
    with pytest.raises(ValueError, match=f"divide the width of the state, 24, got {groups}"):
        audit(make_model(), tokens, groups=groups)


def test_states_that_are_time_major_are_audited(make_model, tokens):
    model = make_model()
    maps = LoopedMaps(
        embed=lambda t: model.embed(t.T).transpose(0, 1),
        step=model.step,
        readout=lambda h: F.linear(F.rms_norm(h, (24,)).square(), model.head.weight[:10, :].abs()),
        num_loops=3,
    )
    found = audit(maps, tokens[:2, :8], targets=tokens[:2, :8] % 10)
    assert found.valid and found.tokens == 16 and "field" in verdicts(found)

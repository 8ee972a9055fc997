"""The monitor's hooks on a foreign model: what is counted as a loop, when it is sampled, and what is left untouched."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from loopsight.monitor import LoopMonitor, LoopMonitorWarning
from models import LoopedLM, ModelConfig, Supervision, looped_loss

D, VOCAB, LOOPS = 12, 11, 4


class Block(nn.Module):
    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        self.in_place = in_place

    def forward(self, h: Tensor) -> Tensor:
        branch = self.down(F.gelu(self.up(self.norm(h.clone() if self.in_place else h))))
        return h.add_(branch) if self.in_place else h + branch


class Looped(nn.Module):
    """One block, looped; each call of it through `call`."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor] = lambda block, h: block(h)) -> None:
        super().__init__()
        self.table, self.block, self.head = nn.Embedding(VOCAB, D), Block(), nn.Linear(D, VOCAB)
        self.call = call

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens)
        for _ in range(LOOPS):
            h = self.call(self.block, h)
        return self.head(F.layer_norm(h, (D,)))


def recomputing(block: nn.Module, h: Tensor) -> Tensor:
    with set_checkpoint_early_stop(False):  # which may stop a recomputation before the block's hooks
        return checkpoint(block, h, use_reentrant=False)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(VOCAB, (6, 5), generator=torch.Generator().manual_seed(0))


def build(kind: Callable[[], nn.Module] = Looped) -> nn.Module:
    torch.manual_seed(1)
    return kind()


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def train(model: nn.Module, tokens: Tensor, steps: int, micro_batches: int = 1, **options) -> list[dict]:
    """Records of a monitored training; the optimiser's own hook counts the steps."""
    records: list[dict] = []
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with LoopMonitor(model, "block", optimiser=optimiser, sinks=[records.append], **options):
        for _ in range(steps):
            for part in tokens.chunk(micro_batches):
                loss_of(model, part).backward()
            optimiser.step()
            optimiser.zero_grad()
    return records


@pytest.mark.filterwarnings("ignore::loopsight.monitor.LoopMonitorWarning")  # it is a blind model, and grows
def test_samples_every_so_many_steps_more_often_at_first_and_all_loops_of_each(tokens):
    records = train(build(), tokens, 22, every=7)
    assert [record["step"] for record in records if record["event"] == "sample"] == [0, 1, 2, 4, 7, 14, 21]
    records = train(build(), tokens, 4, every=3)
    assert [record["step"] for record in records if record["event"] == "sample"] == [0, 1, 2, 3]
    records = [record for record in records if record["event"] == "sample"]
    assert all(record["loops"] == (0, 1, 2, 3, 4) for record in records)
    assert records[0]["tokens"] == (24,) * 5 and records[0]["width"] == D
    assert records[0]["drive"][0] is None and None not in records[0]["drive"][1:]
    assert None not in records[0]["total_radial_gradient_fraction"]


def test_a_resumed_run_goes_on_counting(tokens):
    assert [record["step"] for record in train(build(), tokens, 5, every=2, steps_done=10)] == [10, 12, 14]


def test_an_operation_between_loops_leaves_out_the_state_that_is_ambiguous(tokens):
    model = build(lambda: Looped(lambda block, h: block(F.layer_norm(h, (D,)))))
    assert train(model, tokens, 1)[0]["loops"] == (1, 2, 3, 4)


@pytest.mark.filterwarnings("ignore::loopsight.monitor.LoopMonitorWarning")  # it is a blind model, and grows
@pytest.mark.parametrize("call", [lambda block, h: block(h), recomputing])
def test_weights_after_training_are_bit_identical_with_and_without(tokens, call):
    def trained(monitored: bool) -> list[Tensor]:
        model = build(lambda: Looped(call))
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with LoopMonitor(model, "block", optimiser=optimiser, every=1) if monitored else nullcontext():
            for _ in range(5):
                loss_of(model, tokens).backward()
                optimiser.step()
                optimiser.zero_grad()
        return list(model.state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(trained(True), trained(False), strict=True))


def test_recomputed_calls_are_not_loops(tokens):
    calls = []
    plain, recomputed = build(), build(lambda: Looped(recomputing))
    recomputed.block.register_forward_hook(lambda *_: calls.append(None))
    (expected,), (record,) = train(plain, tokens, 1), train(recomputed, tokens, 1)
    assert len(calls) > LOOPS  # the hooks did run twice
    assert record == expected


def test_recomputation_of_the_whole_model_is_no_second_pass(tokens):
    model = build()
    outer = nn.Sequential(nn.Identity())
    records: list[dict] = []
    with LoopMonitor(model, "block", sinks=[records.append]) as monitor:
        logits = checkpoint(model, tokens[:, :-1], use_reentrant=False)
        F.cross_entropy(outer(logits).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        monitor.end_step()
    assert records == train(build(), tokens, 1)


def test_only_the_first_of_several_micro_batches_is_looked_at(tokens):
    records = train(build(), tokens, 4, micro_batches=3, every=2)
    assert [record["step"] for record in records] == [0, 1, 2]
    assert records[0] == train(build(), tokens[:2], 1)[0]


def test_whoever_ends_no_step_is_told_so(tokens):
    model, records = build(), []
    with pytest.warns(LoopMonitorWarning, match="no optimiser step that ended: give it the"):
        with LoopMonitor(model, "block", sinks=[records.append]):
            loss_of(model, tokens).backward()
    assert [record["kind"] for record in records] == ["nothing seen"]
    another = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(LoopMonitorWarning, match="give it the optimiser that is stepped"):
        with LoopMonitor(model, "block", optimiser=another):
            loss_of(model, tokens).backward()
    with LoopMonitor(model, "block", sinks=[records.append]) as monitor:
        loss_of(model, tokens).backward()
        monitor.end_step()
        loss_of(model, tokens).backward()
    assert [record["event"] for record in records] == ["warning", "sample"]
    with pytest.raises(KeyError), LoopMonitor(model, "block"):
        loss_of(model, tokens).backward()
        raise KeyError  # which says more than that no step has ended


@pytest.mark.parametrize("evaluation", ["no_grad", "eval", "inference"])
def test_evaluation_in_between_is_not_sampled(tokens, evaluation):
    def evaluate(model: nn.Module) -> None:
        model.train(evaluation != "eval")
        with {"no_grad": torch.no_grad, "inference": torch.inference_mode, "eval": nullcontext}[evaluation]():
            model(tokens.flip(0)[:2])
        model.train()

    model, records = build(), []
    with LoopMonitor(model, "block", sinks=[records.append], every=1) as monitor:
        evaluate(model)
        loss = loss_of(model, tokens)
        evaluate(model)
        loss.backward()
        monitor.end_step()
    assert records == train(build(), tokens, 1)


def test_a_forward_pass_that_raises_leaves_nothing_behind(tokens):
    def once(block: nn.Module, h: Tensor) -> Tensor:
        if failures:
            failures.pop()
            block(h)
            raise RuntimeError("out of memory")
        return block(h)

    failures = [None]
    model, records = build(lambda: Looped(once)), []
    with LoopMonitor(model, "block", sinks=[records.append]) as monitor:
        with pytest.raises(RuntimeError, match="out of memory"):
            model(tokens[:, :-1])
        loss_of(model, tokens).backward()
        monitor.end_step()
    assert records == train(build(), tokens, 1)


def test_a_failed_step_is_dropped_and_the_next_one_sampled(tokens):
    def fails(block: nn.Module, h: Tensor) -> Tensor:
        block(h)
        raise RuntimeError("out of memory")

    model, records = build(), []
    with LoopMonitor(model, "block", sinks=[records.append]) as monitor:
        works, model.call = model.call, fails
        with pytest.raises(RuntimeError):
            model(tokens)
        monitor.end_step()
        model.call = works
        loss_of(model, tokens).backward()
        monitor.end_step()
    assert [record["step"] for record in records] == [1]


def test_states_changed_in_place_are_seen_as_they_were(tokens):
    model = build()
    model.block.in_place = True
    (record,), (expected,) = train(model, tokens, 1), train(build(), tokens, 1)
    assert record["loops"] == (1, 2, 3, 4)  # h_0 is gone when the second call tells that it was one
    for key in ("mean_l2_norm", "max_abs", "total_radial_gradient_fraction"):
        assert record[key] == pytest.approx(expected[key][1:], rel=1e-4, abs=1e-7)


def test_an_overwritten_embedding_is_not_taken_for_h_0():
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Identity()

        def forward(self, h: Tensor) -> Tensor:
            after = self.block(h + 1.0)
            return self.block(after.mul_(2.0))

    model, records = Overwriting(), []
    with LoopMonitor(model, "block", sinks=[records.append]) as monitor:
        model(torch.ones(3, D, requires_grad=True)).sum().backward()
        monitor.end_step()
    assert records[0]["loops"] == (1, 2)
    assert records[0]["mean_l2_norm"] == pytest.approx([2 * D**0.5, 4 * D**0.5])


def test_loops_without_gradient_have_norms_and_no_fraction(tokens):
    class Truncated(Looped):
        def forward(self, tokens: Tensor) -> Tensor:
            h = self.table(tokens)
            with torch.no_grad():
                h = self.block(self.block(h))
            return self.head(self.block(self.block(h)))

    (record,) = train(build(Truncated), tokens, 1)
    fractions = record["total_radial_gradient_fraction"]
    assert [fraction is None for fraction in fractions] == [True, True, True, False, False]
    assert None not in record["mean_l2_norm"]


def test_autocast_is_told_by_the_noise_floor(tokens):
    model, records = build(), []
    with LoopMonitor(model, "block", sinks=[records.append]) as monitor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, tokens)
        loss.backward()
        monitor.end_step()
    (plain,) = train(build(), tokens, 1)
    assert records[0]["dtype"] == plain["dtype"] == "float32"
    assert (records[0]["compute_dtype"], plain["compute_dtype"]) == ("bfloat16", "float32")
    assert records[0]["radial_noise_floor"] == pytest.approx(2**16 * plain["radial_noise_floor"])
    assert records[0]["loops"] == plain["loops"]


def test_states_can_be_handed_over_instead(tokens):
    class Handing(Looped):
        def forward(self, tokens: Tensor) -> Tensor:
            h = self.table(tokens)
            monitor.observe(0, h)
            for k in range(1, LOOPS + 1):
                h = self.block(h)
                monitor.observe(k, h)
            return self.head(F.layer_norm(h, (D,)))

    for options in ({}, {"model": (model := build(Handing))}):
        model, records = options.get("model", build(Handing)), []
        with LoopMonitor(sinks=[records.append], every=1, **options) as monitor:
            with torch.no_grad():
                model(tokens)
            for part in tokens.chunk(3):
                loss_of(model, part).backward()
            monitor.end_step()
        assert records == train(build(), tokens[:2], 1)


def observed(*states: tuple[int, Tensor], **options) -> dict:
    """The record of one step in which these were handed over."""
    records: list[dict] = []
    with LoopMonitor(sinks=[records.append], **options) as monitor:
        for k, h in states:
            monitor.observe(k, h)
        monitor.end_step()
    return records[0]


def test_states_with_a_loop_between_them_are_no_step():
    h = torch.ones(2, D)
    apart, next_to = observed((1, h), (3, 2 * h)), observed((2, h), (3, 2 * h))
    assert apart["loops"] == (1, 3) and apart["drive"] == apart["relative_radial_increment"] == (None, None)
    assert apart["stagnation"] == {"bfloat16": None, "float16": None}
    assert next_to["drive"][1] == pytest.approx(1.0) and None not in next_to["stagnation"].values()


def test_of_two_states_of_one_loop_the_first_is_kept():
    h = torch.ones(2, D)
    assert observed((1, h), (1, 2 * h)) == observed((1, h)) == observed((1, h), (0, 3 * h), (2, 4 * h))


def test_a_run_resumed_between_samples_takes_one_at_once_and_then_keeps_to_the_multiples():
    records: list[dict] = []
    with LoopMonitor(sinks=[records.append], every=50, steps_done=130) as monitor:
        for _ in range(80):
            monitor.observe(1, torch.ones(2, D))
            monitor.end_step()
    assert [record["step"] for record in records] == [130, 150, 200]


def test_a_model_that_returns_its_states(tokens):
    torch.manual_seed(0)
    config = ModelConfig(d_model=D, num_layers=2, num_heads=2, vocab_size=VOCAB, context=5)
    records: dict[str, list[dict]] = {"states": [], "hooks": []}
    for way, sink in records.items():
        torch.manual_seed(0)
        model = LoopedLM(config)
        model.recompute = way == "hooks"
        last = "sublayers.3" if way == "hooks" else None
        with LoopMonitor(*[model, last] if last else [], sinks=[sink.append]) as monitor:
            if not last:
                model.register_forward_hook(lambda _, __, states, monitor=monitor: monitor.observe_states(states))
            looped_loss(model, tokens[:, :-1], tokens[:, 1:], Supervision()).total.backward()
            monitor.end_step()
    (by_states,), (by_hooks,) = records.values()
    assert by_states["loops"] == (0, 1, 2, 3, 4) and by_hooks["loops"] == (1, 2, 3, 4)
    for key in ("mean_l2_norm", "total_radial_gradient_fraction"):
        assert by_states[key][1:] == by_hooks[key]


def test_a_gradient_that_is_partly_inside_one_graph_node_is_not_called_total(tokens):
    class TwoLoops(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return 2.0 * h, 4.0 * h

        @staticmethod
        def backward(ctx, first, second):
            return 2.0 * first + 4.0 * second

    h = torch.randn(3, D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    records: list[dict] = []
    with LoopMonitor(sinks=[records.append]) as monitor:
        states = TwoLoops.apply(h)
        monitor.observe_states(states, first=1)
        (states[0].sum() + states[1].square().sum()).backward()
        monitor.end_step()
    fractions = records[0]["total_radial_gradient_fraction"]
    assert fractions[0] is None and fractions[1] == pytest.approx(1.0)


def test_two_backward_passes_give_no_fraction(tokens):
    model, records = build(), []
    with LoopMonitor(model, "block", sinks=[records.append]) as monitor:
        logits = model(tokens[:, :-1])
        logits.square().mean().backward(retain_graph=True)
        logits.mean().backward()
        monitor.end_step()
    assert set(records[0]["total_radial_gradient_fraction"]) == {None}


def test_after_closing_nothing_is_left(tokens):
    model, records = build(), []
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(KeyError), LoopMonitor(model, "block", optimiser=optimiser, sinks=[records.append]) as monitor:
        model(tokens)
        raise KeyError
    for module in (model, model.block):
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert not optimiser._optimizer_step_post_hooks
    loss_of(model, tokens).backward()
    optimiser.step()
    monitor.observe(0, torch.ones(2, D, requires_grad=True))
    monitor.end_step()
    assert records == []


def test_a_copy_of_the_model_is_not_monitored(tokens):
    model, records = build(), []
    with LoopMonitor(model, "block", sinks=[records.append], every=1) as monitor:
        other = copy.deepcopy(model)
        loss = loss_of(model, tokens)
        loss_of(other, tokens[:2]).backward()
        loss.backward()
        monitor.end_step()
    assert records == train(build(), tokens, 1)


def test_a_monitored_model_can_be_saved_and_what_comes_back_is_not_monitored(tokens, tmp_path):
    model, records = nn.Sequential(nn.Linear(D, D)), []
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    with LoopMonitor(model, model[0], optimiser=optimiser, sinks=[records.append], every=1):
        torch.save(model, tmp_path / "model.pt")
        torch.save(optimiser, tmp_path / "optimiser.pt")
        other = torch.load(tmp_path / "model.pt", weights_only=False)
        other(torch.ones(2, D)).sum().backward()
        assert torch.equal(other(torch.ones(2, D)), model(torch.ones(2, D)))
        optimiser.step()
    assert [record["loops"] for record in records] == [(1,)]


def test_the_state_is_picked_out_of_what_the_loop_returns(tokens):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Block()

        def forward(self, h: Tensor) -> dict[str, Tensor]:
            return {"weights": h[0], "state": self.inner(h)}

    class Model(Looped):
        def __init__(self) -> None:
            super().__init__(lambda block, h: block(h)["state"])
            self.block = Wrapped()

    (record,) = train(build(Model), tokens, 1, state=lambda output: output["state"])
    assert record["loops"] == (0, 1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"the loop returned dict; pass state=\.\.\."):
        train(build(Model), tokens, 1)


# torch.compile: the loop's body alone works, inside a larger graph nothing is seen, and that is said.


@pytest.fixture
def compiled():
    yield lambda module: torch.compile(module, backend="aot_eager")
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch.compile's own
def test_a_compiled_loop_body_is_monitored(tokens, compiled):
    model = build()
    model.block = compiled(model.block)
    (record,) = train(model, tokens, 1)
    (expected,) = train(build(), tokens, 1)
    assert record["loops"] == expected["loops"]
    for key in ("mean_l2_norm", "drive", "total_radial_gradient_fraction"):
        assert record[key][1:] == pytest.approx(expected[key][1:], rel=1e-3, abs=1e-7)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch.compile's own
def test_loops_inside_a_compiled_graph_are_not_seen_and_it_is_said_once(tokens, compiled):
    model, records = build(), []
    with LoopMonitor(model, "block", sinks=[records.append], every=1) as monitor:
        whole = compiled(model)
        loss_of(whole, tokens).backward()
        with pytest.warns(LoopMonitorWarning, match="saw no loop in optimiser step 0") as caught:
            monitor.end_step()
            monitor.end_step()
    assert len(caught) == 1
    assert [record["kind"] for record in records] == ["nothing seen"]


# Bad input.


def test_a_loop_that_is_never_called_is_said(tokens):
    model = build()
    with LoopMonitor(model, nn.Linear(2, 2)) as monitor, pytest.warns(LoopMonitorWarning, match="saw no loop"):
        loss_of(model, tokens).backward()
        monitor.end_step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: LoopMonitor(model, "blok"), "the model has no module 'blok'; it has, for example, table, block"),
        (lambda model: LoopMonitor(model, "a.norm"), "no module 'a.norm'; it has, for example, block.norm"),
        (lambda model: LoopMonitor(None, "block"), "the loop is named 'block': give the model that holds it"),
        (
            lambda model: LoopMonitor(model, "block", every=0),
            "every must be a whole number of steps, at least 1, got 0",
        ),
        (lambda model: LoopMonitor().observe(0, torch.tensor(1.0)), "state 0 must be a floating-point tensor"),
        (
            lambda model: LoopMonitor().observe(2, torch.ones(2, dtype=torch.int64)),
            "state 2 must be .* got torch.int64",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(build())

"""Recurrences over time: one map where every step reads the same input, and the last step alone where they differ."""

import pytest
import torch
from torch import Tensor, nn

from loopsight import audit
from loopsight.adapters import discover
from loopsight.derivatives import directional_derivative, pullback, require_adjoint
from loopsight.growth import asymptotic_step
from loopsight.protocol import unroll

D, VOCAB, TIME = 5, 7, 6


class Reader(nn.Module):
    def __init__(self, rnn: nn.Module, every: bool) -> None:
        super().__init__()
        self.table, self.rnn, self.head, self.every = nn.Embedding(VOCAB, D), rnn, nn.Linear(D, VOCAB), every

    def forward(self, tokens: Tensor, start: Tensor | None = None) -> Tensor:
        frames = self.table(tokens)
        outputs = self.rnn(frames if self.rnn.batch_first else frames.transpose(0, 1), start)[0]
        outputs = outputs if self.rnn.batch_first else outputs.transpose(0, 1)
        return self.head(outputs if self.every else outputs[:, -1])


def reader(kind: type[nn.Module], every: bool = True, **options: object) -> Reader:
    torch.manual_seed(0)
    return Reader(kind(D, D, **{"batch_first": True, **options}), every).double().eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(VOCAB, (3, TIME), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recurrence_in_low_precision_is_audited_as_in_float64(kind, dtype, tokens):
    model, same = reader(kind).to(dtype), tokens[:, :1].expand(-1, TIME)
    before = model(same)
    low, exact = audit(model, same), audit(reader(kind).to(dtype).double(), same)
    assert low.dtype != exact.dtype == "float64"
    assert low.valid and [d.verdict for d in low.directions] == [d.verdict for d in exact.directions]
    assert low.directions[0].visibility == pytest.approx(exact.directions[0].visibility, rel=0.05)
    assert torch.equal(model(same), before)


def require_confirmed(maps, h):
    for function in (maps.step, maps.readout):
        value, _ = directional_derivative(function, h, h.cos())
        cotangent = torch.ones_like(value).cumsum(-1)
        require_adjoint(function, h, cotangent, pullback(function, h)[1](cotangent), "a map")


@pytest.mark.parametrize(
    ("kind", "options"), [(nn.GRU, {}), (nn.GRU, {"num_layers": 2}), (nn.RNN, {}), (nn.RNN, {"batch_first": False})]
)
def test_at_one_input_the_recurrence_is_a_loop(kind, options, tokens):
    model, layers = reader(kind, **options), options.get("num_layers", 1)
    same = tokens[:, :1].expand(-1, TIME)
    maps = discover(model, same)
    assert maps.num_loops == TIME - 1 and "5 steps at one input" in maps.name  # the zero state is left out
    h = maps.embed(same).detach()
    assert h.shape == (3, layers * D)
    states = unroll(maps.step, h, maps.num_loops)
    every = model.head(torch.stack([state[:, -D:] for state in states], dim=1))
    torch.testing.assert_close(every, model(same))  # each state's logits, by the model's own head
    torch.testing.assert_close(maps.readout(states[-1]), model(same)[:, -1])
    require_confirmed(maps, h)


def test_a_given_initial_state_is_h_0(tokens):
    model, start = reader(nn.GRU), torch.randn(1, 3, D, dtype=torch.float64)
    batch = (tokens[:, :1].expand(-1, TIME), start)
    maps = discover(model, batch)
    assert maps.num_loops == TIME
    torch.testing.assert_close(maps.embed(batch), start[0], rtol=0, atol=0)


def test_an_initial_state_given_by_keyword_is_h_0(tokens):
    class Named(Reader):
        def forward(self, tokens: Tensor, start: Tensor) -> Tensor:
            return self.head(self.rnn(self.table(tokens), hx=start)[0])

    torch.manual_seed(0)
    model, start = Named(nn.GRU(D, D, batch_first=True), True).double().eval(), torch.randn(1, 3, D).double()
    batch = (tokens[:, :1].expand(-1, TIME), start)
    maps = discover(model, batch)
    assert maps.num_loops == TIME
    torch.testing.assert_close(maps.embed(batch), start[0], rtol=0, atol=0)


@pytest.mark.parametrize("batch_first", [True, False])
def test_one_sequence_that_changes_makes_the_inputs_differ(batch_first, tokens):
    model = reader(nn.GRU, batch_first=batch_first)
    same = tokens[:, :1].expand(-1, TIME).clone()
    same[1, 2] = (same[1, 2] + 1) % VOCAB
    maps = discover(model, same)
    assert maps.num_loops == 1 and "its last step" in maps.name
    torch.testing.assert_close(maps.readout(maps.step(maps.embed(same))), model(same)[:, -1])


def test_a_single_frame_is_one_step_from_the_zero_state(tokens):
    model, one = reader(nn.GRU), tokens[:, :1]
    maps = discover(model, one)
    assert maps.num_loops == 1 and not maps.embed(one).any()
    torch.testing.assert_close(maps.readout(maps.step(maps.embed(one))), model(one)[:, -1])


@pytest.mark.parametrize("every", [True, False])
def test_with_inputs_that_differ_only_the_last_step_is_a_map(every, tokens):
    model = reader(nn.GRU, every)
    maps = discover(model, tokens)
    assert maps.num_loops == 1 and "its last step" in maps.name
    h = maps.embed(tokens).detach()
    own = model(tokens)[:, -1] if every else model(tokens)
    torch.testing.assert_close(maps.readout(maps.step(h)), own)
    before = model(tokens[:, :-1])[:, -1] if every else model(tokens[:, :-1])
    torch.testing.assert_close(maps.readout(h), before)
    require_confirmed(maps, h)


def test_a_gru_holds_part_of_its_scale_and_a_tanh_network_none(tokens):
    same = tokens[:, :1].expand(-1, TIME)
    gru, rnn = discover(reader(nn.GRU), same), discover(reader(nn.RNN), same)
    held = asymptotic_step(gru.step, gru.embed(same).detach()).gain
    assert 0.0 < held.max() and held.min() < 1.0
    assert asymptotic_step(rnn.step, rnn.embed(same).detach()).gain.abs().max() < 1e-6


def test_what_is_no_map_of_one_state_is_refused(tokens):
    torch.manual_seed(0)
    both = reader(nn.GRU, bidirectional=True)
    both.head = nn.Linear(2 * D, VOCAB).double()
    with pytest.raises(ValueError, match="bidirectional or projected"):
        discover(both, tokens)
    two = nn.ModuleList([nn.GRU(D, D), nn.RNN(D, D)])
    two.forward = lambda x: two[1](two[0](x)[0])[0]
    with pytest.raises(ValueError, match="2 recurrences"):
        discover(two.eval(), torch.zeros(2, 3, D))

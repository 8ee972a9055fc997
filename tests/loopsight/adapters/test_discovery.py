"""Loops found by what runs: by call count, by shared parameters, by declared paths; and what is refused, and why."""

import pytest
import torch
from torch import Tensor, nn

from loopsight.adapters import discover, loop_layers
from loopsight.derivatives import directional_derivative, pullback, require_adjoint
from loopsight.protocol import LoopedMaps, unroll

D, VOCAB, K = 12, 19, 4


def layer(norm_first: bool = True) -> nn.Module:
    return nn.TransformerEncoderLayer(D, 2, 20, batch_first=True, norm_first=norm_first)


class Looped(nn.Module):
    """embedding, K times the loop below, norm and head; the readout's norm is the last module by choice of name."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.final, self.head = nn.Embedding(VOCAB, D), nn.LayerNorm(D), nn.Linear(D, VOCAB)

    def loop(self, h: Tensor, e: Tensor, k: int) -> Tensor:
        raise NotImplementedError

    def forward(self, tokens: Tensor) -> Tensor:
        h = e = self.table(tokens)
        for k in range(K):
            h = self.loop(h, e, k)
        return self.head(self.final(h))


class Stack(Looped):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(layer() for _ in range(2))

    def loop(self, h: Tensor, e: Tensor, k: int) -> Tensor:
        for block in self.blocks:
            h = block(h)
        return h


class Encoder(Looped):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(layer(norm_first=False), 2, enable_nested_tensor=False)

    def loop(self, h: Tensor, e: Tensor, k: int) -> Tensor:
        return self.encoder(h)


class Cell(Looped):
    """The state is the second argument, and starts from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(D, D)

    def loop(self, h: Tensor, e: Tensor, k: int) -> Tensor:
        x, state = e.flatten(0, 1), torch.zeros_like(e) if k == 0 else h
        return self.cell(x, state.flatten(0, 1)).view_as(e)


class Shared(Looped):
    """Three module objects that hold the same parameters, each called once or twice."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = nn.ModuleList(nn.Linear(D, D) for _ in range(3))
        for copy in self.copies[1:]:
            copy.weight, copy.bias = self.copies[0].weight, self.copies[0].bias

    def loop(self, h: Tensor, e: Tensor, k: int) -> Tensor:
        return self.copies[k % 3](h)


class Injected(Stack):
    """The embedding enters every loop behind the blocks, without gradient through the loop."""

    def loop(self, h: Tensor, e: Tensor, k: int) -> Tensor:
        with torch.no_grad():
            return super().loop(h + 0.5 * e, e, k)


class Normed(Stack):
    """The readout's norm also acts between the loops."""

    def loop(self, h: Tensor, e: Tensor, k: int) -> Tensor:
        return super().loop(h if k == 0 else self.final(h), e, k)


class Scheduled(Stack):
    """A loop that knows its number is no single map, however little it makes of it."""

    def loop(self, h: Tensor, e: Tensor, k: int) -> Tensor:
        return (1.0 + 0.04 * k) * super().loop(h, e, k)


class Leaky(Stack):
    """The first loop's state reaches the logits past the last one."""

    def forward(self, tokens: Tensor) -> Tensor:
        first = self.loop(self.table(tokens), self.table(tokens), 0)
        return self.head(self.final(self.loop(self.loop(first, first, 1), first, 2) + first))


class Once(Looped):
    def loop(self, h: Tensor, e: Tensor, k: int) -> Tensor:
        return h + 1.0


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(VOCAB, (2, 3), generator=torch.Generator().manual_seed(0))


def built(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().double().eval()


def require_the_model_itself(model: nn.Module, tokens: Tensor, maps: LoopedMaps) -> None:
    with torch.no_grad():
        h = maps.embed(tokens)
        logits = maps.readout(unroll(maps.step, h, maps.num_loops)[-1])
        torch.testing.assert_close(logits, model(tokens).view_as(logits), rtol=1e-9, atol=1e-9)
    for function in (maps.step, maps.readout):
        value, derivative = directional_derivative(function, h, torch.ones_like(h) + h.sin())
        cotangent = torch.ones_like(value).cumsum(-1)
        require_adjoint(function, h, cotangent, pullback(function, h)[1](cotangent), "a map")
        assert derivative.norm() > 1e-3 * value.norm()


@pytest.mark.parametrize(("kind", "num_loops"), [(Stack, K), (Encoder, K), (Cell, K - 1), (Shared, K)])
def test_one_loop_is_found(kind, num_loops, tokens):
    model = built(kind)
    maps = discover(model, tokens)
    assert maps.num_loops == num_loops
    require_the_model_itself(model, tokens, maps)


@pytest.mark.parametrize("kind", [Injected, Normed])
def test_where_something_acts_between_the_loops_the_cut_must_be_declared(kind, tokens):
    model = built(kind)
    with pytest.raises(ValueError, match=r"(between two loops of|more than one place).*blocks\.0.*blocks\.1.*paths"):
        discover(model, tokens)
    maps = discover(model, tokens, paths="blocks.1")
    assert "; the first of its " in maps.name and maps.name.endswith(f" {maps.num_loops + 1} calls makes h_0")
    assert maps.num_loops == K - 1
    require_the_model_itself(model, tokens, maps)


def test_the_declared_paths_of_a_loop_give_the_same_maps_as_finding_it(tokens):
    model = built(Stack)
    found, declared = discover(model, tokens), discover(model, tokens, paths=["blocks.0", "blocks.1"])
    h = found.embed(tokens)
    assert torch.equal(found.step(h), declared.step(h)) and declared.num_loops == K
    inner = discover(model, tokens, paths="blocks.0")  # another cut of the same loop
    assert inner.num_loops == K - 1
    require_the_model_itself(model, tokens, inner)


def test_a_compiled_model_is_taken_apart_uncompiled(tokens):
    model = built(Stack)
    expected = discover(model, tokens)
    maps = discover(torch.compile(model, backend="eager"), tokens)
    assert torch.equal(maps.step(maps.embed(tokens)), expected.step(expected.embed(tokens)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_loop_that_is_no_single_map_is_refused_in_every_precision(dtype, tokens):
    discover(built(Stack).to(dtype), tokens, paths="blocks.1")
    with pytest.raises(ValueError, match="loop 2 of Scheduled.* does not give the model's own state"):
        discover(built(Scheduled).to(dtype), tokens, paths="blocks.1")


def test_a_state_that_reaches_the_logits_past_the_last_loop_is_refused(tokens):
    with pytest.raises(ValueError, match="last state of Leaky.* does not give the model's own logits"):
        discover(built(Leaky), tokens)


def test_a_model_without_a_loop_is_told_what_was_looked_for(tokens):
    with pytest.raises(ValueError) as raised:
        discover(built(Once), tokens)
    message = str(raised.value)
    for part in ("no loop was found in Once", "HRM-Text", "early_exit_gate", "LoopedMaps(embed=", "loop_layers"):
        assert part in message


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("block.1", r"Stack has no module at 'block.1'; near it: blocks\.1"),
        ("head", "head run 1 times in a forward pass"),
        ([], "paths is empty"),
        (["blocks.1", "blocks.0"], "cut at more than one place"),
    ],
)
def test_wrong_paths_are_refused(paths, message, tokens):
    with pytest.raises(ValueError, match=message):
        discover(built(Stack), tokens, paths=paths)


class Three:
    """Three maps and no module."""

    num_loops = 3

    def embed(self, tokens: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(tokens, VOCAB).double()

    def step(self, h: Tensor) -> Tensor:
        return h + h.flip(-1)

    def readout(self, h: Tensor) -> Tensor:
        return h


def test_a_model_that_has_the_three_maps_needs_no_adapter(tokens):
    model = Three()
    maps = discover(model, {"input_ids": tokens, "labels": tokens})
    assert maps.num_loops == 3 and maps.step == model.step and maps.module is None
    assert torch.equal(maps.embed(tokens), model.embed(tokens))
    del Three.num_loops
    with pytest.raises(ValueError, match="num_loops is unknown"):
        discover(model, tokens)
    with pytest.raises(ValueError, match="str is no torch.nn.Module"):
        discover("gpt2", tokens)


def test_an_encoder_of_torch_can_be_looped():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(layer(), 2, norm=nn.LayerNorm(D), enable_nested_tensor=False).double().eval()
    h = torch.randn(2, 3, D, dtype=torch.float64)
    with pytest.raises(ValueError, match="no loop was found"):
        discover(encoder, h)
    once, maps = loop_layers(encoder, h, 1), loop_layers(encoder, h, 5)
    torch.testing.assert_close(once.readout(once.step(h)), encoder(h), rtol=1e-9, atol=1e-9)
    assert maps.num_loops == 5 and len(maps.sublayers) == 2
    directional_derivative(maps.step, h, h.sin())
    with pytest.raises(ValueError, match="num_loops must be at least 1"):
        loop_layers(encoder, h, 0)
    with pytest.raises(ValueError, match=r"no torch.nn.ModuleList of layers"):
        loop_layers(built(Cell), torch.zeros(1, 2, dtype=torch.long), 2)


def test_a_compiled_module_is_a_shell_around_the_one_that_loops(tokens):
    plain, model = built(Stack), built(Stack)
    model.blocks = nn.ModuleList([torch.compile(nn.Sequential(*model.blocks), backend="eager")])
    maps, expected = discover(model, tokens), discover(plain, tokens)
    assert maps.num_loops == expected.num_loops == K
    h = maps.embed(tokens)
    torch.testing.assert_close(maps.step(h), expected.step(h))
    torch.testing.assert_close(maps.readout(unroll(maps.step, h, K)[-1]), plain(tokens))

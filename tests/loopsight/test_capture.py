"""Calls of a reused module, each under its own number: recorded, replaced, under torch.func and torch.compile."""

import pytest
import torch
from torch import Tensor, nn

from loopsight.capture import capture
from loopsight.derivatives import differentiable_kernels

D = 6


class Core(nn.Module):
    """Returns a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, h: Tensor) -> tuple[Tensor, None]:
        return self.linear(h).tanh(), None


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core, self.head = Core(), nn.Linear(D, 3)

    def forward(self, h: Tensor) -> Tensor:
        for _ in range(4):
            h, _ = self.core(h)
            h.mul_(1.5)
        return self.head(h)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model().double().requires_grad_(False)


@pytest.fixture(scope="module")
def h() -> Tensor:
    return torch.randn(2, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_hand(model: Model, h: Tensor) -> list[Tensor]:
    states = []
    for _ in range(4):
        states.append(model.core.linear(h).tanh())
        h = 1.5 * states[-1]
    return states


def test_every_call_has_its_own_state_and_later_changes_in_place_do_not_reach_it(model, h):
    with capture(model, "core") as calls:
        model(h)
    assert list(calls) == [("core", n) for n in range(4)]
    for call, state in zip(calls.values(), by_hand(model, h), strict=True):
        torch.testing.assert_close(call.state, state, rtol=0, atol=0)
        assert call.module is model.core and isinstance(call.output, tuple)
    assert not torch.equal(calls["core", 0].state, calls["core", 3].state)


def test_a_replacement_changes_its_call_and_no_other(model, h):
    states = by_hand(model, h)
    with capture(model, "core", replace={("core", 2): lambda state: -state}) as calls:
        logits = model(h)
    torch.testing.assert_close(calls["core", 1].state, states[1], rtol=0, atol=0)
    torch.testing.assert_close(calls["core", 2].state, -states[2], rtol=0, atol=0)
    torch.testing.assert_close(logits, model.head(1.5 * model.core(-1.5 * states[2])[0]))
    with capture(model, replace={("core", 3): torch.zeros_like(h)}) as calls:
        assert torch.equal(model(h), model.head(torch.zeros_like(h)))
    assert calls == {}
    torch.testing.assert_close(model(h), model.head(1.5 * states[3]))  # no hook stays behind


def test_under_jvp_the_states_carry_their_tangents(model, h):
    direction = torch.ones_like(h)

    def second_state(h: Tensor) -> Tensor:
        with capture(model, "core") as calls:
            model(h)
        return calls["core", 1].state

    def clamped(h: Tensor) -> Tensor:
        with capture(model, replace={("core", 1): lambda state: state.detach()}):
            return model(h)

    with differentiable_kernels():
        tangent = torch.func.jvp(second_state, (h,), (direction,))[1]
        expected = torch.func.jvp(lambda h: by_hand(model, h)[1], (h,), (direction,))[1]
        torch.testing.assert_close(tangent, expected)
        assert torch.func.jvp(model, (h,), (direction,))[1].norm() > 1e-3
        assert not torch.func.jvp(clamped, (h,), (direction,))[1].any()


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_modules_run_uncompiled_so_that_their_hooks_fire(h, whole):
    torch.manual_seed(0)
    model = Model().double().requires_grad_(False)
    if whole:
        model = torch.compile(model, backend="eager")
    else:
        model.core = torch.compile(model.core, backend="eager")
    expected = model(h)
    with capture(model, "core", "core.linear") as calls:
        torch.testing.assert_close(model(h), expected)
    assert [path for path, _ in calls] == 4 * ["core.linear", "core"]


def test_wrong_paths_and_calls_that_are_never_made_are_named(model, h):
    with pytest.raises(ValueError, match="Model has no module at 'cor'; near it: core"):
        with capture(model, "cor"):
            pass
    with pytest.raises(ValueError, match="no call 7 of core to replace: it was called 4 times"):
        with capture(model, replace={("core", 7): h}):
            model(h)
    with pytest.raises(RuntimeError, match="own error"):  # not hidden behind the message above
        with capture(model, replace={("core", 7): h}):
            raise RuntimeError("own error")
    model(h)


def test_a_structured_output_keeps_its_form(h):
    class Named(nn.Module):
        def forward(self, h: Tensor) -> dict[str, object]:
            return {"note": "x", "state": h, "other": h + 1}

    model = nn.Sequential(Named())
    with capture(model, replace={("0", 0): 2 * h}):
        output = model(h)
    assert output["note"] == "x" and torch.equal(output["state"], 2 * h) and torch.equal(output["other"], h + 1)

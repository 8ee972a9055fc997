"""What an audit takes of model and batch: targets, penalty, buffers, modes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loopsight import LoopedMaps, audit, remedies
from loopsight.auditing.subject import IGNORED, as_maps, prepare


def targets_of(model, batch):
    return prepare(as_maps(model.eval(), batch, None), batch, None).targets


def test_a_causal_model_is_asked_for_the_next_token(make_model, tokens):
    found = targets_of(make_model(), tokens)
    assert torch.equal(found[:, :-1], tokens[:, 1:]) and (found[:, -1] == IGNORED).all()


def test_labels_in_the_batch_are_those_of_the_next_place(make_model, tokens):
    labels = tokens.masked_fill(torch.arange(20) < 12, IGNORED)
    found = targets_of(make_model(), {"input_ids": tokens, "labels": labels})
    assert torch.equal(found[:, :-1], labels[:, 1:]) and (found != IGNORED).sum() == 3 * 8


def test_padding_is_no_target_on_either_side(make_model, tokens):
    mask = torch.ones_like(tokens)
    mask[0, :5], mask[1, 17:] = 0, 0
    found = targets_of(make_model(), {"input_ids": tokens, "attention_mask": mask})
    assert (found[0] != IGNORED).tolist() == [5 <= t < 19 for t in range(20)]
    assert (found[1] != IGNORED).tolist() == [t < 16 for t in range(20)]
    assert torch.equal(found[2, :-1], tokens[2, 1:])


@pytest.mark.parametrize("share", [0.1, 1e-4])
@pytest.mark.parametrize("padding", [0, 9])
def test_a_model_that_looks_ahead_has_its_labels_in_place_and_no_next_token(make_model, tokens, share, padding):
    model = make_model()
    step, mask = model.step, torch.ones_like(tokens)
    mask[:, 20 - padding :] = 0
    seen = mask[..., None] / mask.sum(-1)[0]
    model.step = lambda h: step(h + share * (seen * h).sum(-2, keepdim=True))
    assert targets_of(model, {"input_ids": tokens, "attention_mask": mask}) is None
    labels = tokens.masked_fill(torch.arange(20) % 7 > 0, IGNORED)
    found = targets_of(model, {"input_ids": tokens, "labels": labels, "attention_mask": mask})
    assert torch.equal(found, labels.masked_fill(mask == 0, IGNORED))


def test_labels_that_are_no_classes_or_name_none_are_not_taken(make_model, tokens):
    found = targets_of(make_model(), {"input_ids": tokens, "labels": tokens + 0.5})
    assert torch.equal(found[:, :-1], tokens[:, 1:])
    nothing = {"input_ids": tokens, "labels": torch.full_like(tokens, IGNORED)}
    assert targets_of(make_model(), nothing) is None
    padded = {"input_ids": tokens, "attention_mask": torch.zeros_like(tokens)}
    assert targets_of(make_model(), padded) is None


def counting(make_model, where, in_place):
    model = make_model()
    model.register_buffer("count", torch.zeros(()))
    own = getattr(model, where)

    def counted(x):
        if in_place:
            model.count += 1.0
        else:
            model.count = model.count + 1.0
        return own(x)

    setattr(model, where, counted)
    return model


@pytest.mark.parametrize("where", ["step", "readout"])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_model_that_writes_into_its_buffers_is_refused_and_left_as_it_was(make_model, tokens, where, in_place):
    model = counting(make_model, where, in_place)
    with pytest.raises(ValueError, match="changes its buffer 'count' in every call"):
        audit(model, tokens)
    assert model.count == 0.0


def test_a_buffer_that_the_first_call_fills_stays_filled(make_model, tokens):
    model = make_model()
    model.register_buffer("positions", torch.full((20, 24), torch.nan))
    model.register_buffer("unused", torch.tensor(torch.nan))
    own, ready = model.embed, []

    def embed(x):
        if not ready:
            model.positions.copy_(torch.ones(20, 24))
            ready.append(True)
        return own(x) + model.positions[: x.shape[-1]]

    model.embed = embed
    first, second = (audit(model, tokens, symmetries=False) for _ in range(2))
    assert first.valid and first.loops == second.loops
    assert (model.positions == 1.0).all()


def test_inference_mode_is_named(make_model, tokens):
    with torch.inference_mode():
        with pytest.raises(ValueError, match="outside torch.inference_mode"):
            audit(make_model(), tokens)
        model = make_model()
    with pytest.raises(ValueError, match="was made in inference mode"):
        audit(model, tokens)


def test_a_penalty_has_a_value_for_every_token(make_model, tokens):
    with pytest.raises(ValueError, match=r"one value for every token, shape \(3, 20\), got \(\)"):
        audit(make_model(), tokens, penalty=lambda h: 0.01 * h.square().mean())
    seen = audit(make_model(), tokens, penalty=remedies.token_penalty(0.01), symmetries=False)
    assert seen.directions[0].verdict == "visible"


class Compiled(nn.Module):
    num_loops = 3

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.block, self.head = nn.Embedding(40, 24), nn.Linear(24, 24), nn.Linear(24, 40)

    def embed(self, tokens):
        return 4.0 * self.table(tokens)

    def step(self, h):
        return h + self.block(F.rms_norm(h, (24,), eps=1e-6))

    def readout(self, h):
        return self.head(F.rms_norm(h, (24,), eps=1e-6))

    def forward(self, tokens):
        h = self.embed(tokens)
        for _ in range(self.num_loops):
            h = self.step(h)
        return self.readout(h)


def test_a_compiled_model_is_the_model(tokens):
    model = Compiled()
    plain = audit(model, tokens, symmetries=False)
    compiled = audit(torch.compile(model, backend="eager"), tokens, symmetries=False)
    assert compiled.directions == plain.directions and compiled.name == plain.name
    assert isinstance(as_maps(model.eval(), tokens, None), LoopedMaps)

"""Gradients as training computes them: on a GPU, one recorded graph computes what its pieces do.

Where something is compiled, torch's compiler gives warnings of its own, which count as errors elsewhere.
"""

from dataclasses import replace

import pytest
import torch

from experiments.config import TrainingConfig
from experiments.training import gradients as module
from experiments.training.gradients import gradients_of, release
from models import PRESETS, LoopedLM, Supervision

TRAINING = TrainingConfig(steps=1, batch_size=4, micro_batches=2)
SUPERVISION = Supervision(placement="per_loop", norm_penalty=0.01)
VOCAB, CONTEXT = PRESETS["tiny"].vocab_size, PRESETS["tiny"].context


def batch(seed: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    window = torch.randint(VOCAB, (4, CONTEXT + 1), generator=torch.Generator().manual_seed(seed)).to(device)
    return window[:, :-1], window[:, 1:]


def build(dropout: float = 0.0, device: str = "cpu") -> LoopedLM:
    torch.manual_seed(0)
    return LoopedLM(replace(PRESETS["tiny"], dropout=dropout)).to(device).train()


def test_clipped_gradients_and_the_norm_before_clipping():
    model = build()
    loss, norm = gradients_of(model, TRAINING, SUPERVISION)(*batch(0))
    whole, free = gradients_of(model, replace(TRAINING, micro_batches=1, clip_norm=1e9), SUPERVISION)(*batch(0))
    assert norm.item() == pytest.approx(free.item(), rel=1e-5) and norm > TRAINING.clip_norm
    assert loss.total.item() == pytest.approx(whole.total.item(), rel=1e-6)
    total = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert total.item() == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "error:.*CUDA Graph is empty")
def test_nothing_compiled_or_computed_is_left_on_a_released_model():
    model = build()
    gradients_of(model, TRAINING, SUPERVISION, compiled=True)
    assert "step" in vars(model)
    release(model)
    assert "step" not in vars(model)
    gradients_of(model, TRAINING, SUPERVISION)(*batch(0))
    release(model)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "error:.*CUDA Graph is empty")
def test_a_recorded_graph_computes_what_its_pieces_do():
    found = {}
    for compiled in (False, True):
        model = build(device="cuda")
        gradients = gradients_of(model, TRAINING, SUPERVISION, compiled=compiled)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        losses, last = [], None
        for seed in range(4):
            loss, norm = gradients(*batch(seed, "cuda"))
            losses.append([loss.total.item(), *loss.cross_entropy.tolist(), *loss.mean_l2_norm.tolist(), norm.item()])
            last = torch.cat([p.grad.flatten() for p in model.parameters()]).clone()
            optimiser.step()
        found[compiled] = torch.tensor(losses), last
    torch.testing.assert_close(found[True][0], found[False][0], rtol=2e-2, atol=0.0)
    assert (found[True][1] - found[False][1]).norm() < 0.1 * found[False][1].norm()
    assert (found[True][0][:, 0].diff().abs() > 1e-3).all()  # every batch was looked at
    with pytest.raises(ValueError, match="takes batches of"):
        gradients(*(part[:2] for part in batch(0, "cuda")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "error:.*CUDA Graph is empty")
def test_dropout_of_a_recorded_graph_is_drawn_anew_and_goes_on_where_it_was():
    def losses(steps: int, random: torch.Tensor | None = None) -> list[float]:
        gradients = gradients_of(build(dropout=0.5, device="cuda"), TRAINING, SUPERVISION, compiled=True)
        if random is not None:
            torch.cuda.set_rng_state(random)
        return [gradients(*batch(0, "cuda"))[0].total.item() for _ in range(steps)]

    whole = losses(2)
    assert whole[0] != whole[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_recorded", lambda model, gradients: gradients)
        assert losses(1) == pytest.approx(whole[:1], rel=1e-5)
    assert losses(1) == whole[:1]
    assert losses(1, torch.cuda.get_rng_state()) == whole[1:]

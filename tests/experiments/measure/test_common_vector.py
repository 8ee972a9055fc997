"""What is common to all tokens along a training: of weights whose states are known, and of a real short run."""

from dataclasses import replace

import pytest
import torch

from experiments.errors import RunError
from experiments.measure.common_vector import COMMON, WINDOWS, common, measure
from experiments.training import snapshots
from experiments.training.trainer import train


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class HalfWay(torch.nn.Module):
    """Half of the way to a vector, which is a weight."""

    def __init__(self, vector):
        super().__init__()
        self.vector = torch.nn.Parameter(vector)

    def forward(self, h):
        return (h + self.vector) / 2


def test_a_planted_common_vector_is_seen_at_the_step_whose_weights_have_it(make_context, planted):
    vector = torch.zeros(32)
    vector[3] = 70.0
    context = make_context(model=planted(HalfWay(vector)))
    there = weights(context.model)
    gone = there | {"move.vector": torch.zeros(32)}
    table = common(context.model, {4: there, 9: gone}, context.windows).set_index("step")
    # Four loops leave 1/16 of an embedding of length 7, and 15/16 of the vector.
    own, share = 7 / 16, 15 / 16 * 70.0
    assert table.loc[4, "common_fraction"] == pytest.approx(share**2 / (share**2 + own**2), rel=1e-3)
    assert table.loc[9, "common_fraction"] < 0.2
    assert table["l2_norm"].tolist() == pytest.approx([share, own], rel=1e-2)
    torch.testing.assert_close(weights(context.model), there)


@pytest.mark.parametrize(
    ("variant", "blind"), [("untied_scale_invariant", True), ("untied_scale_visible", False), ("final_norm", True)]
)
def test_the_loss_is_asked_about_a_larger_common_vector(make_context, variant, blind):
    """A blind readout answers alike to smaller differences; a raw one does not."""
    context = make_context(variant)
    model, windows = context.model.double(), context.windows
    (row,) = common(model, {0: weights(model)}, windows).to_dict("records")

    @torch.no_grad()
    def slopes(h, *, is_last):
        """With a larger common vector, and with smaller differences."""
        mean = h.flatten(0, 1).mean(0)

        def loss(h):
            logits = model.readout(h, is_last=is_last)
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

        return [((loss(h + 1e-4 * by) - loss(h - 1e-4 * by)) / 2e-4).item() for by in (mean, mean - h)]

    _, first, *_, last = model(windows[:, :-1])
    larger, nearer = slopes(last, is_last=True)
    assert row["common_derivative"] == pytest.approx(larger, rel=1e-4)
    assert (row["common_derivative"] == pytest.approx(nearer, rel=1e-2)) == blind
    assert row["first_common_derivative"] == pytest.approx(slopes(first, is_last=False)[0], rel=1e-4)
    assert row["first_common_derivative"] != pytest.approx(larger, rel=1e-2)


def test_every_kept_step_of_a_training_is_looked_at(make_context, make_config, synthetic, execution, tmp_path):
    config = make_config("scale_invariant", steps=12, batch_size=4, learning_rate=1e-2)
    model = train(config, synthetic.train, tmp_path, replace(execution, snapshots=4))
    context = make_context("scale_invariant", model=model, windows=WINDOWS + 2)
    table = measure(context)["common"]
    assert table["step"].tolist() == sorted(snapshots.load(tmp_path))
    assert table["common_fraction"].between(0.0, 1.0).all() and table["common_fraction"].nunique() == len(table)
    with torch.no_grad():
        last = model(context.windows[:WINDOWS, :-1])[-1]
    states = last.flatten(0, 1)
    fraction = states.mean(0).square().sum() / states.square().sum(1).mean()
    assert table["common_fraction"].iloc[-1] == pytest.approx(fraction.item(), rel=1e-5)
    assert table["l2_norm"].iloc[-1] == pytest.approx(last.norm(dim=-1).mean().item(), rel=1e-5)


def test_a_run_without_snapshots_gives_an_empty_table(make_context):
    table = measure(make_context())["common"]
    assert table.empty and list(table.columns) == COMMON


def test_foreign_snapshots_are_refused(make_context, make_config, tmp_path):
    context = make_context()
    snapshots.save(torch.nn.Linear(2, 2), tmp_path, 0)
    with pytest.raises(RunError, match="not of its configuration"):
        measure(context)

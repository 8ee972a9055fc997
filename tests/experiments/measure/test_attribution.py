"""Attribution over weights whose change is known, and over a real short training."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from experiments.errors import RunError
from experiments.measure import attribution as module
from experiments.measure.attribution import ATTRIBUTION, PRESSURE, attribution, grouped, measure, pressure
from experiments.training import snapshots
from experiments.training.trainer import build_model, train
from experiments.variants import VARIANTS
from models import LoopedLM, Supervision, looped_loss

WRITERS = ("token embedding", "position embedding", "attention writers", "MLP writers")
CPU = torch.device("cpu")


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def mean_log_norm(model, point, tokens):
    model.load_state_dict(point)
    with torch.no_grad():
        return model(tokens)[-1].norm(dim=-1).log().mean().item()


@pytest.fixture
def exact(make_config):
    """A float64 model at initialisation without epsilon, untied, and tokens."""
    config = make_config("untied_scale_invariant")
    torch.manual_seed(0)
    return LoopedLM(replace(config.model, norm_eps=0.0)).double().eval(), torch.arange(16).view(2, 8)


def of_pair(model, before, after, tokens):
    table = attribution(model, {0: before, 7: after}, tokens)
    assert list(table.columns) == ATTRIBUTION
    assert (table["step_from"] == 0).all() and (table["step_to"] == 7).all()
    return table.set_index("group")["contribution"]


def test_scaling_all_writers_is_the_writers_doing(exact):
    """h_K(c w) = c h_K(w): a factor of 2 is log 2, all of it in the writers' rows."""
    model, tokens = exact
    before = weights(model)
    groups = grouped(list(before))
    after = {name: tensor.clone() for name, tensor in before.items()}
    for group in WRITERS:
        for name in groups[group]:
            after[name] *= 2.0
    shares = of_pair(model, before, after, tokens)
    assert shares["truth"] == pytest.approx(math.log(2.0))
    assert shares["sum"] == pytest.approx(math.log(2.0), rel=1e-2)
    assert shares[list(WRITERS)].sum() == pytest.approx(shares["sum"])
    assert shares.drop([*WRITERS, "sum", "truth"]).tolist() == [0.0] * (len(shares) - len(WRITERS) - 2)


def test_readout_and_head_do_nothing_to_the_norm(exact):
    model, tokens = exact
    before = weights(model)
    after = before | {name: 3.0 * before[name] for name in ("head.weight", "readout_features.norm.gain")}
    shares = of_pair(model, before, after, tokens)
    assert (shares == 0.0).all()


def test_groups_add_up_to_the_sum_and_the_sum_to_the_truth(exact):
    model, tokens = exact
    before = weights(model)
    generator = torch.Generator().manual_seed(1)
    after = {
        name: tensor
        + 0.3
        * tensor.std(correction=0).clamp(min=0.1)
        * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        for name, tensor in before.items()
    }
    shares = of_pair(model, before, after, tokens)
    truth = mean_log_norm(model, after, tokens) - mean_log_norm(model, before, tokens)
    assert shares["truth"] == pytest.approx(truth)
    assert shares.drop(["sum", "truth"]).sum() == pytest.approx(shares["sum"])
    assert abs(shares["sum"] - truth) < 0.02 < abs(truth)
    assert (shares.drop(["sum", "truth", "head", "readout gain"]) != 0.0).all()


def test_a_coarse_path_shows_in_the_sum(exact, monkeypatch):
    model, tokens = exact
    before = weights(model)
    after = {name: 30.0 * tensor if name.endswith("down.weight") else tensor for name, tensor in before.items()}
    error = []
    for segments in ((1,), (4, 64)):
        monkeypatch.setattr(module, "SEGMENTS", segments)
        shares = of_pair(model, before, after, tokens)
        error.append(abs(shares["sum"] - shares["truth"]))
    assert error[1] < 0.01 and error[0] > 5 * error[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_of_every_variant_is_in_one_group(make_config, variant):
    names = list(build_model(make_config(variant), CPU).state_dict())
    assert sorted(name for members in grouped(names).values() for name in members) == sorted(names)


def test_a_wrong_grouping_is_noticed(exact, monkeypatch):
    names = list(exact[0].state_dict())
    monkeypatch.setattr(module, "GROUPS", {g: p for g, p in module.GROUPS.items() if g != "MLP readers"})
    with pytest.raises(ValueError, match="in one group of GROUPS; not so: .*gate.weight"):
        grouped(names)
    monkeypatch.undo()
    monkeypatch.setattr(module, "GROUPS", module.GROUPS | {"twice": r"head\.weight"})
    with pytest.raises(ValueError, match="in one group of GROUPS"):
        grouped(names)


@pytest.mark.parametrize(
    "supervision", [Supervision(), Supervision(placement="terminal"), Supervision(norm_penalty=0.3)]
)
def test_the_pressure_is_the_loss_seen_through_the_embedding(supervision, make_context):
    """Untied, both embeddings rescaled together: h_0 and nothing else."""
    context = make_context("untied_scale_invariant")
    model, windows = context.exact, context.exact_windows
    point, delta = weights(model), 1e-5

    def loss(factor):
        scaled = {n: factor * t if "embedding" in n else t for n, t in point.items()}
        model.load_state_dict(scaled)
        with torch.no_grad():
            return looped_loss(model, windows[:, :-1], windows[:, 1:], supervision).total.item()

    expected = (loss(1 + delta) - loss(1 - delta)) / (2 * delta)
    model.load_state_dict(point)
    norm = model(windows[:, :-1])[-1].norm(dim=-1).mean().item()
    table = pressure(model, {3: point}, windows, supervision)
    assert table["step"].tolist() == [3] and table["norm"].tolist() == pytest.approx([norm])
    assert table["k0_pressure"].tolist() == pytest.approx([expected], rel=1e-6)
    assert abs(expected) > 1e-4


def test_the_pressure_at_other_weights_leaves_the_model_its_own(make_context):
    context = make_context()
    before = weights(context.exact)
    kept = {0: {name: 2.0 * tensor for name, tensor in before.items()}}
    pressure(context.exact, kept, context.exact_windows, context.config.supervision)
    assert all(torch.equal(before[name], tensor) for name, tensor in context.exact.state_dict().items())


@pytest.mark.parametrize("variant", ["terminal_scale_invariant", "norm_penalty"])
def test_the_pressure_measured_is_that_of_the_run_s_own_loss(variant, make_context, tmp_path):
    context = make_context(variant)
    snapshots.save(context.model, tmp_path, 0)
    found = measure(context)["pressure"]["k0_pressure"].tolist()
    windows = context.exact_windows[: module.WINDOWS]
    own = pressure(context.exact, {0: weights(context.exact)}, windows, context.config.supervision)
    per_loop = pressure(context.exact, {0: weights(context.exact)}, windows, Supervision())
    assert found == pytest.approx(own["k0_pressure"].tolist())
    assert found != pytest.approx(per_loop["k0_pressure"].tolist(), rel=1e-2)


def test_there_is_no_pressure_where_the_scale_is_removed(make_context, make_config):
    torch.manual_seed(0)
    model = LoopedLM(replace(make_config("scale_removing").model, norm_eps=0.0)).double()
    context = make_context("scale_removing", model=model)
    table = pressure(model, {0: weights(model)}, context.exact_windows, context.config.supervision)
    assert abs(table["k0_pressure"][0]) < 1e-12


def test_a_training_run_is_accounted_for(make_context, make_config, synthetic, execution, tmp_path):
    config = make_config("scale_invariant", steps=12, batch_size=4, learning_rate=1e-2)
    model = train(config, synthetic.train, tmp_path, replace(execution, snapshots=4))
    tables = measure(make_context("scale_invariant", model=model))
    table = tables["attribution"].pivot(index=["step_from", "step_to"], columns="group", values="contribution")
    steps = sorted(snapshots.load(tmp_path))
    assert list(table.index) == list(zip(steps[:-1], steps[1:], strict=True)) and steps[-1] == 12
    assert (table["sum"] - table["truth"]).abs().max() < 0.02 < abs(table["truth"].sum())
    assert table.drop(columns=["sum", "truth"]).sum(axis=1).tolist() == pytest.approx(table["sum"].tolist())
    assert tables["pressure"]["step"].tolist() == steps
    logs = [
        mean_log_norm(model.double(), point, make_context().exact_windows[:2, :-1])
        for point in ({n: t.double() for n, t in snapshots.load(tmp_path)[step].items()} for step in (0, 12))
    ]
    assert table["truth"].sum() == pytest.approx(logs[1] - logs[0])


def test_a_run_without_snapshots_gives_empty_tables(make_context):
    tables = measure(make_context())
    assert {name: list(table.columns) for name, table in tables.items()} == {
        "attribution": ATTRIBUTION,
        "pressure": PRESSURE,
    }
    assert all(table.empty for table in tables.values())


def test_damaged_or_foreign_snapshots_are_refused(make_context, tmp_path):
    context = make_context()
    path = tmp_path / snapshots.FOLDER / "step-000000.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"not weights")
    with pytest.raises(RunError, match="cannot read the weights kept in"):
        measure(context)
    save_file({"head.weight": torch.ones(2)}, path)
    with pytest.raises(RunError, match="kept at step 0 are not of its configuration; delete"):
        measure(context)

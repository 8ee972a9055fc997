"""A campaign keeps its plan, stops at its deadline, goes on from there, and packs what is finished."""

import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from experiments import campaign
from experiments.config import TRAINING_PRESETS
from experiments.corpus import CorpusConfig, prepare
from experiments.errors import Interrupted
from experiments.files import read_json
from experiments.flops import forward_flops, matmul_peak, training_flops
from experiments.measure.suite import SUITE, measure_run
from experiments.training.trainer import Execution
from experiments.variants import VARIANTS
from models import PRESETS

pytestmark = pytest.mark.usefixtures("undrawn")

CORPUS = CorpusConfig(data="synthetic", tokeniser="word", vocab_size=256)
LOOPS, DEFERRED = (question for question in SUITE if question.tables[0] in ("loops", "deferred"))
EXECUTION = Execution(device=torch.device("cpu"), snapshots=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def corpus(cache):
    return prepare(CORPUS, cache, min_tokens=PRESETS["tiny"].context + 1)


def plan_of(*runs, steps=3):
    training = TRAINING_PRESETS["tiny"]
    return campaign.Plan(
        preset="tiny",
        runs=runs,
        steps=steps,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        tokens_per_second=1e3,
        matmul_peak=1e9,
        corpus_key="",
    )


def test_the_central_variants_come_first_and_get_further_seeds():
    runs = campaign.queue(["norm_penalty", "scale_visible", "scale_invariant"], 2)
    assert runs == (
        ("scale_visible", 0),
        ("scale_invariant", 0),
        ("norm_penalty", 0),
        ("scale_invariant", 1),
        ("scale_visible", 1),
    )


def test_the_budget_is_shared_out_evenly(corpus, monkeypatch):
    monkeypatch.setattr(campaign, "TIMED", 3)

    def plan(**changes):
        given = {"preset": "tiny", "runs": (("scale_visible", 0),) * 4, "minutes": 2.0, "tokens": None}
        return campaign.make_plan(
            corpus, CORPUS, EXECUTION, **(given | {"batch_size": None, "learning_rate": None} | changes)
        )

    shared = plan()
    tokens = shared.steps * shared.batch_size * PRESETS["tiny"].context
    assert tokens * 4 / shared.tokens_per_second == pytest.approx(campaign.TRAINING_SHARE * 120.0, rel=0.02)
    given = plan(tokens=10_240, batch_size=4, learning_rate=1e-3)
    assert (given.steps, given.batch_size, given.learning_rate) == (80, 4, 1e-3)


def test_a_campaign_stops_at_its_deadline_and_goes_on(corpus, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.measure.suite.SUITE", (LOOPS,))
    measure = partial(measure_run, cache=cache, corpus=corpus)
    plan, runs = plan_of(("scale_visible", 0), ("scale_invariant", 0)), ["scale_visible-0", "scale_invariant-0"]
    campaign.write_plan(tmp_path, plan)
    assert campaign.read_plan(tmp_path) == plan
    late = replace(EXECUTION, deadline=time.monotonic())
    campaign.carry_out(plan, corpus, CORPUS, tmp_path, late, measure)
    assert campaign.unfinished(plan, tmp_path) == dict.fromkeys(runs, "not trained")
    campaign.pack(plan, tmp_path, tmp_path / "packed")
    assert read_json(tmp_path / "packed" / "runs.json")["missing"] == runs
    campaign.carry_out(plan, corpus, CORPUS, tmp_path, EXECUTION, lambda folder: None)
    assert campaign.unfinished(plan, tmp_path) == dict.fromkeys(runs, "without loops")
    campaign.carry_out(plan, corpus, CORPUS, tmp_path, EXECUTION, measure)
    assert campaign.unfinished(plan, tmp_path) == {}
    campaign.pack(plan, tmp_path, tmp_path / "packed")
    packed = read_json(tmp_path / "packed" / "runs.json")
    assert packed["missing"] == [] and packed["plan"]["steps"] == 3
    assert set(packed["runs"]) == set(packed["model_flops_utilisation"]) == set(runs)
    tokens = {run["summary"]["training"]["tokens"] for run in packed["runs"].values()}
    assert tokens == {3 * plan.batch_size * PRESETS["tiny"].context}  # equal for every run
    assert set(pd.read_csv(tmp_path / "packed" / "tables" / "loops.csv")["run"]) == set(runs)


def test_after_the_deadline_no_run_is_begun_and_before_it_each_as_planned(corpus, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(campaign, "run", lambda config, *_, **__: begun.append(config))
    plan = replace(plan_of(("scale_visible", 0), ("scale_invariant", 1)), batch_size=3, learning_rate=0.125)
    late = replace(EXECUTION, deadline=time.monotonic())
    assert campaign.carry_out(plan, corpus, CORPUS, tmp_path, late, lambda folder: None) == [] and not begun
    campaign.carry_out(plan, corpus, CORPUS, tmp_path, EXECUTION, lambda folder: None)
    assert [config.name for config in begun] == ["scale_visible-0", "scale_invariant-1"]
    for config in begun:
        training = config.training
        assert (training.steps, training.batch_size, training.learning_rate) == (3, 3, 0.125)


def test_a_rate_is_of_the_timed_steps_alone(corpus, make_config, monkeypatch):
    clock, config = [0.0], make_config(batch_size=4)

    def step(config, gradients, optimisers, windows, number):
        clock[0] += 2.0 if number >= campaign.WARM_UP else 100.0

    monkeypatch.setattr(campaign, "training_step", step)
    monkeypatch.setattr(campaign, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert campaign.measured_rate(config, corpus, EXECUTION) == pytest.approx(4 * config.model.context / 2.0)


def test_training_stops_at_the_deadline_and_keeps_its_state(corpus, tmp_path, capsys):
    plan, handed = plan_of(("scale_visible", 0), steps=10**6), []
    soon = replace(EXECUTION, deadline=time.monotonic() + 2.0)
    campaign.carry_out(plan, corpus, CORPUS, tmp_path, soon, handed.append)
    assert campaign.unfinished(plan, tmp_path) == {"scale_visible-0": "not trained"} and not handed
    assert "scale_visible-0: out of time, the same command goes on" in capsys.readouterr().out
    assert (tmp_path / "scale_visible-0" / "checkpoint.safetensors").exists()


def test_a_run_that_fails_is_named_and_the_others_go_on(corpus, tmp_path, capsys):
    handed = []
    (tmp_path / "scale_visible-0").mkdir()
    (tmp_path / "scale_visible-0" / "config.json").write_text("{")
    plan = plan_of(("scale_visible", 0), ("scale_invariant", 0))
    failed = campaign.carry_out(plan, corpus, CORPUS, tmp_path, EXECUTION, handed.append)
    assert handed == [tmp_path / "scale_invariant-0"] and failed == ["scale_visible-0"]
    assert "scale_visible-0 failed: cannot read" in capsys.readouterr().out
    lacking = campaign.unfinished(plan, tmp_path)
    assert list(lacking) == ["scale_visible-0", "scale_invariant-0"]


def test_an_interrupt_ends_the_campaign_and_not_its_run_alone(corpus, tmp_path, monkeypatch):
    begun = []

    def interrupted(config, *_, **__):
        begun.append(config.name)
        raise Interrupted("interrupted at step 1")

    monkeypatch.setattr(campaign, "run", interrupted)
    plan = plan_of(("scale_visible", 0), ("scale_invariant", 0))
    with pytest.raises(Interrupted, match="the same command goes on"):
        campaign.carry_out(plan, corpus, CORPUS, tmp_path, EXECUTION, lambda folder: None)
    assert begun == ["scale_visible-0"]


def test_arithmetic_is_counted_as_published():
    """MFLOP a token and loop: stack, attention, readout; GFLOP a token of training with the loss at every loop."""
    model = VARIANTS["scale_invariant"].model_config(PRESETS["44m"])
    assert [round(value / 1e6, 1) for value in forward_flops(model).values()] == [67.1, 4.2, 20.5]
    per_loop = training_flops(model, VARIANTS["scale_invariant"].supervision)
    assert per_loop / 1e9 == pytest.approx(1.10, abs=0.005)
    terminal = training_flops(model, VARIANTS["terminal_scale_invariant"].supervision)
    assert per_loop - terminal == pytest.approx(3 * 3 * 20.48e6)
    assert matmul_peak(torch.device("cpu"), rounds=1, repeats=1) > 1e8


def test_dry_run_of_the_command(tmp_path, inside, monkeypatch):
    """Of the suite, one question is asked beside training and one when it has ended."""
    monkeypatch.setattr("experiments.measure.suite.SUITE", (LOOPS, DEFERRED))
    arguments = ["--minutes", "5", "--preset", "tiny", "--device", "cpu", "--data", "synthetic", "--tokens", "1024"]
    arguments += ["--variants", "scale_visible", "--central-seeds", "1", "--snapshots", "1", "--out", tmp_path]
    done = inside(*arguments, main="experiments.gpu")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs, complete" in done.stdout  # measured by the process beside, and to its end
    tables = {path.stem for path in (tmp_path / "packed" / "tables").iterdir()}
    assert tables == {*LOOPS.tables, *DEFERRED.tables}
    packed, name = read_json(tmp_path / "packed" / "runs.json"), "scale_visible-0"
    assert packed["runs"][name]["summary"]["training"]["tokens"] == 1024
    assert 0.0 < packed["model_flops_utilisation"][name] < 1.0


def test_a_campaign_with_a_failed_run_packs_the_rest_and_exits_with_1(tmp_path, inside, monkeypatch):
    monkeypatch.setattr("experiments.measure.suite.SUITE", (LOOPS,))
    (tmp_path / "scale_visible-0").mkdir()
    (tmp_path / "scale_visible-0" / "config.json").write_text("{")
    arguments = ["--minutes", "5", "--preset", "tiny", "--device", "cpu", "--data", "synthetic", "--tokens", "1024"]
    arguments += ["--variants", "scale_visible", "layernorm", "--central-seeds", "1", "--out", tmp_path]
    done = inside(*arguments, main="experiments.gpu")
    assert done.returncode == 1 and "scale_visible-0 failed, see above" in done.stderr
    assert "layernorm-0" in read_json(tmp_path / "packed" / "runs.json")["runs"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--minutes", "0"], "--minutes must be positive"),
        (["--minutes", "inf"], "--minutes must be positive and finite"),
        (["--minutes", "1", "--preset", "cpu"], "the plan has preset tiny"),
        (["--minutes", "1", "--preset", "44M"], "unknown preset '44M'"),
        (["--minutes", "1", "--variants", "nonsense"], "unknown variant 'nonsense'"),
        (["--minutes", "1", "--snapshots", "-1"], "--snapshots must be at least 0"),
        (["--minutes", "1", "--learning-rate", "0.5"], "the plan has learning_rate"),
        (["--minutes", "1", "--tokens", "100000"], "the plan has steps 3, and this call asks for "),
        (["--minutes", "1", "--vocab-size", "128"], "the plan has corpus_key"),
        (
            ["--minutes", "1", "--variants", "norm_penalty", "--central-seeds", "1"],
            "the plan has runs scale_visible-0, and this call asks for norm_penalty-0",
        ),
        (
            ["--minutes", "1", "--variants", "scale_visible", "--central-seeds", "2"],
            "this call asks for scale_visible-0, scale_visible-1",
        ),
    ],
)
def test_requests_that_are_wrong_end_with_status_2(wrong, sentence, tmp_path, cache, corpus, inside):
    campaign.write_plan(tmp_path, replace(plan_of(("scale_visible", 0)), corpus_key=corpus.key))
    arguments = ["--device", "cpu", "--data", "synthetic", "--vocab-size", "256", "--preset", "tiny"]
    done = inside(*arguments, "--out", tmp_path, "--cache", cache, *wrong, main="experiments.gpu")
    assert done.returncode == 2
    assert sentence in done.stderr and done.stderr.count("\n") == 1

"""Arms are kept as they end, and are not trained twice."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from experiments.errors import RunError, UsageError
from experiments.measure.validation import Validation
from experiments.treatments import store
from experiments.treatments.store import run_arms, stored
from loopsight.auditing.report import Remedy

VALIDATION = Validation(tokens=9, cross_entropy=[3.0], l2_norm={"mean": [1.0]}, rescaled_cross_entropy={"0.5": 3.0})


def remedy(name):
    return Remedy(name=name, verdict="visible", l2_norm=None, loss_change=None, setting=1.0, effect="", line="")


@pytest.fixture
def trained(monkeypatch):
    """What was begun and trained; nothing is, really."""
    calls = []

    def begin(config, corpus, at, execution):
        calls.append("begin")
        report = SimpleNamespace(remedies=(remedy("damping"), remedy("prayer")))
        return SimpleNamespace(parameters=7, report=report, validation=VALIDATION)

    def treat(config, corpus, start, chosen, execution):
        name = "none" if chosen is None else chosen.name
        calls.append(name)
        if name == "prayer" and calls.count("prayer") == 1:
            raise KeyboardInterrupt
        return {"remedy": name, "before": asdict(VALIDATION)}

    monkeypatch.setattr(store, "begin", begin)
    monkeypatch.setattr(store, "controls", lambda start: (remedy("placebo"),))
    monkeypatch.setattr(store, "CONTROLS", ("placebo",))
    monkeypatch.setattr(store, "treat", treat)
    return calls


def test_an_interrupted_run_goes_on_with_the_arm_that_it_was_at(trained, make_config, synthetic, execution, tmp_path):
    config, path = make_config(), tmp_path / "run.json"
    with pytest.raises(KeyboardInterrupt):
        run_arms(config, synthetic, 3, execution, path)
    assert [arm["remedy"] for arm in stored(path)[0]["arms"]] == ["none", "damping"] and not stored(path)[0]["complete"]
    trained.clear()
    trained.append("prayer")
    run = run_arms(config, synthetic, 3, execution, path)
    assert trained[1:] == ["begin", "prayer", "placebo"]
    assert [arm["remedy"] for arm in run["arms"]] == ["none", "damping", "prayer", "placebo"]
    assert stored(path) == [json.loads(json.dumps(run))] and run["complete"] and len(run["sessions"]) == 2
    assert (run["parameters"], [r["name"] for r in run["remedies"]]) == (7, ["damping", "prayer"])
    assert synthetic.record.keys() - run["corpus"].keys() == {"files"}
    trained.clear()
    assert run_arms(config, synthetic, 3, execution, path) == stored(path)[0] and not trained


def test_a_run_of_before_there_was_a_control_gets_it(trained, make_config, synthetic, execution, tmp_path):
    config, path = make_config(), tmp_path / "run.json"
    trained.append("prayer")
    run = run_arms(config, synthetic, 3, execution, path)
    run["arms"].pop()
    del run["config"]["model"]["embedding_multiplier"]  # no option, then
    path.write_text(json.dumps([run]))
    trained.clear()
    run = run_arms(config, synthetic, 3, execution, path)
    assert trained == ["begin", "placebo"] and stored(path)[0]["arms"][-1]["remedy"] == "placebo"


def test_arms_that_began_with_other_weights_are_refused(trained, make_config, synthetic, execution, tmp_path):
    config, path = make_config(), tmp_path / "run.json"
    with pytest.raises(KeyboardInterrupt):
        run_arms(config, synthetic, 3, execution, path)
    (run,) = stored(path)
    run["arms"][0]["before"]["cross_entropy"] = [3.1]
    path.write_text(json.dumps([run]))
    with pytest.raises(RunError, match="has arms from other weights"):
        run_arms(config, synthetic, 3, execution, path)


def test_a_file_of_another_configuration_is_refused(trained, make_config, synthetic, execution, tmp_path):
    trained.append("prayer")
    run_arms(make_config(), synthetic, 3, execution, tmp_path / "run.json")
    for config, at in ((make_config(), 4), (make_config(learning_rate=1.0), 3)):
        with pytest.raises(UsageError, match="is of another configuration"):
            run_arms(config, synthetic, at, execution, tmp_path / "run.json")


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "[1]", '[{"run": "x"}]', "\x00"])
def test_a_file_that_holds_no_runs_is_refused(text, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(RunError, match=r"^(cannot read .*|.* holds no runs with remedies.*)\.$"):
        stored(path)
    with pytest.raises(RunError, match="cannot read"):
        stored(tmp_path / "none.json")


def test_a_file_of_another_version_is_named(trained, make_config, synthetic, execution, tmp_path):
    trained.append("prayer")
    run = run_arms(make_config(), synthetic, 3, execution, tmp_path / "run.json")
    run["config"]["model"]["gone"] = 1
    (tmp_path / "run.json").write_text(json.dumps([run]))
    with pytest.raises(RunError, match="cannot read .*gone"):
        run_arms(make_config(), synthetic, 3, execution, tmp_path / "run.json")

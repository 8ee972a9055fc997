"""What a run folder offers to whoever reads it without knowing us: its model, and validation tokens to try it on."""

import copy
import functools
import json
import operator
import re
from dataclasses import replace

import pytest
import torch

from experiments import runs
from experiments.errors import RunError
from experiments.training.metrics import read_metrics
from experiments.training.trainer import CHECKPOINT, train


@pytest.fixture
def folder(tmp_path, make_config, monkeypatch):
    monkeypatch.setattr(runs, "default_cache", lambda: tmp_path / "cache")
    runs.write_config(tmp_path, make_config())
    return tmp_path


def test_a_run_folder_names_the_functions_that_read_it(folder):
    written = json.loads((folder / runs.CONFIG).read_text(encoding="utf-8"))
    for name in ("factory", "batch"):
        module, function = written[name].split(":")
        assert module == "experiments.runs" and callable(getattr(runs, function))


def test_the_batch_is_the_start_of_the_validation_part(folder, make_config, synthetic):
    tokens = runs.load_batch(folder)
    context = make_config().model.context
    assert tokens.shape == (runs.SEQUENCES, context) and tokens.dtype == torch.int64
    assert tokens.flatten()[:50].tolist() == synthetic.validation[:50].tolist()


def test_a_corpus_that_has_changed_is_refused(folder, make_config):
    runs.write_config(folder, replace(make_config(), corpus_key="another"))
    with pytest.raises(RunError, match="has changed on this machine"):
        runs.load_batch(folder)


def test_a_run_that_was_stopped_is_no_trained_model(make_config, synthetic, execution, tmp_path):
    config = make_config(steps=4)
    train(config, synthetic.train, tmp_path, execution)
    runs.write_config(tmp_path, replace(config, training=replace(config.training, steps=8)))
    with pytest.raises(RunError, match="is not finished .step 4 of 8."):
        runs.load_model(tmp_path)
    runs.write_config(tmp_path, replace(config, seed=1))
    with pytest.raises(RunError, match="made by another configuration"):
        runs.load_model(tmp_path)
    runs.write_config(tmp_path, config)
    assert not runs.load_model(tmp_path).training
    (tmp_path / CHECKPOINT).unlink()
    with pytest.raises(RunError, match="the run is not finished"):
        runs.load_model(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\n", b"{\n", b"{}\n", b'{"step": "1"}\n', b"3\n"])
def test_a_damaged_training_curve_is_named(content, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(RunError, match="metrics.jsonl is damaged"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_summary_nested_beyond_reading_is_named(tmp_path):
    (tmp_path / runs.SUMMARY).write_text("[" * 100_000)
    with pytest.raises(RunError, match="cannot read .* is this the folder of a run"):
        runs.read_summary(tmp_path)


def test_a_description_of_the_environment_that_is_no_list_is_named(tmp_path):
    (tmp_path / "environment.json").write_text("5")
    with pytest.raises(RunError, match="another version"):
        runs.read_sessions(tmp_path)


OF_KIND = {str: "", int: 0, int | float: 0.5, str | None: None, object: None, dict: {}}


def example(kinds, loops):
    """What is asked for, and nothing else."""
    if isinstance(kinds, dict):
        return {key.removesuffix("?"): example(inner, loops) for key, inner in kinds.items()}
    return [example(kinds[0], loops)] * loops if isinstance(kinds, list) else OF_KIND[kinds]


@pytest.fixture
def summary(make_config):
    config = make_config()
    return copy.deepcopy(
        example(runs.SUMMARY_KINDS, config.model.num_loops) | {"variant": config.variant, "config": config.to_dict()}
    )


def places(kinds, above=()):
    """Of every entry: where it is, and its kind."""
    if isinstance(kinds, list):
        yield (*above, 0), kinds[0]
        yield from places(kinds[0], (*above, 0))
    elif isinstance(kinds, dict):
        for key, inner in kinds.items():
            yield (*above, key.removesuffix("?")), f"{key}?" if key.endswith("?") else inner
            yield from places(inner, (*above, key.removesuffix("?")))


PLACES = dict(places(runs.SUMMARY_KINDS))
MAY_BE_MISSING = [place for place, kind in PLACES.items() if isinstance(kind, str)]


def test_a_summary_that_has_what_is_read_of_it_is_read(summary, tmp_path):
    for missing in (None, *MAY_BE_MISSING):
        whole = copy.deepcopy(summary)
        if missing is not None:
            *above, key = missing
            del functools.reduce(operator.getitem, above, whole)[key]
            null = copy.deepcopy(summary)
            functools.reduce(operator.getitem, above, null)[key] = None
            (tmp_path / runs.SUMMARY).write_text(json.dumps(null))
            assert runs.read_summary(tmp_path) == null
        whole["validation"]["l2_norm"]["of another version"] = 5
        (tmp_path / runs.SUMMARY).write_text(json.dumps(whole))
        assert runs.read_summary(tmp_path) == whole


@pytest.mark.parametrize("place", [*PLACES, ("config", "seed")], ids=str)
def test_a_summary_with_another_kind_of_entry_is_named_with_it(place, summary, tmp_path):
    *above, key = place
    named = "config" if place[0] == "config" else ".".join(map(str, place))
    for wrong in ("missing", None, True, "text", 3, 0.5, [], ["a"], {}, {"a": 1}):
        damaged = copy.deepcopy(summary)
        inside = functools.reduce(operator.getitem, above, damaged)
        if wrong == "missing":
            if place in MAY_BE_MISSING or isinstance(key, int):
                continue
            del inside[key]
        elif place == ("config", "seed") or is_right(wrong, PLACES[place]):
            continue
        else:
            inside[key] = wrong
        (tmp_path / runs.SUMMARY).write_text(json.dumps(damaged))
        with pytest.raises(
            runs.DamagedSummary, match=rf"or damaged \({re.escape(named)}[.0-9a-z_]*\); delete"
        ) as found:
            runs.read_summary(tmp_path)
        assert found.value.where.startswith(f"{tmp_path.name}: {named}")


def is_right(value, kind):
    if isinstance(kind, (dict, list)):
        return False
    if isinstance(kind, str):
        return value is None
    return kind is object or isinstance(value, kind) and not isinstance(value, bool)


@pytest.mark.parametrize(
    "place", ["validation.cross_entropy", "validation.l2_norm.p99", "state.radial_gradient_fraction"]
)
def test_a_summary_with_fewer_numbers_than_loops_is_named(place, summary, tmp_path):
    functools.reduce(operator.getitem, place.split("."), summary).pop()
    (tmp_path / runs.SUMMARY).write_text(json.dumps(summary))
    with pytest.raises(RunError, match=f"damaged .{place}.; delete it"):
        runs.read_summary(tmp_path)


def test_a_summary_that_is_no_table_or_of_no_variant_or_corpus_is_named(summary, tmp_path):
    config = copy.deepcopy(summary["config"])
    config["corpus"]["vocab_size"] = -1
    wrong = {"variant": "none", "config": config}
    for damaged, named in ((3, "all of it"), *((summary | {name: value}, name) for name, value in wrong.items())):
        (tmp_path / runs.SUMMARY).write_text(json.dumps(damaged))
        with pytest.raises(RunError, match=f"another version or damaged .{named}.; delete it"):
            runs.read_summary(tmp_path)

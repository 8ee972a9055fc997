"""What was loaded is what was stored, or an error says why not. Nothing is downloaded: the models are folders."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from loopsight.adapters import discover, load_hf
from loopsight.adapters.hub import require_stored, stored_tensors


@pytest.fixture(params=["hrm_text", "albert"])
def saved(request, build, tmp_path):
    model = build(request.param).float()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_a_saved_model_comes_back_and_is_audited_alike(saved, tokens):
    model, folder = saved
    loaded, tokeniser = load_hf(folder)
    assert type(loaded) is type(model) and not loaded.training and tokeniser is None
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    ours, own = discover(loaded, tokens), discover(model, tokens)
    torch.testing.assert_close(ours.step(ours.embed(tokens)), own.step(own.embed(tokens)), rtol=0, atol=0)


CODE = """
from transformers import AlbertConfig, AlbertForMaskedLM, PreTrainedTokenizerFast


class Config(AlbertConfig):
    model_type = "of_its_own"


class Model(AlbertForMaskedLM):
    config_class = Config


class Words(PreTrainedTokenizerFast):
    pass
"""


def change_json(path, **changes):
    kept = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({name: value for name, value in kept.items() if value is not None}), encoding="utf-8")


def save_tokeniser(folder):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def test_trusted_code_is_run_for_configuration_model_and_tokeniser(build, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "model"
    build("albert").float().save_pretrained(folder)
    save_tokeniser(folder)
    (folder / "code.py").write_text(CODE, encoding="utf-8")
    own = {"AutoConfig": "code.Config", "AutoModelForMaskedLM": "code.Model"}
    change_json(folder / "config.json", model_type="of_its_own", auto_map=own)
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "code.Words"]})
    model, tokeniser = load_hf(folder, trust_remote_code=True)
    assert [type(part).__name__ for part in (model.config, model, tokeniser)] == ["Config", "Model", "Words"]


def test_a_stored_tokeniser_is_loaded(build, tmp_path):
    build("albert").float().save_pretrained(tmp_path)
    save_tokeniser(tmp_path)
    assert load_hf(tmp_path)[1].encode("b") == [1]


@pytest.mark.parametrize(
    ("kind", "architectures"),
    [
        ("hrm_text", ["HrmTextForCausalLM", "HrmTextForMaskedLM"]),
        ("hrm_text", None),
        ("albert", ["AlbertForPreTraining"]),
    ],
)
def test_the_head_is_the_one_that_the_architectures_name(kind, architectures, build, tmp_path):
    model = build(kind).float()
    model.save_pretrained(tmp_path)
    change_json(tmp_path / "config.json", architectures=architectures)
    assert type(load_hf(tmp_path)[0]) is type(model)


def test_pickled_weights_are_not_read(build, tmp_path):
    model = build("albert").float()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded: .*safetensors"):
        load_hf(tmp_path)


def test_tensors_are_compared_in_the_model_s_dtype_and_in_every_shape():
    layer, stored = nn.Linear(2, 2).double(), torch.ones(2, 2)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    require_stored(layer, iter([("weight", stored)]))
    with pytest.raises(ValueError, match="weight of the loaded Linear is not what its file holds"):
        require_stored(layer, iter([("weight", stored[:1])]))
    with pytest.raises(ValueError, match="nothing could be checked"):
        require_stored(layer.to("meta"), iter([("weight", stored)]))


def test_weights_initialised_again_after_loading_are_found(saved, monkeypatch):
    import transformers

    _, folder = saved
    for name in ("AutoModelForCausalLM", "AutoModelForMaskedLM"):
        loader = getattr(transformers, name)
        original = loader.from_pretrained.__func__

        def reinitialised(cls, *args, original=original, **kwargs):
            model, info = original(cls, *args, **kwargs)
            with torch.no_grad():
                list(model.parameters())[-1].normal_()
            return model, info

        monkeypatch.setattr(loader, "from_pretrained", classmethod(reinitialised))
    with pytest.raises(ValueError, match="is not what its file holds"):
        load_hf(folder)


def test_a_tensor_that_the_files_do_not_hold_is_an_error(saved):
    _, folder = saved
    file = folder / "model.safetensors"
    tensors = dict(stored_tensors(str(folder)))
    gone = sorted(tensors)[-1]
    del tensors[gone]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"does not hold {gone}.*would be random"):
        load_hf(folder)


def test_sharded_files_are_read_and_foreign_ones_refused(build, tmp_path):
    model = build("hrm_text").float()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert len(dict(stored_tensors(str(tmp_path)))) > 15
    require_stored(model, stored_tensors(str(tmp_path)))
    with pytest.raises(ValueError, match="nothing could be checked"):
        require_stored(model, iter([("other", Tensor([1.0]))]))


def test_code_is_not_run_without_being_trusted(tmp_path):
    config = {"model_type": "ouro", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "code.py").write_text("raise RuntimeError('this code was run')", encoding="utf-8")
    with pytest.raises(ValueError, match="needs its own code to be run: pass trust_remote_code=True"):
        load_hf(tmp_path)


@pytest.mark.parametrize(
    ("kind", "works"),
    [
        ("ouro", "install transformers==4.57.6"),
        ("huginn_raven", "transformers==4.57.6"),
        ("nothing", "cannot be loaded"),
    ],
)
def test_a_kind_that_this_version_does_not_know_names_the_one_that_does(kind, works, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    with pytest.raises(ValueError, match=works):
        load_hf(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_configuration_that_is_none_is_one_sentence(text, tmp_path):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_hf(tmp_path)


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (RuntimeError(), "RuntimeError"),
        (RuntimeError("trust_remote_code\nis on"), "trust_remote_code is on"),
        (RuntimeError("x" * 400), "x" * 300),
    ],
)
def test_whatever_trusted_code_raises_is_one_sentence(cause, said, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise cause

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    with pytest.raises(ValueError, match=f"cannot be loaded: {said}$"):
        load_hf(tmp_path, trust_remote_code=True)


def test_a_missing_folder_and_a_missing_extra_are_one_sentence(tmp_path, monkeypatch):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="cannot be loaded"):
            load_hf(folder)
    for package in ("transformers", "safetensors"):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"pip install \"loopsight\[hf\]\""):
            patch.setitem(sys.modules, package, None)
            load_hf(tmp_path)

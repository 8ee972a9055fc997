"""What was loaded is what was stored, or an error says why not. Nothing is downloaded: the models are folders."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

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


def test_a_missing_folder_and_a_missing_extra_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_hf(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install \"loopsight\[hf\]\""):
        load_hf(tmp_path)

"""A checkpoint is whole or refused, and never runs code."""

import pickle

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from experiments.errors import RunError
from experiments.training import checkpoint as checkpoints


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    tensors = {"model.weight": torch.arange(6.0).view(2, 3), "random.cpu": torch.get_rng_state()}
    checkpoints.save(checkpoints.Checkpoint(step=7, config={"seed": 1}, tensors=tensors), path)
    return path


def test_what_is_saved_is_read_back(saved):
    loaded = checkpoints.load(saved)
    assert (loaded.step, loaded.config) == (7, {"seed": 1})
    assert torch.equal(loaded.part("model")["weight"], torch.arange(6.0).view(2, 3))
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]  # no temporary file stays behind


@pytest.mark.parametrize("position", [0.001, 0.5, 0.999])
def test_a_flipped_byte_is_found(saved, position):
    data = bytearray(saved.read_bytes())
    data[int(position * (len(data) - 1))] ^= 0xFF
    saved.write_bytes(bytes(data))
    with pytest.raises(RunError, match=r"delete it to start the run afresh"):
        checkpoints.load(saved)


def test_tensors_that_changed_names_are_found(saved):
    with safe_open(saved, framework="pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    tensors["model.wrong"] = tensors.pop("model.weight")
    save_file(tensors, saved, metadata=header)
    with pytest.raises(RunError, match="its digest does not match"):
        checkpoints.load(saved)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(RunError, match="cannot read the checkpoint"):
        checkpoints.load(saved)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RunError, match="cannot read the checkpoint"):
        checkpoints.load(tmp_path / "none.safetensors")


def test_a_foreign_file_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(RunError, match="not a checkpoint of format"):
        checkpoints.load(tmp_path / "foreign.safetensors")


def test_a_pickle_is_refused_and_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(RunError):
        checkpoints.load(path)
    assert not ran.exists()


def test_a_failed_save_keeps_the_old_checkpoint(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match=f"disk full: '{saved}'"):
        checkpoints.save(checkpoints.Checkpoint(step=8, config={}, tensors={"model.w": torch.zeros(1)}), saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]

"""What interrupts a benchmark gets one sentence, also while torch is being imported."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import training
from experiments.errors import RunError
from experiments.readme import ROOT

INTERRUPTING = """
import os, signal, sys

class AtTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, AtTorch())
"""
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_interrupt_before_torch_is_there_gets_one_sentence(script, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: interrupted; what was written is whole; run the same command again.\n"


def test_a_process_of_a_benchmark_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(training.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=-9, stdout=""))
    with pytest.raises(RunError, match="measuring memory ours 44m ended with exit status -9; what"):
        training._child("memory", "ours", "44m")

"""What is installed, and what must not be: the wheel holds `loopsight` alone; functorch is torch's own."""

import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import warnings
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    copy = tmp_path_factory.mktemp("source") / "tree"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "results", "__pycache__"))
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(copy / "dist"),
        str(copy),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = (copy / "dist").glob("*.whl")
    return path


def test_the_wheel_holds_loopsight_alone(wheel):
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"loopsight"}


def test_the_wheel_imports_and_starts_its_command_without_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
import importlib.metadata, loopsight
print(loopsight.__file__)
(command,) = importlib.metadata.distribution("loopsight").entry_points.select(group="console_scripts")
sys.exit(command.load()(["audit"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith(str(tmp_path))
    assert done.returncode == 2 and "name one model" in done.stderr


def test_functorch_resolves_to_torch_and_is_not_required():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import functorch
    import torch

    assert Path(functorch.__file__).parent.parent == Path(torch.__file__).parent.parent
    assert callable(functorch.jvp) and callable(torch.func.jvp)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    assert not [requirement for requirement in listed if requirement.startswith("functorch")]
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("functorch")

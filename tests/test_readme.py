"""What the README tells people to type works, and what it shows comes from the committed results."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.readme import place_of, section

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("results/**/README.md"))]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True) for language, block in BLOCKS if language == "bash" for line in block.splitlines()
]


def scripts(commands):
    return [command for command in commands if command[0] == "python" and command[1].endswith(".py")]


def test_it_opens_with_the_two_commands():
    assert BLOCKS[0][0] == "bash"
    assert COMMANDS[:2] == [["make", "run"], ["make", "test"]]


def test_every_make_target_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = {command[1] for command in COMMANDS if command[0] == "make"} | set(re.findall(r"`make ([\w-]+)`", README))
    assert {"run", "test", "notebooks", "sweep"} <= named <= targets


WRONG = {
    "experiments/run.py": ["--variant", "nonsense"],
    "experiments/gpu.py": ["--minutes", "0", "--out", "nowhere"],
    "experiments/report.py": ["nowhere"],
    "experiments/publish.py": ["nowhere", "nowhere"],
    "experiments/grid.py": ["rates", "nowhere"],
    "experiments/readme.py": ["planted", "nowhere"],
    "experiments/screenshot.py": ["nowhere"],
    "experiments/long_profile.py": ["P0"],
    "benchmarks/audit.py": ["--device", "nonsense", "--out", "nowhere"],
    "benchmarks/gpu.py": ["--publish", "nowhere"],
    "benchmarks/monitor.py": ["--rounds", "1", "--out", "nowhere"],
    "benchmarks/training.py": ["speed", "--rounds", "0"],
    "benchmarks/planted.py": ["--each", "0", "--out", "nowhere"],
}
STARTER = """
import contextlib, io, json, runpy, sys
root, requests = sys.argv[1], json.loads(sys.argv[2])
path = sys.path[1:]

def start(script, *arguments):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("benchmarks", "experiments", "models")]:
        del sys.modules[name]
    sys.path[:] = [f"{root}/{script}".rpartition("/")[0], *path]  # as `python SCRIPT` has it
    sys.argv[:] = [script, *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            runpy.run_path(f"{root}/{script}", run_name="__main__")
            status = "did not exit"
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException as raised:
            status = repr(raised)
    return status, error.getvalue()

print(json.dumps([start(*request) for request in requests]))
"""


def start_from_elsewhere(tmp_path, requests):
    """Statuses, and what went to standard error, of scripts with arguments.

    One process for all of them, since importing torch takes seconds; our own modules are imported anew for each.
    """
    arguments = [sys.executable, "-c", STARTER, str(ROOT), json.dumps(requests)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_script_starts_from_anywhere_and_refuses_a_wrong_request_in_one_sentence(tmp_path):
    named = sorted({command[1] for command in scripts(COMMANDS)} | WRONG.keys())
    helped = [[script, "--help"] for script in named]
    wrong = [[script, *arguments] for script, arguments in WRONG.items()]
    found = start_from_elsewhere(tmp_path, helped + wrong)
    assert [status for status, _ in found[: len(helped)]] == [0] * len(helped), found
    for request, (status, error) in zip(wrong, found[len(helped) :], strict=True):
        assert status == 2 and error.startswith("error: ") and error.count("\n") == 1, (request, status, error)


def test_every_option_and_variant_parses():
    import tyro

    from experiments.command import Arguments
    from experiments.config import TRAINING_PRESETS
    from experiments.variants import select

    runs = [command[2:] for command in scripts(COMMANDS) if command[1] == "experiments/run.py"]
    assert len(runs) >= 4
    for arguments in runs:
        parsed = tyro.cli(Arguments, args=arguments)
        assert select(parsed.variant) and parsed.preset in TRAINING_PRESETS
    with pytest.raises(SystemExit):
        tyro.cli(Arguments, args=["--variant", "scale_visible", "--no-such-option"])


def test_every_line_of_the_auditor_parses():
    from loopsight.auditing.command import _parsed
    from loopsight.auditing.request import CannotAsk

    audits = [command[2:] for command in COMMANDS if command[:2] == ["loopsight", "audit"]]
    assert len(audits) >= 3
    for arguments in audits:
        asked = _parsed(arguments)
        assert [asked.run, asked.factory, asked.hf].count(None) == 2
    with pytest.raises(CannotAsk):
        _parsed(["runs/scale_invariant-0", "--html", "audit.html"])


def test_the_python_example_runs_and_prints_what_it_says(capsys):
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out == "['scale']\ntensor(True)\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_sections_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:[\w.]+/)+[\w.]*)`", text):
        if not path.startswith("runs/"):
            assert (ROOT / path).exists() or (page.parent / path).exists(), path
    headings = {
        "#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    }
    for path in re.findall(r"\]\(((?!https?:)[^)]+)\)", text):
        assert path in headings or (page.parent / path).exists(), path


STORED = [
    ("contrast", "results/contrast/comparison.md"),
    ("long", "results/long/comparison.md"),
    ("rates", "results/rates/rates.md"),
    ("sizes", "results/sizes/sizes.md"),
    ("multipliers", "results/multipliers/multipliers.md"),
    ("momenta", "results/momenta/momenta.md"),
    ("placements", "results/placements/placements.md"),
    ("remedies", "results/remedies/remedies.md"),
    ("cpu", "results/cpu/comparison.md"),
    ("44m", "results/44m/comparison.md"),
    ("44m-growth", "results/44m/growth.md"),
    ("129m", "results/129m/comparison.md"),
    ("129m-growth", "results/129m/growth.md"),
    ("claims", "results/cpu/report/claims.md"),
    ("factorial", "results/factorial/factorial.md"),
    ("propositions", "results/theory/propositions.md"),
    ("planted", "results/audit/planted.md"),
    ("training", "results/benchmarks/training.md"),
    ("gpu", "results/benchmarks/gpu.md"),
    ("monitor", "results/benchmarks/monitor.md"),
    ("audit", "results/benchmarks/audit.md"),
]


@pytest.mark.parametrize(("name", "stored"), STORED)
def test_tables_are_those_of_the_committed_results(name, stored):
    place = place_of(name)
    assert section(place.read_text(encoding="utf-8"), name) == (ROOT / stored).read_text(encoding="utf-8").strip("\n")


def test_every_section_that_commands_write_is_looked_at():
    written = [name for page in PAGES for name in re.findall(r"^<!-- ([\w-]+) -->$", page.read_text(), re.MULTILINE)]
    assert len(written) == len(set(written)) and set(written) == {"long_profile", *(name for name, _ in STORED)}

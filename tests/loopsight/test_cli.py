"""The command `loopsight audit`: what it prints and writes, its exit statuses, its one-sentence failures."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import loopsight
from loopsight import AuditReport, audit, cli
from loopsight.auditing import command
from loopsight.auditing.request import one_line

FACTORY = """
import torch
import torch.nn.functional as F
from torch import nn

from loopsight import LoopedMaps


class Looped(nn.Module):
    num_loops = 2

    def __init__(self, normed=True):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.up, self.down = nn.Embedding(30, 16), nn.Linear(16, 40), nn.Linear(40, 16)
        self.head, self.normed = nn.Linear(16, 30, bias=False), normed

    def embed(self, tokens):
        return 3 * self.table(tokens)

    def step(self, h):
        return h + self.down(F.silu(self.up(F.rms_norm(h, (16,), eps=1e-6))))

    def readout(self, h):
        return self.head(F.rms_norm(h, (16,), eps=1e-6) if self.normed else h)


def blind(folder=None):
    return Looped()


def visible():
    return Looped(normed=False), torch.arange(30).view(2, 15)


def batch(folder):
    return torch.arange(30).view(3, 10)


def raises():
    raise RuntimeError("no weights\\nhere")


def nothing():
    return 3


def nan():
    model = Looped()
    nn.init.constant_(model.up.weight, float("nan"))
    return model


def zero_head():
    model = Looped()
    nn.init.zeros_(model.head.weight)
    return model


def bare():
    own = Looped()
    return LoopedMaps(embed=own.embed, step=own.step, readout=own.readout, num_loops=2), torch.arange(20).view(2, 10)


def mapping():
    return Looped(), {"input_ids": torch.arange(30).view(2, 15), "note": "as tokenisers add them"}


def leaves():
    raise SystemExit(3)


def positions():
    # a larger table that is not the one of tokens
    model = Looped()
    model.other = nn.Embedding(500, 16)
    return model


def secretive():
    # as transformers' own models whose embedding has another name
    model = Looped()
    model.get_input_embeddings = lambda: (_ for _ in ()).throw(NotImplementedError("not auto-handled"))
    return model


class Cut(nn.Module):
    # a plain module, in which a block and a norm run once a loop each

    def __init__(self):
        super().__init__()
        self.own, self.norm, self.block = Looped(), nn.RMSNorm(16), nn.Linear(16, 16)

    def forward(self, tokens):
        h = self.own.embed(tokens)
        for _ in range(4):
            h = self.block(h)
            logits = self.own.head(self.norm(h))
        return logits


def cut():
    return Cut(), torch.arange(30).view(2, 15)  # in training mode, as a factory's model may be


def fails():
    model = Looped()
    model.head = nn.Linear(17, 30)
    return model
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    (tmp_path / "their_model.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("their_model", None)


def run(*arguments):
    return cli.main(["audit", *arguments, "--sequences", "2", "--length", "10"])


def test_a_factory_is_audited_and_the_verdict_comes_first(workplace, capsys):
    assert run("--factory", "their_model:blind") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("BLIND AND ACTIVE") and "random token ids" in printed
    report = AuditReport.from_json((workplace / "audit.json").read_text(encoding="utf-8"))
    assert report.blind_and_active
    shown = (workplace / "audit.html").read_text(encoding="utf-8")
    assert shown.count("<svg") == 2 and "BLIND AND ACTIVE" in shown and "http" not in shown.split("<svg")[0]
    assert sorted(path.name for path in workplace.glob("audit*")) == ["audit.html", "audit.json"]


@pytest.mark.parametrize("place", ["experiments/__init__.py", "experiments.py"])
def test_a_run_folder_may_name_the_repository_s_functions_but_not_bring_them(workplace, monkeypatch, capsys, place):
    folder = workplace / "run"
    (folder / place).parent.mkdir(parents=True)
    (folder / place).write_text("raise SystemExit('this was run')", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"factory": "experiments.runs:load_model"}), encoding="utf-8")
    monkeypatch.chdir(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
        monkeypatch.delitem(sys.modules, name)
    assert run(".", "--no-html") == 2
    assert "if you trust it" in capsys.readouterr().err
    (folder / "config.json").write_text(json.dumps({"factory": "experiments.runs:read_config"}), encoding="utf-8")
    monkeypatch.chdir(workplace)
    assert run("run", "--no-html") == 2


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("one two.", "one two"),
        ("two\n lines", "two lines"),
        ("word " * 100, "word " * 80 + "..."),
        ("x" * 500, "x" * 400 + " ..."),
        ("short: " + "x" * 500, "short: ..."),
    ],
)
def test_what_others_say_is_shown_in_one_line(said, shown):
    assert one_line(ValueError(said)) == shown


def test_whoever_stops_reading_gets_the_files_all_the_same(workplace, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as unread:  # whose end, as that of a process, writes what is left
        monkeypatch.setattr(sys, "stdout", unread)
        assert run("--factory", "their_model:blind") == 0
    assert sorted(path.name for path in workplace.glob("audit*")) == ["audit.html", "audit.json"]


def test_a_run_folder_names_its_factory_and_its_batch(workplace, capsys):
    names = {"factory": "their_model:blind", "batch": "their_model:batch"}
    (workplace / "run").mkdir()
    (workplace / "run" / "config.json").write_text(json.dumps(names), encoding="utf-8")
    assert run("run", "--no-html") == 2  # code that somebody else's folder names is not run unasked
    assert "names a function to be run, their_model:blind; if you trust it" in capsys.readouterr().err
    assert run("run", "--no-html", "--trust-remote-code") == 0
    assert "random token ids" not in capsys.readouterr().out
    assert AuditReport.from_json((workplace / "audit.json").read_text(encoding="utf-8")).tokens == 30
    assert not (workplace / "audit.html").exists()


@pytest.mark.parametrize(
    ("factory", "fail_on", "status"),
    [("blind", "blind", 3), ("blind", "active", 3), ("visible", "blind", 0), ("visible", "active", 0)],
)
def test_fail_on(workplace, factory, fail_on, status):
    assert run("--factory", f"their_model:{factory}", "--fail-on", fail_on, "--no-html") == status


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--factory", "their_model:raises"], 1, "raised RuntimeError: no weights here; call it by itself"),
        (["--factory", "their_model:nothing"], 1, "returned int; it must return a torch module or LoopedMaps"),
        (["--factory", "their_model:nan"], 1, "the parameter 'up.weight' holds NaN"),
        (["--factory", "their_model:leaves"], 1, "raised SystemExit: 3"),
        (["--factory", "their_model:fails"], 1, "the model failed while it was audited (RuntimeError"),
        (["--factory", "their_model:missing"], 2, "has no function missing"),
        (["--factory", "no_such_module:x"], 2, "cannot import no_such_module"),
        (["--factory", "their_model"], 2, "write package.module:function"),
        (["nowhere"], 2, "is nowhere the folder of a run?"),
        ([], 2, "name one model"),
        (["--factory", "a:b", "--hf", "c"], 2, "got factory and hf"),
        (["--factory", "their_model:blind", "--ids", "none.txt"], 2, "cannot read none.txt"),
        (["--factory", "their_model:blind", "--text", "their_model.py"], 2, "pass --ids"),
        (["--factory", "their_model:blind", "--unknown"], 2, "loopsight audit -h"),
        (["--factory", "their_model:blind", "--loops", "0"], 2, "expected --loops >= 1"),
        (["--factory", "their_model:blind", "--groups", "1"], 2, "--groups >= 2"),
        (["--factory", "their_model:blind", "--out", "."], 2, "--out . is a folder; name the files in it"),
        (["--factory", "their_model:bare", "--device", "cpu"], 2, "these maps name none"),
    ],
)
def test_a_failure_is_one_sentence_and_a_status(workplace, capsys, arguments, status, sentence):
    assert run(*arguments) == status
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and sentence in said
    assert not list(workplace.glob("audit*"))


def test_ids_from_a_file_are_the_batch(workplace):
    (workplace / "ids.txt").write_text(" ".join(str(n % 30) for n in range(45)), encoding="utf-8")
    assert run("--factory", "their_model:blind", "--ids", "ids.txt", "--no-html") == 0
    report = AuditReport.from_json((workplace / "audit.json").read_text(encoding="utf-8"))
    assert report.tokens == 20 and not [note for note in report.notes if "random" in note]


def test_a_mapping_is_moved_with_the_model(workplace):
    assert run("--factory", "their_model:mapping", "--device", "cpu", "--no-html") == 0


def test_a_run_whose_batch_is_no_function_is_named(workplace, capsys):
    (workplace / "run").mkdir()
    (workplace / "run" / "config.json").write_text('{"factory": "their_model:blind", "batch": 5}', encoding="utf-8")
    assert run("run") == 2
    assert '"batch" in run/config.json must be "package.module:function", got 5' in capsys.readouterr().err


def test_an_interrupt_while_the_page_is_drawn_leaves_the_json(workplace, capsys, monkeypatch):
    def interrupted(report):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "html", interrupted)
    assert run("--factory", "their_model:blind") == 1
    assert "those named above are written, and whole" in capsys.readouterr().err
    assert AuditReport.from_json((workplace / "audit.json").read_text(encoding="utf-8")).blind


def test_an_interrupt_while_torch_is_imported_gets_a_sentence(tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    arguments = [sys.executable, "-m", "loopsight", "audit", "run"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd="/", env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 1 and done.stderr.startswith("error: interrupted") and done.stderr.count("\n") == 1


def test_what_the_package_offers_is_there_when_it_is_asked_for():
    assert all(getattr(loopsight, name).__name__ == name for name in loopsight.__all__)
    as_audits_write_it = "import loopsight; assert loopsight.remedies.norm_penalty and 'audit' in dir(loopsight)"
    subprocess.run([sys.executable, "-c", as_audits_write_it], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'audits'"):
        getattr(loopsight, "audits")  # noqa: B009


def test_no_command_is_usage(capsys):
    assert cli.main([]) == 2 and cli.main(["monitor"]) == 2
    assert "usage: loopsight audit" in capsys.readouterr().err


def test_figures_without_matplotlib_name_the_line_that_installs_it(workplace, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("--factory", "their_model:blind") == 2
    assert 'pip install "loopsight[cli]"' in capsys.readouterr().err
    assert run("--factory", "their_model:blind", "--no-html") == 0


def test_a_zero_head_is_an_invalid_audit_and_no_failure(workplace, capsys):
    assert run("--factory", "their_model:zero_head", "--no-html") == 0
    assert capsys.readouterr().out.startswith("AUDIT INVALID")
    assert run("--factory", "their_model:zero_head", "--no-html", "--fail-on", "active") == 3


def test_token_ids_are_drawn_for_the_table_of_tokens(workplace):
    assert run("--factory", "their_model:positions", "--no-html") == 0


def test_what_could_not_be_judged_fails_where_blindness_would(workplace, monkeypatch):
    def unsure(*arguments, **options):
        report = audit(*arguments, **options)
        return replace(report, directions=tuple(replace(d, verdict="undecided") for d in report.directions))

    monkeypatch.setattr(command, "audit", unsure)
    for fail_on, status in (("nothing", 0), ("blind", 3), ("active", 3)):
        assert run("--factory", "their_model:visible", "--no-html", "--fail-on", fail_on) == status


def test_a_model_that_hides_its_embedding_is_given_tokens_all_the_same(workplace):
    assert run("--factory", "their_model:secretive", "--no-html") == 0


def test_a_model_that_can_be_cut_at_several_places_is_cut_where_one_says(workplace, capsys):
    assert run("--factory", "their_model:cut", "--no-html") == 1
    assert "can be cut at more than one place" in capsys.readouterr().err
    assert run("--factory", "their_model:cut", "--no-html", "--paths", "block") == 0
    printed = capsys.readouterr().out
    assert "4 loops" in printed and "note: the model was cut so: Cut, state at the output of block." in printed
    assert run("--factory", "their_model:bare", "--no-html", "--paths", "block") == 1
    assert "paths are those of a torch module's parts, and LoopedMaps is none" in capsys.readouterr().err
    assert run("--factory", "their_model:cut", "--no-html", "--paths", "nowhere") == 1
    assert "nowhere" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(workplace, capsys):
    assert run("--hf", "./nowhere", "--no-html") == 2
    assert capsys.readouterr().err.startswith("error: there is no folder ./nowhere")


def test_the_json_is_there_when_the_page_fails(workplace, capsys, monkeypatch):
    def fails(report):
        raise RuntimeError("no ink")

    monkeypatch.setattr(command, "html", fails)
    assert run("--factory", "their_model:blind") == 1
    assert "the page could not be drawn (RuntimeError: no ink); the JSON is complete" in capsys.readouterr().err
    assert AuditReport.from_json((workplace / "audit.json").read_text(encoding="utf-8")).blind


def test_a_verdict_that_cannot_be_printed_gets_a_sentence(monkeypatch):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(command.AuditFailed, match="cannot print .*No space left on device.*; is there space"):
            command._say("found nothing")

"""What a report was made from and how to make it again, from the runs' own records."""

import shlex
from collections.abc import Callable, Iterable
from typing import Any

from experiments.provenance import size_name
from experiments.reporting.collect import Collection


def setting(collection: Collection) -> str:
    """One line: size, training, data, seeds."""
    run = collection.runs[0]
    training, corpus = run.config.training, run.summary["corpus"]
    variants = {r.config.variant for r in collection.runs}
    return (
        f"{_number(len(collection.runs), 'run')}: {_number(len(variants), 'variant')}, seeds {_seeds(collection)}. "
        f"{size_name([run.config])} ({run.summary['parameters']:,} parameters in {run.config.variant}), "
        f"{training.steps} steps of {training.batch_size} x {run.config.model.context} tokens, learning rate "
        f"{training.learning_rate:g}, {run.config.model.num_loops} loops; {run.summary['validation']['tokens']:,} "
        f"held-out tokens. {corpus.get('note') or ''}"
    ).strip()


def commands(collection: Collection) -> list[str]:
    """The command lines that trained the runs, and the one that makes the report of them."""
    trained = _distinct(_sessions(collection), lambda session: _command(session["command"]))
    return [*trained, "python experiments/report.py RUNS -o report/   # RUNS: the folder of --out above"]


def environment(collection: Collection, today: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value, each value all that was seen in training; then the report's own."""
    sessions = _sessions(collection)
    dates = sorted(session["date"][:10] for session in sessions)
    dirty = any(session["uncommitted_changes"] for session in sessions)
    measured = [run.record["environment"] for run in collection.runs]
    corpora = {str(run.summary["corpus"].get("source")) for run in collection.runs}
    return [
        ("seeds", _seeds(collection)),
        ("variants", ", ".join(dict.fromkeys(run.config.variant for run in collection.runs))),
        ("data", ", ".join(sorted(corpora))),
        ("trained", dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"),
        ("trained on", _all(sessions, lambda s: f"{s['processor']}, {s['device']}, {s['torch_threads']} thread(s)")),
        ("Python, torch", _all(sessions, lambda s: f"{s['python']}, {s['packages']['torch']}")),
        (
            "commit of training",
            _all(sessions, lambda s: (s["commit"] or "unknown")[:10]) + " with uncommitted changes" * dirty,
        ),
        ("measured", _all(measured, lambda m: f"{m['date'][:10]}, {m['processor']}, {m['device']}")),
        ("commit of measurement", _all(measured, lambda m: (m["commit"] or "unknown")[:10])),
        ("reported", today["date"]),
        ("reported on", f"{today['processor']}, Python {today['python']}, {today['platform']}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in today["packages"].items())),
        (
            "commit of the report",
            (today["commit"] or "unknown")[:10] + " with uncommitted changes" * bool(today["uncommitted_changes"]),
        ),
    ]


def _sessions(collection: Collection) -> list[dict[str, Any]]:
    return [session for run in collection.runs for session in run.summary["sessions"]]


def _command(words: list[str]) -> str:
    # Where a script or its output lay on that machine helps nobody.
    script = words[0][words[0].rfind("experiments/") :] if "experiments/" in words[0] else words[0]
    shown = ["RUNS" if before in ("--out", "-o") else word for before, word in zip(words, words[1:], strict=False)]
    hidden = {i for i, word in enumerate(words[1:]) if word == "--cache"}
    kept = [word for i, word in enumerate(shown) if i not in hidden and i - 1 not in hidden]
    return shlex.join(["python", script, *kept])


def _seeds(collection: Collection) -> str:
    return ", ".join(map(str, sorted({run.config.seed for run in collection.runs})))


def _all(sessions: list[dict[str, Any]], describe: Callable[[dict[str, Any]], str]) -> str:
    return "; ".join(_distinct(sessions, describe))


def _distinct(sessions: Iterable[dict[str, Any]], describe: Callable[[dict[str, Any]], str]) -> list[str]:
    return list(dict.fromkeys(map(describe, sessions)))


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"

"""The command `loopsight audit`: from its options to a verdict on the screen, and to files."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from loopsight.auditing.page import INSTALL, html
from loopsight.auditing.report import AuditReport
from loopsight.auditing.request import AuditFailed, CannotAsk, Request, model_and_batch, one_line
from loopsight.auditing.run import audit
from loopsight.auditing.wording import in_words

FOUND = 3  # exit status of an audit that was made and found what --fail-on names


def main(given: Sequence[str]) -> int:
    """Carry out what follows `loopsight audit`; returns the exit status."""
    try:
        return _audit(_parsed(given))
    except CannotAsk as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except AuditFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parsed(given: Sequence[str]) -> Request:
    try:
        import tyro
    except ImportError as error:
        raise CannotAsk(f"the package tyro is missing; install it with: {INSTALL}.") from error
    if given and not given[0].startswith("-"):
        given = ["--run", *given]
    try:
        return tyro.cli(Request, args=given, prog="loopsight audit [RUN]")
    except SystemExit as stop:
        if stop.code:
            raise CannotAsk("see above; RUN comes first, and `loopsight audit -h` lists what can be asked.") from stop
        raise


def _audit(arguments: Request) -> int:
    if arguments.html:
        _require_figures()
    model, batch, notes = model_and_batch(arguments)
    try:
        report = audit(
            model,
            batch,
            paths=arguments.paths or None,
            num_loops=arguments.loops,
            groups=arguments.groups,
            symmetries=arguments.symmetries,
        )
    except ValueError as error:
        raise AuditFailed(f"the model cannot be audited: {error}") from error
    except Exception as error:  # whatever the user's own code raises
        raise AuditFailed(
            f"the model failed while it was audited ({type(error).__name__}: {one_line(error)}); "
            "run embed, step and readout on this batch by themselves to see where."
        ) from error
    name = arguments.factory or arguments.hf or (arguments.run.resolve().name if arguments.run else report.name)
    cut = (f"the model was cut so: {report.name}.",) if arguments.paths else ()
    report = dataclasses.replace(report, name=name, notes=(*notes, *cut, *report.notes))
    _say(in_words(report))
    _write(report, arguments)
    return FOUND if _failed(report, arguments.fail_on) else 0


def _failed(report: AuditReport, fail_on: str) -> bool:
    if fail_on == "nothing":
        return False
    # An audit that could not judge has not cleared the model.
    found = report.blind if fail_on == "blind" else report.blind_and_active
    return not report.valid or bool(found or report.undecided)


def _write(report: AuditReport, arguments: Request) -> None:
    _write_text(report.to_json(), arguments.out.with_name(arguments.out.name + ".json"))
    if arguments.html:
        try:
            page = html(report)
        except Exception as error:  # matplotlib may raise anything for odd numbers
            raise AuditFailed(
                f"the page could not be drawn ({type(error).__name__}: {one_line(error)}); the JSON is complete."
            ) from error
        _write_text(page, arguments.out.with_name(arguments.out.name + ".html"))


def _write_text(text: str, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise AuditFailed(f"cannot write {path} ({error}); name another place with --out.") from error
    _say(f"written: {path}")


def _say(text: str) -> None:
    """To whom still listens: behind `| head` the files are written all the same."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise AuditFailed(f"cannot print ({error}); is there space where the output goes?") from error


def _require_figures() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise CannotAsk(
            f"figures need matplotlib, which is missing; install it with: {INSTALL}, or pass --no-html."
        ) from error

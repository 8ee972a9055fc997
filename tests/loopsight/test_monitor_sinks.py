"""Sinks: JSON lines that survive a killed run, TensorBoard scalars by loop, and sinks that fail."""

import json
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from loopsight.monitor import JsonLines, LoopMonitor, LoopMonitorWarning, TensorBoard
from loopsight.monitoring.sinks import scalars


def run(*sinks, steps: int = 2) -> None:
    with LoopMonitor(sinks=sinks, every=1) as monitor:
        for step in range(steps):
            h = torch.full((3, 4), 1.0 + step, requires_grad=True)
            monitor.observe_states([2.0 * h, 3.0 * h], first=1)
            monitor.end_step()


def test_json_lines_are_strict_appended_and_complete_after_each_record(tmp_path):
    path = tmp_path / "new" / "loop.jsonl"
    seen = []

    def read(record: dict) -> None:
        seen.append([json.loads(line) for line in path.read_text().splitlines()])

    run(JsonLines(path), read)
    run(JsonLines(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [len(lines) for lines in seen] == [1, 2] and len(lines) == 4
    assert [line["step"] for line in lines] == [0, 1, 0, 1]
    assert lines[0]["mean_l2_norm"] == [4.0, 6.0] and lines[0]["total_radial_gradient_fraction"] == [None, None]


def test_numbers_that_json_does_not_know_are_null(tmp_path):
    path = tmp_path / "loop.jsonl"
    JsonLines(path)({"event": "sample", "step": 0, "norms": (1.0, math.inf), "inner": {"loops": math.nan}})
    assert json.loads(path.read_text()) == {
        "event": "sample",
        "step": 0,
        "norms": [1.0, None],
        "inner": {"loops": None},
    }


def test_tensorboard_has_a_curve_for_every_loop_and_warnings_as_text(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoard(writer)
    run(sink)
    sink({"event": "warning", "step": 1, "kind": "overflow", "message": "it overflows"})
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    curve = events.Scalars("loop_monitor/mean_l2_norm/loop_2")
    assert [(event.step, event.value) for event in curve] == [(0, 6.0), (1, 12.0)]
    assert "loop_monitor/total_radial_gradient_fraction/loop_1" not in events.Tags()["scalars"]  # there was no gradient
    assert "loop_monitor/stagnation/bfloat16/frozen" in events.Tags()["scalars"]
    assert "loop_monitor/warning/text_summary" in events.Tags()["tensors"]


def test_scalars_have_names_by_loop_and_path():
    record = {"event": "sample", "step": 3, "loops": (1, 4), "drive": (None, 0.5), "growth": {"rate": 2, "model": "a"}}
    assert list(scalars(record)) == [("drive/loop_4", 0.5), ("growth/rate", 2.0)]


def test_a_sink_that_fails_is_dropped_with_a_warning_and_the_others_go_on():
    records, calls = [], []

    def broken(record: dict) -> None:
        calls.append(record)
        raise OSError("disk full")

    with pytest.warns(LoopMonitorWarning, match=r"raised OSError\('disk full'\) and gets no more records"):
        run(broken, records.append)
    assert len(calls) == 1 and len(records) == 2

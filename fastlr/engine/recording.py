"""When each stage of a plan began and ended: for tables, traces and profilers of GPUs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

from fastlr.kernels.files import replacing
from fastlr.kernels.message_passing.cost import Cost


class Event(NamedTuple):
    """A stage of an evaluation: seconds of a clock, and what there was to do, if somebody has counted."""

    name: str
    start: float
    stop: float
    cost: Cost | None


class Recorder:
    """Collects events. Where the package ``nvtx`` is installed, ranges of the same names are marked for profilers.

    Attributes:
        evaluations: the events of each, the first of which is the whole.
    """

    def __init__(self):
        self.evaluations: list[list[Event]] = []
        self._annotate = None
        if find_spec("nvtx") is not None:
            from nvtx import annotate

            self._annotate = annotate

    @contextmanager
    def evaluation(self, name: str = "evaluation"):
        """What is run inside belongs to one evaluation."""
        events = []
        self.evaluations.append(events)
        start = time.perf_counter()
        yield
        events.insert(0, Event(name, start, time.perf_counter(), None))

    def run(self, name: str, function: Callable, cost: Cost | None = None):
        """Call ``function`` as a stage."""
        if self._annotate is None:
            start = time.perf_counter()
            result = function()
        else:
            with self._annotate(name, domain="fastlr"):
                start = time.perf_counter()
                result = function()
        self.evaluations[-1].append(Event(name, start, time.perf_counter(), cost))
        return result

    def table(self) -> list[tuple[str, float, Cost | None]]:
        """(stage, median seconds, cost) in the order of the stages; the whole first, then what is between them."""
        times, costs = {}, {}
        for whole, *events in self.evaluations:
            spans = {}
            for event in events:
                spans[event.name] = spans.get(event.name, 0.0) + event.stop - event.start
                costs[event.name] = event.cost
            times.setdefault(whole.name, []).append(whole.stop - whole.start)
            times.setdefault("between stages", []).append(whole.stop - whole.start - sum(spans.values()))
            for name, seconds in spans.items():
                times.setdefault(name, []).append(seconds)
        return [(name, median(values), costs.get(name)) for name, values in times.items()]

    def save_trace(self, path: str | Path) -> None:
        """Events in the Trace Event Format, which Perfetto and the tracing pages of browsers open; the file appears
        when it is whole."""
        events = [event for evaluation in self.evaluations for event in evaluation]
        origin = min((event.start for event in events), default=0.0)
        rows = []
        for event in events:
            row = {"name": event.name, "ph": "X", "pid": os.getpid(), "tid": 1, "cat": "fastlr"}
            row |= {"ts": 1e6 * (event.start - origin), "dur": 1e6 * (event.stop - event.start)}
            if event.cost is not None:
                row["args"] = event.cost._asdict()
            rows.append(row)
        with replacing(path) as partial:
            partial.write_text(json.dumps({"traceEvents": rows, "displayTimeUnit": "ms"}), encoding="utf-8")

"""What is recorded of an evaluation: every stage, in order, and a trace that viewers open."""

import itertools
import json

import pytest
from reference import structures
from reference.models import small_model

from fastlr import Potential
from fastlr.engine.recording import Recorder


@pytest.mark.parametrize("name", ["nequip", "lr"])
def test_stages_are_recorded(name, tmp_path):
    potential = Potential(small_model(name))
    graph = potential.graph(structures.salt())
    expected = potential.plan.evaluate(graph)
    potential.plan.recorder = recorder = Recorder()
    for _ in range(3):
        found = potential.plan.evaluate(graph)
    potential.plan.recorder = None
    assert all(bool((found[key].nan_to_num() == expected[key].nan_to_num()).all()) for key in expected)
    potential.plan.evaluate(graph)
    assert len(recorder.evaluations) == 3
    names = [stage.name for stage in potential.plan.stages()]
    for whole, *events in recorder.evaluations:
        assert [event.name for event in events] == names
        assert all(whole.start <= event.start <= event.stop <= whole.stop for event in events)
        assert all(a.stop <= b.start for a, b in itertools.pairwise(events))
    (first, total, _), (between, rest, _), *rows = recorder.table()
    assert (first, between) == ("evaluation", "between stages")
    assert [row[0] for row in rows] == names
    assert 0.0 < rest < total
    costs = [cost for _, _, cost in rows if cost is not None]
    assert len(costs) >= 5
    assert all(cost.operations > 0 and cost.num_bytes > 0 for cost in costs)

    recorder.save_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len(trace) == 3 * (1 + len(names))
    for event in trace:
        assert event["ph"] == "X"
        assert event["dur"] >= 0.0 <= event["ts"]


def test_costs_grow_with_the_structure():
    potential = Potential(small_model("nequip"))
    sums = []
    for repeat in (1, 2):
        potential.predict(structures.salt() * (repeat, repeat, repeat))
        costs = [stage.cost for stage in potential.plan.stages() if stage.cost is not None]
        sums.append((sum(cost.operations for cost in costs), sum(cost.num_bytes for cost in costs)))
    assert sums[1][0] == pytest.approx(8.0 * sums[0][0], rel=0.05)
    assert sums[1][1] == pytest.approx(8.0 * sums[0][1], rel=0.05)


def test_without_nvtx(monkeypatch):
    monkeypatch.setattr("fastlr.engine.recording.find_spec", lambda name: None)
    recorder = Recorder()
    with recorder.evaluation():
        assert recorder.run("stage", lambda: 7) == 7
    assert [event.name for event in recorder.evaluations[0]] == ["evaluation", "stage"]

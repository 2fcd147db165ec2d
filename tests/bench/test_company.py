"""Runs beside others are measured."""

import numpy as np
from fastlr.bench import company


def test_boxes_of_water():
    atoms = company.water(192)
    assert atoms.get_chemical_formula() == "H128O64"
    distances = atoms.get_all_distances(mic=True) + 9.0 * np.eye(192)
    assert 0.9 < distances.min() < 1.0


def test_what_is_made_of_the_times(monkeypatch):
    """Steps that take as many milliseconds as there are threads, but for one in five hundred."""
    steps = (
        "import json, sys; _, n, steps = map(int, sys.argv[1:]); print(json.dumps(([n] * 499 + [9 * n]) * 2 * steps))"
    )
    monkeypatch.setattr(company, "STEPS", steps)
    monkeypatch.setattr(company.os, "sched_getaffinity", lambda _: range(2))
    (row,) = company.run_company(6, steps=2, rounds=1, say=[].append)
    found = {name: (values["median_ms"], values["quantile_999_ms"]) for name, values in row["company"].items()}
    assert found["alone, one thread"] == (1.0, 9.0)
    assert found["alone"] == found["two at once"] == found["beside a busy process"] == (2.0, 18.0)
    assert found["four threads a core"] == (8.0, 72.0)
    assert row["ratios"] == {"two at once / one thread alone": 2.0, "four threads a core / best alone": 8.0}


def test_the_longest_round_does_not_count():
    assert company._best([(2.0, 3.0), (2.0, 50.0), (4.0, 6.0)]) == {"median_ms": 3.0, "quantile_999_ms": 6.0}


def test_steps_are_timed():
    median, longest = company._one(6, 1, 5, 1, True)
    assert 0.0 < median <= longest

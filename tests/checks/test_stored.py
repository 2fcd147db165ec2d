"""Reference results on disk."""

import torch
from fastlr.kernels import cache
from reference.models import small_model

from fastlr.checks.stored import fingerprint, stored


def test_computed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLR_CACHE", str(tmp_path))
    calls = []

    def compute():
        calls.append(1)
        return {"a": torch.arange(3.0), "b": torch.tensor(7)}

    for _ in range(2):
        found = stored("numbers", "key", compute)
        assert torch.equal(found["a"], torch.arange(3.0))
        assert found["b"] == 7
    assert len(calls) == 1
    stored("numbers", "another key", compute)
    assert len(calls) == 2
    (file, _) = sorted(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    (_, other) = sorted(tmp_path.iterdir())
    cache.write(other.name, b"whole, but no tensors")
    for key in ("key", "another key"):
        assert torch.equal(stored("numbers", key, compute)["a"], torch.arange(3.0))
    assert len(calls) == 4


def test_fingerprints_tell_models_apart():
    model = small_model("nequip")
    first = fingerprint(model)
    assert fingerprint(small_model("nequip")) == first
    assert fingerprint(small_model("nequip", cutoff_p=5.0)) != first
    assert fingerprint(small_model("nequip", dtype="float32")) != first
    with torch.no_grad():
        next(model.parameters()).view(-1)[-1] += 1e-12
    assert fingerprint(model) != first

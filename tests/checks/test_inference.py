"""Executors beside the reference: what is refused before a number reaches the user."""

import pytest
from fastlr.kernels.message_passing import cpu
from reference.models import small_model

import fastlr.potential
from fastlr import Potential
from fastlr.engine import stages
from fastlr.errors import BackendError


def spoil(monkeypatch, name: str, results: list[int]) -> None:
    """Scale what a layer kernel leaves in some of its tensors by 1.01."""
    make = getattr(stages, name)

    def made(*arguments):
        call = make(*arguments)
        run = call.__class__.__call__

        class Wrong(call.__class__):
            def __call__(self, bounds):
                run(self, bounds)
                for number in results:
                    self.tensors[number].mul_(1.01)

        call.__class__ = Wrong
        return call

    monkeypatch.setattr(stages, name, made)


# name -> tensors that it writes, by their place in the call
KERNELS = {
    "forward_call": [0, 1],
    "backward_call": [17],
    "mix_call": [0],
    "collect_call": [0],
    "edges_call": [11],
    "edge_forces_call": [7],
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layer_kernels(name, dtype, monkeypatch):
    assert set(KERNELS) == {key for key in vars(cpu) if key.endswith("_call")}
    spoil(monkeypatch, name, KERNELS[name])
    with pytest.raises(BackendError, match="the inference plan fails the parity check"):
        Potential(small_model("nequip", dtype=dtype), backend="cpu")


def test_virials(monkeypatch):
    spoil(monkeypatch, "edge_forces_call", [8])
    with pytest.raises(BackendError, match=r"max \|dV\|"):
        Potential(small_model("nequip"), backend="cpu")


def test_sorted_and_shared_atoms(monkeypatch):
    """What only large structures need is checked, too."""
    from fastlr.engine.edge_list import EdgeList

    unsort = EdgeList.unsort
    monkeypatch.setattr(
        EdgeList, "unsort", lambda self, values: unsort(self, values) * (1.0 if self.order is None else 1.01)
    )
    with pytest.raises(BackendError, match="the inference plan fails the parity check"):
        Potential(small_model("nequip"), backend="cpu")


def test_operations_one_by_one(monkeypatch):
    """The whole model by autograd, where there is no plan."""
    monkeypatch.setattr(Potential, "_table_size", lambda self: None)
    potential = Potential(small_model("lr"), backend="cpu")
    assert potential.inference_check.forces < 1e-10
    assert f"  {potential.inference_check}" in potential.report()
    evaluate = fastlr.potential.evaluate
    wrong = {"forces": 1.01}
    monkeypatch.setattr(
        fastlr.potential, "evaluate", lambda *a: {k: v * wrong.get(k, 1.0) for k, v in evaluate(*a).items()}
    )
    with pytest.raises(BackendError, match="fails the parity check"):
        Potential(small_model("lr"), backend="cpu")

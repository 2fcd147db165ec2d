"""Parts of the layer kernels: layouts that survive as text."""

import pytest
import torch
from fastlr.kernels.message_passing.shape import LayerShape
from reference.models import small_model

from fastlr.engine.folding import fold_layers
from fastlr.engine.pruning import SCALAR, prune


@pytest.mark.parametrize("name", ["nequip", "lr", "lr-separate-stacks"])
def test_shapes_are_the_same_from_their_text(name):
    model = small_model(name)
    stack = model.stack if name == "nequip" else model.energy_stack
    layers, _ = prune(stack, {SCALAR})
    types = model.type_embedding.weight
    for layer in fold_layers(layers, stack.norm, model.edge_embedding, 8, types, torch.float64, name == "nequip"):
        assert LayerShape.from_key(layer.shape.key) == layer.shape

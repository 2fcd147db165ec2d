"""What the autograd engine will ask for."""

import torch


def wanted(ctx, index: int) -> bool:
    """Whether the backward pass in progress uses the gradient of input number ``index`` of a function.

    ``ctx.needs_input_grad`` only tells whether that input requires a gradient at all. While forces are computed for
    training, the weights require one, too, but nobody asks for it yet.
    """
    if not ctx.needs_input_grad[index]:
        return False
    node = ctx.next_functions[index][0]
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf that ``torch.autograd.grad`` was asked for, or no engine at work
        return True

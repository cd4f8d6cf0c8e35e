"""`npu_attn_softmax_(self)` and `npu_attn_softmax_backward_(self, grad_output, values)`: softmax of attention's scores, in their memory.

    self [..., Sq, Sk] scores -> softmax over the last dimension
    backward: self holds the probabilities, output was probabilities @ values [..., Sk, D]; with grad_output [..., Sq, D], the gradient
    of the output, self becomes the gradient of the scores

Float32 inside, rounded once. Sources: op-plugin's C++ and test. torchair has no converter.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu


def attn_softmax_(self: Tensor) -> Tensor:
    """`self`, changed."""
    return self.copy_(self.float().softmax(-1))


def attn_softmax_backward_(self: Tensor, grad_output: Tensor, values: Tensor) -> Tensor:
    """`self`, changed."""
    probabilities = self.float()
    of_probabilities = grad_output.float() @ values.float().transpose(-2, -1)
    mean = (of_probabilities * probabilities).sum(-1, keepdim=True)
    return self.copy_(probabilities * (of_probabilities - mean))


OPERATOR = of_torch_npu("npu_attn_softmax_", attn_softmax_)
BACKWARD_OPERATOR = of_torch_npu("npu_attn_softmax_backward_", attn_softmax_backward_)

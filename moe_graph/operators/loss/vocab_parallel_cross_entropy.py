"""`npu_fused_linear_online_max_sum`, `npu_fused_cross_entropy_loss_with_max_sum`: cross entropy over ranks that share the vocabulary.

    input [N, H], weight [V, H] float16 or bfloat16: logits = input @ weight^T of this rank's words, from vocab_start_index to before
    vocab_end_index   target [N] int32 or int64
    npu_fused_linear_online_max_sum(input, weight, target, vocab_start_index, vocab_end_index, return_logits)
        -> logits_max [N], sum_exp_logits [N]: the sum of e^(logit - logits_max), predicted_logits [N]: the target's logit - logits_max, or
           0 for another rank's target, float32; target_mask [(N + 7) / 8] uint8, a bit for each token, the lowest first, 1 for another
           rank's target; masked_target [N] like target: the target's row of weight, or 0; the logits like input with return_logits, else
           None
    npu_fused_cross_entropy_loss_with_max_sum(logits_max, sum_exp_logits, predicted_logits, *, vocab_parallel_logits)
        of all ranks' -> loss [N] = log(sum_exp_logits) - predicted_logits; softmax [N, V] float32 of the logits, None without them
    npu_fused_linear_cross_entropy_loss_with_max_sum_backward(grad, input, weight, target_mask, masked_target, ..., softmax)
        -> the gradients of input and weight; of logits_max and sum_exp_logits where softmax is not given

Sources: the operators' pages in the torch_npu documentation. Where they differ the kernel (ops-nn, matmul/fused_linear_online_max_sum) and
the golden function of its test are followed: vocab_end_index is behind the last word, and the bits behind the last token are those of
target 0. Float32 inside, rounded once. label_smoothing must be 0, as the pages say. torchair has no converters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check, _check_loss, _check_grad = (
    Checks(name)
    for name in (
        "npu_fused_linear_online_max_sum",
        "npu_fused_cross_entropy_loss_with_max_sum",
        "npu_fused_linear_cross_entropy_loss_with_max_sum_backward",
    )
)
_FLOATS = (torch.float16, torch.bfloat16)
_BITS = torch.arange(8, dtype=torch.uint8)


def online_max_sum(
    x: Tensor, weight: Tensor, target: Tensor, vocab_start_index: int, vocab_end_index: int, return_logits: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The six results, as the module's document says. Raises ValueError on arguments that it excludes."""
    _check_product(_check, x, weight)
    _check.dtype("target", target, (torch.int32, torch.int64))
    if tuple(target.shape) != x.shape[:1]:
        _check.refuse("target", f"of shape [{x.shape[0]}]", f"shape {tuple(target.shape)}")
    if not 0 <= vocab_start_index <= vocab_end_index <= vocab_start_index + len(weight):
        words = f"0 <= vocab_start_index <= vocab_end_index <= vocab_start_index + {len(weight)}"
        _check.refuse("vocab_start_index and vocab_end_index", words, (vocab_start_index, vocab_end_index))
    logits = x.float() @ weight.float().t()
    largest = logits.amax(-1)
    below = logits - largest[:, None]
    padded = torch.nn.functional.pad(target, (0, -len(target) % 8))
    elsewhere = (padded < vocab_start_index) | (padded >= vocab_end_index)
    packed = (elsewhere.view(-1, 8).to(torch.uint8) << _BITS).sum(-1).to(torch.uint8)
    elsewhere = elsewhere[: len(target)]
    row = (target - vocab_start_index).masked_fill(elsewhere, 0)
    predicted = below.gather(1, row.long()[:, None]).squeeze(1).masked_fill(elsewhere, 0)
    return largest, below.exp().sum(-1), predicted, packed, row, logits.to(x.dtype) if return_logits else None


def loss_with_max_sum(
    logits_max: Tensor,
    sum_exp_logits: Tensor,
    predicted_logits: Tensor,
    *,
    label_smoothing: float | None = 0.0,
    input: Tensor | None = None,
    weight: Tensor | None = None,
    vocab_parallel_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """loss and softmax. Raises ValueError on arguments that the module's document excludes."""
    _check_loss.value("label_smoothing", label_smoothing, (None, 0.0))
    for name, given in (("input", input), ("weight", weight)):
        _check_loss.absent(name, given)
    loss = sum_exp_logits.log() - predicted_logits
    if vocab_parallel_logits is None:
        return loss, None
    return loss, _softmax(vocab_parallel_logits.float(), logits_max, sum_exp_logits)


def loss_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    target_mask: Tensor,
    masked_target: Tensor,
    label_smoothing: float = 0.0,
    logits_max: Tensor | None = None,
    sum_exp_logits: Tensor | None = None,
    softmax: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of input and weight. Raises ValueError on arguments that the module's document excludes."""
    _check_grad.value("label_smoothing", label_smoothing, (0.0,))
    _check_product(_check_grad, x, weight)
    if softmax is None:
        if logits_max is None or sum_exp_logits is None:
            _check_grad.refuse("logits_max and sum_exp_logits", "given without softmax", None)
        softmax = _softmax(x.float() @ weight.float().t(), logits_max, sum_exp_logits)
    elsewhere = ((target_mask[:, None] >> _BITS) & 1).flatten()[: len(grad)]
    own = torch.zeros_like(softmax).scatter_(1, masked_target.long()[:, None], 1 - elsewhere.float()[:, None])
    of_logits = (softmax - own) * grad[:, None]
    return (of_logits @ weight.float()).to(x.dtype), (of_logits.t() @ x.float()).to(x.dtype)


def _softmax(logits: Tensor, largest: Tensor, total: Tensor) -> Tensor:
    return (logits - largest[:, None]).exp() / total[:, None]


def _check_product(check: Checks, x: Tensor, weight: Tensor) -> None:
    check.dtype("input", x, _FLOATS)
    check.dtype("weight", weight, (x.dtype,))
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        check.refuse("input and weight", "[N, H] and [V, H]", f"shapes {tuple(x.shape)} and {tuple(weight.shape)}")


OPERATOR = of_torch_npu("npu_fused_linear_online_max_sum", online_max_sum)
LOSS_OPERATOR = of_torch_npu("npu_fused_cross_entropy_loss_with_max_sum", loss_with_max_sum)
BACKWARD_OPERATOR = of_torch_npu("npu_fused_linear_cross_entropy_loss_with_max_sum_backward", loss_backward)

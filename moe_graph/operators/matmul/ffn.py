"""`npu_ffn(x, weight1, weight2, activation, ...)`: two products with an activation between them, of one network or of several experts.

    x [..., K1] float16, bfloat16, int8   weight1 [K1, N1], weight2 [K2, N2], or with experts [E, K1, N1], [E, K2, N2]
    activation  relu, gelu, fastgelu, silu (N1 = K2); geglu, swiglu, reglu: the left half times the activated right half (N1 = 2 K2)
    expert_tokens [E] how many rows each expert has, or expert_tokens_index [E] where they end; the rows of x in this order
    bias1, bias2 [N], [E, N]

    plain       y = act(x @ weight1 + bias1) @ weight2 + bias2
    int8 x      v = round(act((x @ weight1 + bias1) * deq_scale1) * scale + offset), int8;  y = (v @ weight2 + bias2) * deq_scale2
    int8 weights of a floating point x: weight = (weight + antiquant_offset) * antiquant_scale, [N] or [E, N]

    scale, offset [1] or [N1], with experts [E] or [E, N1] float32   deq_scale [N], [E, N] float32, bfloat16, int64 of npu_trans_quant_param
    y [..., N2] like x; of int8 x float16 (output_dtype None) or bfloat16

Sources: the operator's page in the torch_npu documentation; ops-transformer's kernel (ffn) for gelu, which is that of tanh, and for the
halves; op-plugin's golden for the weights that were quantised, which become float16 before each step with float16 x: their offset is lost
where the weight is large. Products of int8 are exact, the rest float32, rounded once (int8: once more between): a device rounds what is
between the products to half precision. inner_precise changes nothing. Not served: weights of int4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.matmul.grouped_matmul_checks import ACTIVATIONS
from moe_graph.operators.matmul.products import exact_product
from moe_graph.operators.quantization import destination
from moe_graph.operators.quantization.int8 import INT8_MAX
from moe_graph.operators.quantization.trans_quant_param import unpacked

_check = Checks("npu_ffn")
_PLAIN = {"relu": 1, "gelu": 2, "fastgelu": 4, "silu": 5}
_GATED = {"reglu": 1, "geglu": 2, "swiglu": 5}


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    _check.value("activation", name, (*_PLAIN, *_GATED))
    if name in _PLAIN:
        return ACTIVATIONS[_PLAIN[name]]

    def gated(values: Tensor) -> Tensor:
        left, right = values.chunk(2, -1)
        return left * ACTIVATIONS[_GATED[name]](right)

    return gated


class Layer(NamedTuple):
    """One of the two products: its weight and what belongs to it, each for all experts."""

    weight: Tensor
    bias: Tensor | None
    deq_scale: Tensor | None
    antiquant_scale: Tensor | None
    antiquant_offset: Tensor | None

    def of(self, expert: int | None) -> Layer:
        """That of one expert."""
        return self if expert is None else Layer(*(None if t is None else t[expert] for t in self))  # type: ignore[arg-type]

    def product(self, x: Tensor) -> Tensor:
        """float32 x @ weight + bias, scaled back where x is int8."""
        if x.dtype == torch.int8:
            sums = exact_product(x, self.weight)
            sums = sums if self.bias is None else sums + self.bias
            if self.deq_scale is None:
                _check.refuse("deq_scale1 and deq_scale2", "given with int8 x", None)
            return sums.float() * unpacked(self.deq_scale)[0]
        weight = self.weight
        if self.antiquant_scale is not None:
            wide = torch.float16 if self.antiquant_scale.dtype == torch.float16 else torch.float32  # x's dtype
            weight = weight.to(wide)
            weight = weight if self.antiquant_offset is None else weight + self.antiquant_offset.to(wide)
            weight = weight * self.antiquant_scale.to(wide)
        y = x.float() @ weight.float()
        return y if self.bias is None else y + self.bias.float()


def _experts(ends: Sequence[int] | None, experts: int, rows: int) -> Iterator[tuple[int | None, slice]]:
    if ends is None:
        yield None, slice(0, rows)
        return
    if len(ends) != experts:
        _check.refuse("expert_tokens", f"of E = {experts} experts", list(ends))
    if any(later < earlier for earlier, later in zip([0, *ends], ends)) or ends[-1] != rows:
        _check.refuse("expert_tokens", f"sizes, or ends, of all {rows} rows of x", list(ends))
    for expert, (start, stop) in enumerate(zip([0, *ends], ends)):
        yield expert, slice(start, stop)


def ffn(
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    activation: str,
    *,
    expert_tokens: Sequence[int] | None = None,
    expert_tokens_index: Sequence[int] | None = None,
    bias1: Tensor | None = None,
    bias2: Tensor | None = None,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    deq_scale1: Tensor | None = None,
    deq_scale2: Tensor | None = None,
    antiquant_scale1: Tensor | None = None,
    antiquant_scale2: Tensor | None = None,
    antiquant_offset1: Tensor | None = None,
    antiquant_offset2: Tensor | None = None,
    inner_precise: int | None = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """As the module's document says. Raises ValueError for arguments that do not fit each other."""
    quantized = x.dtype == torch.int8
    if weight1.dtype not in ((torch.int8,) if quantized else (x.dtype, torch.int8)):
        raise NotImplementedError(f"npu_ffn: weight1 must be of x's dtype or int8, got {weight1.dtype}")
    if expert_tokens is not None and expert_tokens_index is not None:
        _check.refuse("expert_tokens_index", "None with expert_tokens", list(expert_tokens_index))
    if not quantized and weight1.dtype == torch.int8 and (antiquant_scale1 is None or antiquant_scale2 is None):
        _check.refuse("antiquant_scale1 and antiquant_scale2", "given with int8 weights of a floating point x", None)
    if quantized and (scale is None or offset is None):
        _check.refuse("scale and offset", "given with int8 x", None)
    if expert_tokens_index is not None:
        ends: list[int] | None = list(expert_tokens_index)
    else:
        ends = None if expert_tokens is None else torch.tensor(list(expert_tokens)).cumsum(0).tolist()
    dtype = (output_dtype or torch.float16) if quantized else x.dtype
    first = Layer(weight1, bias1, deq_scale1, antiquant_scale1, antiquant_offset1)
    second = Layer(weight2, bias2, deq_scale2, antiquant_scale2, antiquant_offset2)
    act, rows = _activation(activation), x.reshape(-1, x.shape[-1])
    y = torch.empty((len(rows), weight2.shape[-1]), dtype=dtype)
    for expert, part in _experts(ends, weight1.shape[0], len(rows)):
        values = act(first.of(expert).product(rows[part]))
        if scale is not None and offset is not None:
            factors, shift = (scale, offset) if expert is None else (scale[expert], offset[expert])
            values = destination.rounded(values * factors.float() + shift.float(), INT8_MAX)
        y[part] = second.of(expert).product(values).to(dtype)
    return y.view(*x.shape[:-1], y.shape[-1])


def _ge_ffn(
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    expert_tokens: Tensor | None = None,
    bias1: Tensor | None = None,
    bias2: Tensor | None = None,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    deq_scale1: Tensor | None = None,
    deq_scale2: Tensor | None = None,
    antiquant_scale1: Tensor | None = None,
    antiquant_scale2: Tensor | None = None,
    antiquant_offset1: Tensor | None = None,
    antiquant_offset2: Tensor | None = None,
    *,
    activation: str,
    inner_precise: int = 0,
    output_dtype: int = -1,
    tokens_index_flag: bool = False,
) -> Tensor:
    """GE FFN: expert_tokens are ends with tokens_index_flag. output_dtype: 0 float16, 1 bfloat16, -1 open."""
    listed = None if expert_tokens is None else expert_tokens.tolist()
    return ffn(
        x,
        weight1,
        weight2,
        activation,
        expert_tokens=None if tokens_index_flag else listed,
        expert_tokens_index=listed if tokens_index_flag else None,
        bias1=bias1,
        bias2=bias2,
        scale=scale,
        offset=offset,
        deq_scale1=deq_scale1,
        deq_scale2=deq_scale2,
        antiquant_scale1=antiquant_scale1,
        antiquant_scale2=antiquant_scale2,
        antiquant_offset1=antiquant_offset1,
        antiquant_offset2=antiquant_offset2,
        output_dtype={-1: None, 0: torch.float16, 1: torch.bfloat16}[output_dtype],
    )


OPERATOR = of_torch_npu("npu_ffn", ffn, ge=[GeKernel("FFN", _ge_ffn)])

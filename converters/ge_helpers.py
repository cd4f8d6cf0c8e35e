"""Small pieces of GE graph that lowerings are made of. Imported only when torchair is loaded.

GE tensors know their torch meta (`Tensor.meta`) only where torchair has set it, so intermediate descriptors get their dtype here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchair._ge_concrete_graph import ge_apis as ge
from torchair.ge._ge_graph import DataType, Tensor, torch_type_to_ge_type
from torchair.ge._ge_graph import _ge_dtype_to_ge_proto_dtype as ge_to_proto_dtype

# Integers of the same width carry rows of dtypes that GatherV2 does not list among its basic types.
_GATHER_DTYPES = frozenset(
    {
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    }
)
_INTEGER_OF_WIDTH = {1: DataType.DT_INT8, 2: DataType.DT_INT16, 4: DataType.DT_INT32, 8: DataType.DT_INT64}


def typed(tensor: Tensor, dtype: int) -> Tensor:
    """The tensor, its descriptor carrying this GE dtype (a `DataType` number)."""
    tensor.desc.dtype = ge_to_proto_dtype(dtype)
    return tensor


def bitcast(tensor: Tensor, dtype: int) -> Tensor:
    """Bitcast to a GE dtype. To a narrower one: a last dimension is added; to a wider one: the last is taken away."""
    return typed(ge.Bitcast(tensor, type=dtype), dtype)


def ge_dtype(tensor: torch.Tensor) -> int:
    """GE dtype of a torch (meta) tensor."""
    return torch_type_to_ge_type(tensor.dtype)


def int64s(*values: int) -> Tensor:
    """An int64 constant [len(values)]."""
    return ge.Const(list(values), dtype=DataType.DT_INT64)


def shape(like: Tensor, *rest: int) -> Tensor:
    """The shape [A, *rest] as an int64 tensor, A being the first dimension of `like`: a constant, unless A is symbolic."""
    first = like.meta.shape[0]
    if isinstance(first, int):
        return int64s(first, *rest)
    sizes = typed(ge.Shape(like, dtype=DataType.DT_INT64), DataType.DT_INT64)
    rows = typed(ge.GatherV2(sizes, int64s(0), ge.Const(0, dtype=DataType.DT_INT64)), DataType.DT_INT64)
    return typed(ge.ConcatV2([rows, int64s(*rest)], ge.Const(0, dtype=DataType.DT_INT64), N=2), DataType.DT_INT64)


@dataclass(frozen=True)
class Carrier:
    """Moves the rows of a tensor [A, H] as another dtype, bit by bit.

    dtype  the GE dtype that travels
    ratio  its elements per element of the tensor: the carried tensor is [A, H * ratio]
    """

    dtype: int
    ratio: int

    def wrap(self, x: Tensor) -> Tensor:
        """[A, H] -> [A, H * ratio] of the carrier's dtype."""
        carried = bitcast(x, self.dtype)
        if self.ratio == 1:
            return carried
        return typed(ge.Reshape(carried, shape(x, int(x.meta.shape[1]) * self.ratio)), self.dtype)

    def unwrap(self, carried: Tensor, like: Tensor) -> Tensor:
        """[A, H * ratio] -> [A, H] of the dtype of `like`."""
        if self.ratio > 1:
            carried = typed(ge.Reshape(carried, shape(like, int(like.meta.shape[1]), self.ratio)), self.dtype)
        return bitcast(carried, ge_dtype(like.meta))


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """`x[rows]` along dimension 0, for any dtype. x [A, ...], rows [B] -> [B, ...]"""
    dtype = ge_dtype(x.meta)
    axis = ge.Const(0, dtype=DataType.DT_INT64)
    if x.meta.dtype in _GATHER_DTYPES:
        return typed(ge.GatherV2(x, rows, axis), dtype)
    integer = _INTEGER_OF_WIDTH[x.meta.element_size()]
    return bitcast(typed(ge.GatherV2(bitcast(x, integer), rows, axis), integer), dtype)


def transposed(matrix: Tensor) -> Tensor:
    """[N, E] -> [E, N]"""
    return typed(ge.Transpose(matrix, int64s(1, 0)), ge_dtype(matrix.meta))


def inclusive_sum(vector: Tensor) -> Tensor:
    """Inclusive running sum of [E], in its dtype."""
    result = ge.Cumsum(vector, ge.Const(0, dtype=DataType.DT_INT64))
    result.desc.dtype = vector.desc.dtype
    return result


def zeros(shape_of: Tensor, dtype: int) -> Tensor:
    """Zeros of a shape given as an int64 tensor."""
    return typed(ge.Fill(shape_of, ge.Const(0, dtype=dtype)), dtype)

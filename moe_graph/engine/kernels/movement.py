"""Data movement: casts, copies, concatenation, splitting, transposition, filling."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.dtypes import GeType
from moe_graph.engine.graph import Node
from moe_graph.engine.registry import Tensors, kernel
from moe_graph.operators.quantization import elements, int4


@kernel("Cast")
def cast(x: Tensor, *, dst_type: GeType, node: Node) -> Tensor:
    """GE Cast: elements of x as dst_type. float16 is held within int16's range, as the definition of Cast (ops-math) has it of infinity.
    Types that torch lacks are rounded as `operators.quantization.elements` says."""
    source = node.inputs[0].type
    if source is not None and source.told_as_bytes or dst_type.told_as_bytes:
        return elements.of_values(elements.values_of(x, source.name if source else ""), dst_type.name, dst_type.torch)
    if x.dtype == torch.float16 and dst_type.torch == torch.int16:
        x = x.float().clamp(-(2**15), 2**15 - 1)
    return x.to(dst_type.torch)


@kernel("Bitcast")
def bitcast(x: Tensor, *, type: GeType, keep_dim: bool = False, node: Node) -> Tensor:
    """GE Bitcast: the bytes of x as another type. To a narrower type a last dimension of the ratio is added, to a wider one the
    last dimension, which must be the ratio, is taken away; with keep_dim the last dimension is scaled instead."""
    source = node.inputs[0].type
    packed_source = source is not None and source.packed
    source_bits = source.bits if packed_source else x.element_size() * 8
    if source_bits == type.bits:
        return x if packed_source else x.view(type.torch)
    if source_bits < type.bits:
        ratio = type.bits // source_bits
        if keep_dim:
            x = x.unflatten(-1, (-1, ratio))
        if x.shape[-1] != ratio:
            raise ValueError(f"the last dimension must be {ratio} to become {type.name}, got shape {list(x.shape)}")
        data = int4.in_bytes(x) if packed_source else x.contiguous().view(torch.uint8)
        return data.contiguous().view(type.torch).squeeze(-1)
    data = x.contiguous().unsqueeze(-1)
    narrow = int4.of_bytes(data.view(torch.uint8)) if type.packed else data.view(type.torch)
    return narrow.flatten(-2) if keep_dim else narrow


@kernel("Identity", "TensorMove")
def identity(x: Tensor) -> Tensor:
    """GE Identity, TensorMove: a copy of x."""
    return x.clone()


@kernel("Transpose")
def transpose(x: Tensor, perm: Tensor) -> Tensor:
    """GE Transpose: dimensions of x in the order perm."""
    return x.permute(perm.tolist()).contiguous()


@kernel("Permute")
def permute(x: Tensor, *, order: list = (0,)) -> Tensor:
    """GE Permute: dimensions of x in this order; those it does not name follow as they are, as in Caffe, where it is from."""
    return x.permute(*order, *(dimension for dimension in range(x.dim()) if dimension not in order)).contiguous()


@kernel("Fill")
def fill(dims: Tensor, value: Tensor) -> Tensor:
    """GE Fill: a tensor of shape dims, each element the one of value."""
    return value.reshape(()).expand(dims.tolist()).clone()


@kernel("ConcatV2")
def concat_v2(x: Tensors, concat_dim: Tensor, *, N: int = 1) -> Tensor:  # noqa: N803
    """GE ConcatV2: the tensors x one after another along concat_dim. Scalars count as [1], as torchair uses them."""
    return torch.cat([part.reshape(1) if not part.dim() else part for part in x], int(concat_dim))


@kernel("ConcatD")
def concat_d(x: Tensors, *, concat_dim: int, N: int = 1) -> Tensor:  # noqa: N803
    """GE ConcatD: the tensors x one after another along concat_dim."""
    return torch.cat(x, concat_dim)


@kernel("Pack")
def pack(x: Tensors, *, N: int, axis: int = 0) -> Tensor:  # noqa: N803
    """GE Pack: the tensors x stacked along a new dimension axis."""
    return torch.stack(x, axis)


@kernel("Unpack")
def unpack(x: Tensor, *, num: int, axis: int = 0) -> Tensors:
    """GE Unpack: the slices of x along axis."""
    if x.shape[axis] != num:
        raise ValueError(f"num must be the size of dimension {axis}, {x.shape[axis]}, got {num}")
    return list(x.unbind(axis))


@kernel("SplitV")
def split_v(x: Tensor, size_splits: Tensor, split_dim: Tensor, *, num_split: int) -> Tensors:
    """GE SplitV: pieces of x of the given sizes along split_dim; one size may be -1, the rest."""
    axis, sizes = int(split_dim), size_splits.tolist()
    if -1 in sizes:
        sizes[sizes.index(-1)] = x.shape[axis] - sum(sizes) - 1
    return list(x.split(sizes, axis))


@kernel("Split")
def split(split_dim: Tensor, x: Tensor, *, num_split: int) -> Tensors:
    """GE Split: num_split equal pieces of x along split_dim."""
    axis = int(split_dim)
    if x.shape[axis] % num_split:
        raise ValueError(f"dimension {axis} must be a multiple of num_split, {num_split}, got shape {list(x.shape)}")
    return list(x.split(x.shape[axis] // num_split, axis)) if x.shape[axis] else [x.clone() for _ in range(num_split)]


@kernel("Tile")
def tile(x: Tensor, multiples: Tensor) -> Tensor:
    """GE Tile: x repeated multiples[i] times along dimension i."""
    return x.tile(multiples.tolist())


@kernel("BroadcastTo", "Expand")
def broadcast_to(x: Tensor, shape: Tensor) -> Tensor:
    """GE BroadcastTo, Expand: x expanded to shape; -1 keeps a dimension."""
    return x.expand(shape.tolist()).contiguous()


@kernel("Slice")
def slice_(x: Tensor, offsets: Tensor, size: Tensor) -> Tensor:
    """GE Slice: size elements from offsets on in each dimension; size -1 is the rest."""
    for dimension, (offset, count) in enumerate(zip(offsets.tolist(), size.tolist())):
        x = x.narrow(dimension, offset, x.shape[dimension] - offset if count == -1 else count)
    return x.contiguous()

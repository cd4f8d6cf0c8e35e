"""Private formats of tensors without memory: `npu_format_cast` notes them, and the bytes that they take are torch_npu's own.

torch_npu has no fake implementation of the cast: which format it gives (of the dtype, the product, `customize_dtype`, and whether private
formats are allowed) and how much memory that takes it decides where it allocates. So it is asked with a small tensor of the same kind.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.multiprocessing.reductions import StorageWeakRef

from moe_graph.planning.errors import PlanError

ND, NCHW, NCDHW = 2, 0, 30
_BASE = {4: NCHW, 5: NCDHW}  # by the number of dimensions, as torch_npu guesses it; ND of all others
_PLAIN = (ND, NCHW, NCDHW)
_FRACTALS = (29, 50, 51, 52, 53, 54)  # FRACTAL_NZ, and those with a C0 of their own
_ROWS, _COLUMNS = 16, 32  # a fractal's rows; of its columns (2 to 32) a multiple
_MOST = 1 << 24  # elements of a tensor that is made for real to ask torch_npu


class Format(NamedTuple):
    """A format, and the elements that its memory holds, padding included."""

    number: int
    elements: int


_noted: dict[StorageWeakRef, Format] = {}
_depth = 0


@contextmanager
def noted() -> Iterator[None]:
    """Inside the block tensors without memory are cast and have formats. In a traced function a cast is torch_npu's to refuse."""
    global _depth
    _register()
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def of(tensor: Tensor) -> Format:
    """The format of a tensor's memory."""
    found = _noted.get(StorageWeakRef(tensor.untyped_storage())) if isinstance(tensor, FakeTensor) else None
    return found or Format(_BASE.get(tensor.dim(), ND), int(tensor.numel()))


def elements(tensor: Tensor) -> int:
    """The elements in memory of a tensor: those of its format, if it is the whole of its memory."""
    count = int(tensor.numel())
    found = of(tensor).elements
    return found if count * tensor.element_size() == tensor.untyped_storage().nbytes() else count


def carry(tensor: Tensor, copy: FakeTensor) -> None:
    """A copy without memory has the format of the tensor that it stands for, fake or of the NPU."""
    if isinstance(tensor, FakeTensor):
        found = _noted.get(StorageWeakRef(tensor.untyped_storage()))
    elif tensor.device.type == "npu":
        number = int(torch.ops.npu.get_npu_format(tensor))
        found = Format(number, torch.ops.npu.get_storage_size(tensor)) if number not in _PLAIN else None
    else:
        found = None
    if found is not None:
        _noted[StorageWeakRef(copy.untyped_storage())] = found


@functools.cache
def _register() -> None:
    from torch._subclasses.fake_impls import register_op_impl

    npu = torch.ops.npu
    answers = {
        npu.npu_format_cast.default: _cast,
        npu.npu_format_cast_.acl_format: _cast_in_place,
        npu.npu_format_cast_.default: _cast_in_place,
        npu.get_npu_format.default: lambda tensor: of(tensor).number,
        npu.get_storage_size.default: lambda tensor: of(tensor).elements,
    }
    for operator, answer in answers.items():
        register_op_impl(operator)(functools.partial(_answer, answer))


def _answer(answer: Any, mode: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
    changes = answer in (_cast, _cast_in_place)
    if not _depth or (changes and TracingContext.try_get() is not None):
        return NotImplemented
    return answer(*args, **kwargs)


def _cast(input: Tensor, acl_format: int, **how: Any) -> Tensor:
    made = torch.empty_like(input, memory_format=torch.contiguous_format)
    _noted[StorageWeakRef(made.untyped_storage())] = _asked(input, acl_format, how)
    return made


def _cast_in_place(input: Tensor, wanted: Tensor | int, **how: Any) -> Tensor:
    input.data = _cast(
        input, wanted if isinstance(wanted, int) else of(wanted).number, **how
    )  # torch_npu takes other memory, too
    return input


def _asked(tensor: Tensor, number: int, how: dict[str, Any]) -> Format:
    """What torch_npu makes of such a cast: the last two sizes are cut down to what is beyond whole fractals, those before them to 1."""
    before, sizes = of(tensor).number, [int(size) for size in tensor.shape]
    small = list(sizes)
    if number in (*_PLAIN, *_FRACTALS) and len(sizes) > 1:
        rest = [(size - 1) % part + 1 if size else 0 for size, part in zip(sizes[-2:], (_ROWS, _COLUMNS))]
        small = [min(size, 1) for size in sizes[:-2]] + rest
    if torch.Size(small).numel() > _MOST:
        raise PlanError(
            f"npu_format_cast of {sizes} to format {number}: the size of a tensor without memory is known of ND and FRACTAL_NZ"
        )
    with unset_fake_temporarily(), torch.no_grad():
        sample = torch.empty(small, dtype=tensor.dtype, device="npu")
        if before not in _PLAIN:
            sample = torch.ops.npu.npu_format_cast(sample, before)
        cast = torch.ops.npu.npu_format_cast(sample, number, **how)
        given = Format(int(torch.ops.npu.get_npu_format(cast)), int(torch.ops.npu.get_storage_size(cast)))
    if small == sizes:
        return given
    if given.number not in _FRACTALS or not given.elements:
        return given._replace(elements=int(tensor.numel()))
    rows, columns = sizes[-2] - small[-2] + _ROWS, sizes[-1] - small[-1] + given.elements // _ROWS
    return Format(given.number, torch.Size(sizes[:-2]).numel() * rows * columns)

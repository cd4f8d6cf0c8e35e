"""What a test needs of torch and torch_npu that older versions lack: it is skipped there, with the reason."""

from __future__ import annotations

import functools

import pytest
import torch

from moe_graph.foundation import compat


def need(name: str) -> None:
    """Skip this test if torch lacks the attribute, "compiler.set_stance"."""
    missing = object()
    if functools.reduce(lambda owner, part: getattr(owner, part, missing), name.split("."), torch) is missing:
        pytest.skip(f"this torch has no torch.{name}")


def need_torch(*version: int) -> None:
    """Skip this test on a torch before this version: the oldest of those tried that has what the test needs, or does it right."""
    if version > compat.TORCH:
        pytest.skip(f"needs torch {'.'.join(map(str, version))}")


def need_operator(*names: str) -> None:
    """Skip this test where torch_npu has not all of these operators, of npu if no other namespace is named ("atb::...")."""
    missing = [name for name in names if compat.schema_of(name if "::" in name else f"npu::{name}") is None]
    if missing:
        pytest.skip(f"this torch_npu has no {' and no '.join(missing)}")


def need_argument(operator: torch._ops.OpOverload, name: str) -> None:
    """Skip this test where the operator is that of a torch_npu which gives it no such argument."""
    if not compat.has_argument(operator, name):
        pytest.skip(f"this torch_npu's {operator} has no {name}")


def need_float8() -> None:
    """Skip this test where torch_npu takes no float8 tensors to the device (up to 2.6)."""
    if compat.TORCH < (2, 7):
        pytest.skip("this torch_npu has no float8 on the device")


def need_tokens_dtype() -> None:
    """Skip this test where the operator is a torch_npu's that has no tokens_dtype (2.1, 2.5, 2.6, 2.8)."""
    need_argument(torch.ops.npu.npu_moe_re_routing.default, "tokens_dtype")


def opcheck(*args, **kwargs) -> None:
    """`torch.library.opcheck`, which came with torch 2.4: skips before it."""
    need("library.opcheck")
    torch.library.opcheck(*args, **kwargs)


def lowers_products_of_vectors() -> bool:
    """Does torchair lower `v @ v`? In torch_npu 2.9 it becomes aten.dot, which torchair does not lower; 2.13 is the oldest tried."""
    return compat.TORCH >= (2, 13)

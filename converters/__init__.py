"""torchair converters, one module an operator. Importing this package does not import torchair.

A converter is the attribute `_ge_converter` of the operator's overload; importing torchair sets torchair's own. Ours are put over those
when torchair is loaded, at whatever moment that is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moe_graph.converters import known
from moe_graph.foundation import contract

_ATTRIBUTE = "_ge_converter"
_MISSING = object()
_TORCHAIR_CONVERTERS = "torchair._ge_concrete_graph.ge_converter.custom"


@dataclass(frozen=True)
class _Converter:
    """Ours for one overload of an operator: the function and its module, and torchair's module that has torchair's own."""

    overload: str
    module: str
    function: str
    torchair_module: str

    @property
    def operator(self) -> torch._ops.OpOverload:
        """Looked up at each use: loading torch_npu replaces it."""
        name, _, overload = self.overload.partition(".")
        return getattr(getattr(torch.ops.npu, name), overload)

    def convert(self) -> Callable:
        return getattr(importlib.import_module(f"moe_graph.converters.{self.module}"), self.function)


_CONVERTERS = (
    _Converter(f"{contract.NAME}.default", "moe_re_routing", "convert_moe_re_routing", contract.NAME),
    _Converter("npu_grouped_matmul.default", "grouped_matmul", "convert_grouped_matmul", "grouped_matmul"),
    _Converter("npu_grouped_matmul.List", "grouped_matmul", "convert_grouped_matmul", "grouped_matmul"),
)

# Modules whose import ends with torchair's converters in place: torchair itself, under the name it has inside torch_npu and as a
# top-level package, and those that hold torchair's converters of these operators, which are imported late; and npugraph_ex, which has
# none, but an interpreter of its own.
TORCHAIR_MODULES = (
    "torchair",
    "torch_npu.dynamo.torchair",
    "npugraph_ex",
    "torch_npu.dynamo.npugraph_ex",
    *sorted({f"{_TORCHAIR_CONVERTERS}.{converter.torchair_module}" for converter in _CONVERTERS}),
)
# Overload -> what was there before ours, and ours as torchair has wrapped it.
_installed: dict[str, tuple[Any, Callable]] = {}


def torchair_is_loaded() -> bool:
    """Has torchair been imported, so that converters can be registered?"""
    return "torchair._ge_concrete_graph.fx2ge_converter" in sys.modules


def current() -> Callable | None:
    """The converter in force for `npu_moe_re_routing`, ours or torchair's, or None."""
    return getattr(contract.operator(), _ATTRIBUTE, None)


def is_ours(converter: object) -> bool:
    """Is this a converter of this package?"""
    return getattr(converter, "__module__", "").startswith("moe_graph.")


def install_if_loaded() -> None:
    """Put our converters in force if torchair is loaded. Idempotent."""
    known.install_if_loaded()
    if not torchair_is_loaded():
        return
    from torchair._ge_concrete_graph.fx2ge_converter import register_fx_node_ge_converter

    for converter in _CONVERTERS:
        operator = converter.operator
        before = getattr(operator, _ATTRIBUTE, _MISSING)
        if not is_ours(before):
            register_fx_node_ge_converter(operator)(converter.convert())
            _installed[converter.overload] = before, getattr(operator, _ATTRIBUTE)


def uninstall() -> None:
    """Put back the converters that were in force before ours, where ours are; what torchair lowers is no longer looked at."""
    known.uninstall()
    for converter in _CONVERTERS:
        before, ours = _installed.pop(converter.overload, (_MISSING, None))
        operator = converter.operator if ours is not None else None
        if operator is None or getattr(operator, _ATTRIBUTE, None) is not ours:
            continue
        if before is _MISSING:
            delattr(operator, _ATTRIBUTE)
        else:
            setattr(operator, _ATTRIBUTE, before)

"""torchair converters, one module an operator. Importing this package does not import torchair.

A converter is the attribute `_ge_converter` of the operator's overload; importing torchair sets torchair's own. Ours is put over it when
torchair is loaded, at whatever moment that is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from moe_graph import contract

# Modules whose import ends with torchair's converters in place: torchair itself, under the name it has inside torch_npu and as a
# top-level package, and the one that holds torchair's converter of this operator, which is imported late.
TORCHAIR_MODULES = (
    "torchair",
    "torch_npu.dynamo.torchair",
    f"torchair._ge_concrete_graph.ge_converter.custom.{contract.NAME}",
)
_ATTRIBUTE = "_ge_converter"
_MISSING = object()
_replaced: Callable | object | None = None
_installed: Callable | None = None


def torchair_is_loaded() -> bool:
    """Has torchair been imported, so that converters can be registered?"""
    return "torchair._ge_concrete_graph.fx2ge_converter" in sys.modules


def current() -> Callable | None:
    """The converter in force for the operator, ours or torchair's, or None."""
    return getattr(contract.operator(), _ATTRIBUTE, None)


def is_ours(converter: Callable | None) -> bool:
    """Is this a converter of this package?"""
    return getattr(converter, "__module__", "").startswith("moe_graph.")


def install_if_loaded() -> None:
    """Put our converter in force if torchair is loaded. Idempotent."""
    global _replaced, _installed
    if not torchair_is_loaded() or is_ours(current()):
        return
    from torchair._ge_concrete_graph.fx2ge_converter import register_fx_node_ge_converter

    from moe_graph.converters.moe_re_routing import convert_moe_re_routing

    operator = contract.operator()
    _replaced = getattr(operator, _ATTRIBUTE, _MISSING)
    register_fx_node_ge_converter(operator)(convert_moe_re_routing)
    _installed = getattr(operator, _ATTRIBUTE)


def uninstall() -> None:
    """Put back the converter that was in force before ours, if ours is."""
    global _replaced, _installed
    if _installed is None:
        return
    operator = contract.operator()
    if getattr(operator, _ATTRIBUTE, None) is _installed:
        if _replaced is _MISSING:
            delattr(operator, _ATTRIBUTE)
        else:
            setattr(operator, _ATTRIBUTE, _replaced)
    _replaced = _installed = None

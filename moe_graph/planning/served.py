"""Would the product serve a call of torch_npu's operators? Their references hold the checks of their documents, by product.

A reference is called with CPU tensors without memory, once for each form of a call. Where it needs a value to go on, what it has not
looked at passes; operators that communicate are not called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from moe_graph import operators
from moe_graph.foundation import contract
from moe_graph.foundation.product import current_product, refusal
from moe_graph.operators.declaration import qualname_of
from moe_graph.planning.errors import PlanError

_WITHOUT_VALUES = ("fake tensor", "FakeTensor", "meta tensor", "Meta tensor", "data-dependent", "no data")


class Served:
    """What was asked. `captured`: npu_moe_re_routing is launched as it is called; graph mode composes what its kernel lacks."""

    def __init__(self, captured: bool) -> None:
        self._captured = captured
        self._asked: set[str] = set()

    def check(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], line: str) -> None:
        """Raises PlanError, with the line of the model, if the product does not serve this call. Under a FakeTensorMode."""
        name = qualname_of(function)
        operator = operators.every().get(name)
        is_re_routing = name == contract.QUALNAME
        if not is_re_routing and (operator is None or operator.room == "communication"):
            return
        form = f"{name}{tree_map(_described, (args, kwargs))}"
        if form in self._asked:
            return
        self._asked.add(form)
        if is_re_routing:
            refused = refusal(current_product(), args[0], **kwargs) if self._captured else ""
        else:
            refused = _refused(operator.reference, *tree_map(_on_cpu, (args, kwargs)))
        if refused:
            raise PlanError(f"{line or name}: {name} is not served: {refused}")


def _refused(reference: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    try:
        reference(*args, **kwargs)
    except ValueError as error:
        return "" if any(words in str(error) for words in _WITHOUT_VALUES) else str(error)
    except Exception:  # it asks for values, or torch has no implementation without them
        return ""
    return ""


def _described(value: Any) -> Any:
    return (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else value


def _on_cpu(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="cpu")

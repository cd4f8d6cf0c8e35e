"""One call of an operator in each way that a program can make it: eager on NPU tensors, and in graph mode, static and dynamic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchair
from torch import Tensor


def to_npu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.npu()
    if isinstance(value, (list, tuple)):
        return type(value)(to_npu(item) for item in value)
    return value


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.cpu()]
    return [tensor for item in value or () for tensor in tensors(item)] if isinstance(value, (list, tuple)) else []


def backend() -> Callable:
    config = torchair.CompilerConfig()
    config.experimental_config.keep_inference_input_mutations = True
    return torchair.get_npu_backend(compiler_config=config)


def results(
    function: Callable,
    args: Sequence[Any],
    kwargs: dict[str, Any] | None = None,
    modes: Sequence[str] = ("eager", "static", "dynamic"),
) -> dict[str, list[Tensor]]:
    """Mode -> what the call returns and then its tensor arguments as it leaves them, all on the CPU."""
    found = {}
    for mode in modes:
        npu_args = [to_npu(copy.deepcopy(arg)) for arg in args]
        npu_kwargs = {name: to_npu(copy.deepcopy(value)) for name, value in (kwargs or {}).items()}
        called = function
        if mode != "eager":
            torch._dynamo.reset()
            called = torch.compile(function, backend=backend(), dynamic=mode == "dynamic", fullgraph=True)
        result = called(*npu_args, **npu_kwargs)
        found[mode] = [*tensors(result), *tensors(npu_args), *tensors(list(npu_kwargs.values()))]
    return found


def check(
    function: Callable,
    args: Sequence[Any],
    expected: Sequence[Tensor],
    kwargs: dict[str, Any] | None = None,
    modes: Sequence[str] = ("eager", "static", "dynamic"),
    **tolerance: float,
) -> None:
    """Every mode gives `expected`, first of what it returns, then of what it leaves in its arguments; None is not looked at.

    The modes agree with the first one to the last bit."""
    found = results(function, args, kwargs, modes)
    for mode, values in found.items():
        for position, wanted in enumerate(expected):
            if wanted is None:
                continue
            value = values[position]
            assert value.dtype == wanted.dtype and value.shape == wanted.shape, (
                mode,
                position,
                value.dtype,
                value.shape,
            )
            torch.testing.assert_close(
                value.double(),
                wanted.double(),
                rtol=tolerance.get("rtol", 0.0),
                atol=tolerance.get("atol", 0.0),
                msg=lambda text, mode=mode, position=position: f"{mode}, result {position}: {text}",
            )
            if mode != modes[0]:
                assert torch.equal(value, found[modes[0]][position]), f"{mode} differs from {modes[0]}: {position}"

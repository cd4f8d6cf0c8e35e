"""One call by one implementation on the device: compared bit by bit with the fallback on the CPU, and timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from moe_graph.foundation import contract
from moe_graph.foundation.contract import MoeReRoutingOutput
from moe_graph.re_routing import fallback
from moe_graph.re_routing.debug import first_difference
from moe_graph.verification import grid

_REPEATS = 5


class Implementation(str, Enum):
    """What runs on the device.

    KERNEL    `torch_npu.npu_moe_re_routing`, eager: only calls that the product's document says it serves
    GRAPH     the operator in a graph compiled by torchair, with dynamic shapes
    FALLBACK  moe_graph's fallback on the device's tensors; the peer of the time ratios
    """

    KERNEL = "kernel"
    GRAPH = "graph"
    FALLBACK = "fallback"


class Status(str, Enum):
    """AGREES to the bit, DIFFERS, RAISED an error, or NOT_SERVED: the document says so, and the call was not made."""

    AGREES = "agrees"
    DIFFERS = "differs"
    RAISED = "raised"
    NOT_SERVED = "not served"


@dataclass(frozen=True)
class Outcome:
    """What one implementation did with one call. `seconds` is the median of a call, None where there was no result."""

    mode: grid.Mode
    shape: grid.Shape
    implementation: Implementation
    status: Status
    reason: str = ""
    seconds: float | None = None

    @property
    def failed(self) -> bool:
        """Did it differ or raise?"""
        return self.status in (Status.DIFFERS, Status.RAISED)


def run_mode(
    mode: grid.Mode, shapes: list[grid.Shape], report: Callable[[Outcome], None], *, seed: int = 0
) -> list[Outcome]:
    """All shapes of a mode by all implementations, on the current NPU; each outcome is reported as it comes.

    A mode is one compiled function: its shapes go through one dynamic graph, as a program's would.
    """
    torch._dynamo.reset()
    implementations = {
        Implementation.KERNEL: contract.operator(),
        Implementation.GRAPH: _compiled(),
        Implementation.FALLBACK: fallback.re_routing,
    }
    outcomes = []
    for shape in shapes:
        for implementation, function in implementations.items():
            outcome = _run(mode, shape, implementation, function, seed)
            outcomes.append(outcome)
            report(outcome)
    return outcomes


def _compiled() -> Callable[..., Any]:
    import torchair

    def re_routing(tokens: torch.Tensor, counts: torch.Tensor, **arguments: Any) -> Any:
        return contract.operator()(tokens, counts, **arguments)

    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    return torch.compile(re_routing, backend=backend, fullgraph=True, dynamic=True)


def _run(
    mode: grid.Mode, shape: grid.Shape, implementation: Implementation, function: Callable[..., Any], seed: int
) -> Outcome:
    if implementation is Implementation.KERNEL and not grid.served(mode, shape):
        return Outcome(mode, shape, implementation, Status.NOT_SERVED, "beyond the kernel's documented limits")
    tokens, counts, arguments = grid.inputs(mode, shape, seed)
    expected = MoeReRoutingOutput(*fallback.re_routing(tokens, counts, **arguments))
    try:
        on_device = [x.npu() for x in (tokens, counts)]
        options = {name: x.npu() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}

        def call() -> MoeReRoutingOutput:
            return MoeReRoutingOutput(*function(*on_device, **options))

        with torch.no_grad():
            got = call()
            torch.npu.synchronize()
            seconds = _median_seconds(call)
        got = MoeReRoutingOutput(*(x.cpu() for x in got))
    except Exception as error:  # whatever a device makes of a call is the finding, and the next call is still made
        return Outcome(mode, shape, implementation, Status.RAISED, f"{type(error).__name__}: {error}")
    if mode.scales is None:  # the kernel leaves this output undefined
        if got.permute_per_token_scales.shape == expected.permute_per_token_scales.shape:
            got = got._replace(permute_per_token_scales=expected.permute_per_token_scales)
    difference = first_difference(got, expected)
    if difference is not None:
        return Outcome(mode, shape, implementation, Status.DIFFERS, str(difference), seconds)
    return Outcome(mode, shape, implementation, Status.AGREES, "", seconds)


def _median_seconds(call: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        torch.npu.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)

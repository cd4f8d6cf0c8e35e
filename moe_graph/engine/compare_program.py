"""Every graph that a program compiles through torchair, node by node against the same FX graph run eagerly on the simulated device."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from moe_graph.engine import compare
from moe_graph.foundation import compat

_COMPILERS = ("torchair.npu_fx_compiler", "npugraph_ex.npu_fx_compiler")


@contextlib.contextmanager
def compare_graphs(rtol: float | None = None, atol: float | None = None) -> Iterator[compare.Report]:
    """Inside the block each graph that is compiled (by `torchair.get_npu_backend` or the backend "npugraph_ex", in either mode) is compared
    each time it runs.

    The program need not be changed, nor know of it: it gets what its graphs give. The FX graph that was lowered is run a second time,
    operator by operator on copies of the inputs, as eager mode runs it; so communication in it takes place twice, on all ranks that
    compare. Whole numbers, an expert's among them, must be equal.

    Args:
        rtol: relative tolerance; by default that of `torch.testing.assert_close` for the tensor's dtype.
        atol: absolute tolerance; by default as rtol.

    Yields:
        The report, which grows: every tensor of every run of every graph, as `compare_graph` reports it. "no reference": eager mode has
        no such operator.

    Raises:
        RuntimeError: without the simulated device.
        NotImplementedError: with a torchair older than that of torch_npu 2.7.
    """
    compare.need_device()
    report = compare.Report()
    modules = [module for module in map(_imported, _COMPILERS) if module is not None]
    originals = [module._compile_graph_with_aot for module in modules]
    for module, original in zip(modules, originals):
        module._compile_graph_with_aot = _watched(original, report, (rtol, atol))
    try:
        yield report
    finally:
        for module, original in zip(modules, originals):
            module._compile_graph_with_aot = original


def _imported(name: str) -> Any:
    try:
        # torch_npu's stand-in for the package loads it, with its modules, when its path is asked for: first, or they are loaded twice.
        _ = importlib.import_module(name.partition(".")[0]).__path__
        module = importlib.import_module(name)
    except ImportError:
        return None
    if not hasattr(module, "_compile_graph_with_aot"):
        raise NotImplementedError("comparing a graph with FX needs the torchair of torch_npu 2.7 or newer")
    return module


def _watched(original: Callable[..., Any], report: compare.Report, tolerances: tuple) -> Callable[..., Any]:
    def compile_graph(module: Any, compiler: Any, inputs: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        watching = compare.watch(compiler, config.mode.value, Eager, report, tolerances)
        return original(module, watching, inputs, config, *args, **kwargs)

    return compile_graph


class Eager(compare.Reference):
    """Runs the FX graph on the tensors' own device."""

    @staticmethod
    def copied(value: Any) -> Any:
        return value.detach().clone() if isinstance(value, Tensor) else value

    def call_function(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if getattr(target, "namespace", "") != "air":
            return super().call_function(target, args, kwargs)
        # torchair.ops: for graphs alone, with lengths as tensors; the operator of torch_npu that bears the name has them as lists.
        eager = getattr(getattr(torch.ops.npu, target._opname), target._overloadname)
        types = {argument.name: str(argument.type) for argument in eager._schema.arguments}
        given = compat.given_by_name(target._schema, args, kwargs)
        lists = {
            name for name, value in given.items() if isinstance(value, Tensor) and "List[int]" in types.get(name, "")
        }
        return eager(**{name: value.tolist() if name in lists else value for name, value in given.items()})

    def taken(self, seen: Tensor) -> Tensor:
        return seen.npu()

    def fetch(self, node: torch.fx.Node) -> tuple[Any, Any]:
        return self.fetch_args_kwargs_from_env(node)

    def difference(self, got: Tensor, expected: Any) -> dict[str, Any]:
        return super().difference(got, expected.cpu() if isinstance(expected, Tensor) else expected)

"""The console script `moe-graph`, and the plugin that pytest finds by itself: without torch, until something needs it.

`import moe_graph` registers operators, which needs torch, which takes seconds, and fails in an environment with torch_npu and without
CANN. This module stands beside the package, so that what needs none of that answers at once and everywhere.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any


def main() -> int:
    """The console script."""
    put_off()
    from moe_graph.commands import table

    return table.main()


def put_off() -> None:
    """Make moe_graph's modules importable without running its `__init__`; `commands.table` runs it when a command needs it."""
    if "moe_graph" not in sys.modules:
        spec = importlib.util.find_spec("moe_graph")
        assert spec is not None, "moe_graph is installed together with this module"
        sys.modules["moe_graph"] = importlib.util.module_from_spec(spec)


def _hook(function: Callable[..., None]) -> Callable[..., None]:
    """Before the others of its name, as `pytest.hookimpl(tryfirst=True)` marks it, which would import pytest for the console script."""
    function.pytest_impl = {"tryfirst": True}  # type: ignore[attr-defined]
    return function


# ---- pytest: nothing is imported unless a test run asks for the device ----

_PLUGIN = "moe_graph.simulator.pytest_plugin"
_PRODUCTS = ("A2", "A3", "950")


def pytest_addoption(parser: Any) -> None:
    """The options, and the line of the ini file."""
    group = parser.getgroup("moe_graph", "simulated Ascend device")
    group.addoption(
        "--npu-sim",
        nargs="?",
        const="A2",
        choices=_PRODUCTS,
        help="run the tests on a simulated Ascend device: --npu-sim (A2), --npu-sim=A3, --npu-sim=950; off where CANN is",
    )
    group.addoption(
        "--npu-graphs-update",
        action="store_true",
        help="moe_graph.testing.assert_unchanged records the graphs instead of comparing with the recorded ones",
    )
    parser.addini("npu_sim", "as --npu-sim, for every run: A2, A3 or 950", default="")


@_hook
def pytest_load_initial_conftests(early_config: Any) -> None:
    """Start the device before a conftest.py imports torch."""
    options = early_config.known_args_namespace
    product = options.npu_sim or early_config.getini("npu_sim")
    if options.npu_graphs_update:
        os.environ["MOE_GRAPH_UPDATE_GRAPHS"] = "1"
    if not product:
        return
    if product not in _PRODUCTS:
        import pytest

        raise pytest.UsageError(f"npu_sim must be one of {', '.join(_PRODUCTS)}, got {product!r}")
    os.environ["MOE_GRAPH_SIM_SOC"] = product
    early_config.pluginmanager.import_plugin(_PLUGIN)


if __name__ == "__main__":
    sys.exit(main())

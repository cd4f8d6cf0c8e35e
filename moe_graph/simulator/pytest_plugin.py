"""`pytest -p moe_graph.simulator.pytest_plugin`: run tests with the simulated device on.

It starts when pytest loads the plugin, which is before it imports a test module. Where CANN is, the tests run on the NPU.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

import moe_graph.simulator as simulator
from moe_graph import testing
from moe_graph.foundation import product


def pytest_report_header() -> str:
    """One line in pytest's header."""
    if not simulator.is_active():
        return "moe_graph: CANN is here, the simulated device is off"
    return f"moe_graph: simulated device {simulator.soc()}"


@pytest.fixture
def lower() -> Callable[..., testing.Lowered]:
    """`moe_graph.testing.lower`."""
    return testing.lower


@pytest.fixture(params=list(product.PRODUCTS))
def each_product(request: pytest.FixtureRequest):
    """Runs the test once for every Ascend product: what is lowered is lowered for it. Its value is the product's name."""
    product.set_product(request.param)
    yield request.param
    product.set_product(None)

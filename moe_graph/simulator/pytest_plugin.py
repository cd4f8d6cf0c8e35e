"""`pytest --npu-sim`: run tests with the simulated device on. Or `npu_sim = A2` in the ini file, or `-p moe_graph.simulator.pytest_plugin`.

It starts when pytest loads the plugin, which is before it imports a conftest.py or a test module; processes that tests start have it, too.
Where CANN is, the tests run on the NPU.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

import moe_graph.simulator as simulator
from moe_graph import testing
from moe_graph.foundation import product
from moe_graph.simulator import device

if simulator.is_active():
    device.start_in_children()


def pytest_report_header() -> str:
    """One line in pytest's header."""
    if not simulator.is_active():
        return "moe_graph: CANN is here, the simulated device is off"
    return f"moe_graph: simulated device {simulator.soc()}"


@pytest.fixture
def npu_lower() -> Callable[..., testing.Lowered]:
    """`moe_graph.testing.lower`."""
    return testing.lower


@pytest.fixture
def lower() -> Callable[..., testing.Lowered]:
    """`npu_lower` by its older name; a fixture of this name in a conftest.py comes before it."""
    return testing.lower


@pytest.fixture(params=list(product.PRODUCTS))
def npu_each_product(request: pytest.FixtureRequest):
    """Runs the test once for every Ascend product: what is lowered is lowered for it. Its value is the product's name."""
    product.set_product(request.param)
    yield request.param
    product.set_product(None)


@pytest.fixture
def each_product(npu_each_product: str) -> str:
    """`npu_each_product` by its older name."""
    return npu_each_product

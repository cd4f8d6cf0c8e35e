"""These tests run on the simulated device: pytest is started with -p moe_graph.simulator.pytest_plugin."""

import pytest
import torch

import moe_graph
from moe_graph import engine
from moe_graph.foundation import compat

# Before torch 2.7 the simulated device is exercised with the operator itself, eager and in graph mode. Older torch_npu and torchair lack
# operators, arguments and dtypes that the other tests use, or ask CANN's folders for what they can.
_OF_THE_OPERATOR = {
    "test_device",
    "test_device_graph",
    "test_graph_mode",
    "test_kernel_moe_re_routing",
    "test_kernel_product",
    "test_registration",
    "test_trace",
}


def pytest_collection_modifyitems(items):
    if compat.TORCH >= (2, 7):
        return
    for item in items:
        if item.path.stem not in _OF_THE_OPERATOR:
            item.add_marker(pytest.mark.skip(reason="exercised from torch 2.7 on"))


@pytest.fixture
def product():
    """Sets the product that is lowered for; puts the device's own back."""
    yield moe_graph.set_product
    moe_graph.set_product(None)


@pytest.fixture
def lowered(monkeypatch):
    """The programs that torchair has handed to the host engine in this test, in order."""
    programs = []
    original = engine.load_model

    def load_model(*args):
        programs.append(original(*args))
        return programs[-1]

    monkeypatch.setattr(engine, "load_model", load_model)
    torch._dynamo.reset()
    return programs

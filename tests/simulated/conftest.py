"""These tests run on the simulated device: pytest is started with -p moe_graph.simulator.pytest_plugin."""

import pytest
import torch

import moe_graph
from moe_graph import engine


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

"""`pytest -p moe_graph.simulator.pytest_plugin`: run tests with the simulated device on.

It starts when pytest loads the plugin, which is before it imports a test module.
"""

from __future__ import annotations

import moe_graph.simulator as simulator


def pytest_report_header() -> str:
    """One line in pytest's header."""
    if not simulator.is_active():
        return "moe_graph: CANN is here, the simulated device is off"
    return f"moe_graph: simulated device {simulator.soc()}"

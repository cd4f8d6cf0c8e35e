"""The one exception of the simulated device's own machinery."""

from __future__ import annotations


class SimulatorError(RuntimeError):
    """The simulated device cannot be built or started. The message is one line that says what to install or to set."""

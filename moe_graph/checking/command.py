"""`moe-graph check MODULE`: run the checks of converters that a module declares.

The module (a dotted name, or a file) imports its converters and holds `moe_graph.testing.ConverterCheck(operator, samples)`s.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType


def main(argv: Sequence[str]) -> int:
    """Check and report. 0 if nothing failed, 1 if something did or the simulated device cannot start, 2 if there is nothing to check."""
    parser = argparse.ArgumentParser(prog="moe-graph check", description=__doc__.partition("\n\n")[0])
    parser.add_argument("module", metavar="MODULE", help="a module, or a .py file, that holds ConverterChecks")
    options = parser.parse_args(argv)
    from moe_graph.simulator import SimulatorError, device

    try:
        device.start()
    except SimulatorError as error:
        print(f"moe_graph: {error}", file=sys.stderr)
        return 1
    from moe_graph.checking.declared import ConverterCheck

    found = [value for value in vars(_module(options.module)).values() if isinstance(value, ConverterCheck)]
    if not found:
        print(f"moe_graph: {options.module} holds no ConverterCheck", file=sys.stderr)
        return 2
    reports = [check() for check in found]
    for report in reports:
        print(report)
    return int(any(not report.ok for report in reports))


def _module(name: str) -> ModuleType:
    if not name.endswith(".py"):
        sys.path.insert(0, "")
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location("moe_graph_checked", name)
    if spec is None or spec.loader is None:
        raise SystemExit(f"moe_graph: {name} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

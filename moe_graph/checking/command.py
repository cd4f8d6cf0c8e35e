"""`moe-graph check MODULE`: run the checks of converters that a module declares.

The module (a dotted name, or a file) imports its converters and holds `moe_graph.testing.ConverterCheck(operator, samples)`s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from moe_graph.foundation import given_module, starting


def main(argv: Sequence[str]) -> int:
    """Check and report. 0 if nothing failed, 1 if something did or the simulated device cannot start, 2 if there is nothing to check."""
    parser = argparse.ArgumentParser(prog="moe-graph check", description=__doc__.partition("\n\n")[0])
    parser.add_argument("module", metavar="MODULE", help="a module, or a .py file, that holds ConverterChecks")
    options = parser.parse_args(argv)
    if not starting.has_device("check"):
        return 1
    from moe_graph.checking.declared import ConverterCheck

    try:
        module = given_module.load(options.module)
    except given_module.MissingError as error:
        parser.error(str(error))
    found = [value for value in vars(module).values() if isinstance(value, ConverterCheck)]
    if not found:
        print(f"moe_graph: {options.module} holds no ConverterCheck", file=sys.stderr)
        return 2
    reports = [check() for check in found]
    for report in reports:
        print(report)
    return int(any(not report.ok for report in reports))

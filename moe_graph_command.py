"""The console script `moe-graph`, and what pytest loads: without torch, until something needs it.

`import moe_graph` registers operators, which needs torch, which takes seconds, and fails in an environment with torch_npu and without
CANN. This module stands beside the package, so that what needs none of that answers at once and everywhere.
"""

from __future__ import annotations

import importlib.util
import sys


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


if __name__ == "__main__":
    sys.exit(main())

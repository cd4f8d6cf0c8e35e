"""`python -m moe_graph COMMAND ...`: the console script `moe-graph` under Python's own name. The commands are in commands/table.py."""

import importlib
import sys

if __name__ == "__main__":
    # By its name, as the commands themselves are: they stand above everything else.
    sys.exit(importlib.import_module("moe_graph.commands.table").main())

"""`python -m moe_graph COMMAND ...`: the console script `moe-graph` under Python's own name. The commands are in commands/table.py."""

import sys

from moe_graph.commands.table import main

if __name__ == "__main__":
    sys.exit(main())

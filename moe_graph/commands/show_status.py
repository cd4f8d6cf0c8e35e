"""`python -m moe_graph status`: print the status table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Print `moe_graph.status()`."""
    argparse.ArgumentParser(prog="moe-graph status", description=__doc__).parse_args(argv)
    from moe_graph.registration.status import status

    print(status())
    return 0

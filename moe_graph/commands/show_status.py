"""`python -m moe_graph status`: print the status table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from moe_graph.registration.status import status


def main(argv: Sequence[str]) -> int:
    """Print `moe_graph.status()`."""
    argparse.ArgumentParser(prog="python -m moe_graph status", description=__doc__).parse_args(argv)
    print(status())
    return 0

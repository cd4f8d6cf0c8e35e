"""Dumps of graphs without a line of the program for them: what `moe-graph run --dump DIR` switches on, here and in child processes.

torchair dumps the graph of a compilation as it was lowered and as it was optimized, if its configuration says so (`debug.graph_dump`).
A configuration that says nothing of dumps is filled in; one that does stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moe_graph.foundation import import_hooks

_COMPILER = "torchair.npu_fx_compiler"


def into(folder: str) -> None:
    """Dump into this folder every graph that is compiled from now on, by a torchair that is not imported yet."""

    @contextmanager
    def around() -> Iterator[None]:
        yield
        compiler = sys.modules[_COMPILER]._NpuFxCompiler
        original = compiler.__init__

        def __init__(self: Any, compiler_config: Any) -> None:
            _fill_in(compiler_config, folder)
            original(self, compiler_config)

        compiler.__init__ = __init__

    import_hooks.around_import(_COMPILER, around)


def _fill_in(config: Any, folder: str) -> None:
    dump = config.debug.graph_dump
    if dump.type.value is None:
        # A captured graph (reduce-overhead) is no graph of GE: torchair writes it as Python, or not at all.
        dump.type = "pbtxt" if config.mode.value == "max-autotune" else "py"
        dump.path = folder

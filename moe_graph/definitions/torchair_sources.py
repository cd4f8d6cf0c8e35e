"""torchair's functions for GE types as text, from the installed torch_npu wheel: neither torch_npu nor torchair is imported."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

_FOLDER = Path("dynamo", "torchair")
_FILES = (
    Path("_ge_concrete_graph", "auto_generated_ge_raw_ops.py"),
    Path("_ge_concrete_graph", "dynamic_output_ops.py"),
    Path("ge", "_ge_graph.py"),
)


@functools.cache
def sources() -> tuple[str, ...]:
    """The sources that declare these functions; none if torch_npu is not installed."""
    wheel = importlib.util.find_spec("torch_npu")
    if wheel is None or wheel.origin is None:
        return ()
    folder = Path(wheel.origin).parent / _FOLDER
    return tuple((folder / name).read_text() for name in _FILES if (folder / name).is_file())

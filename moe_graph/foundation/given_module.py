"""The module that a command is given."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType


class MissingError(ImportError):
    """There is no such module or file. What a module that is there fails with stays that."""


def load(place: str) -> ModuleType:
    """The module that a dotted name or a .py file stands for, with what `python -m` or `python FILE` would have on the path for it.

    That of a file has a name of its own in `sys.modules`, where dataclasses and Dynamo look for it. Raises MissingError.
    """
    if not place.endswith(".py"):
        sys.path.insert(0, "")
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if not f"{place}.".startswith(f"{error.name}."):
                raise
            raise MissingError(f"there is no module {error.name!r}") from None
    if not os.path.isfile(place):
        raise MissingError(f"there is no file {place!r}")
    sys.path.insert(0, os.path.dirname(os.path.abspath(place)))
    name = f"moe_graph_given_{Path(place).stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None and spec.loader is not None  # of every name that ends with .py
    made = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made

"""Run code around the import of a module, whenever that import comes.

`moe_graph` may be imported before torch_npu and torchair. It must step aside while torch_npu defines its operators (an operator cannot
be defined twice), and must register its converter after torchair has registered torchair's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Around = Callable[[], AbstractContextManager]


class _AroundLoader(Loader):
    """A loader that runs a module's own loader inside a context manager."""

    def __init__(self, loader: Loader, around: Around) -> None:
        self._loader = loader
        self._around = around

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module sees its own loader, as without the hook.
        module.__loader__ = self._loader
        assert module.__spec__ is not None
        module.__spec__.loader = self._loader
        with self._around():
            self._loader.exec_module(module)


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self.hooks: dict[str, Around] = {}

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        around = self.hooks.get(name)
        if around is None:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec = find(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _AroundLoader(spec.loader, around)
                return spec
        return None


_finder = _Finder()


def around_import(name: str, around: Around) -> None:
    """Execute module `name`, when it comes to be imported, inside the context manager that `around()` returns."""
    _finder.hooks[name] = around
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def remove_hook(name: str) -> None:
    """Forget the hook of a module; the finder leaves with the last one."""
    _finder.hooks.pop(name, None)
    if not _finder.hooks and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)

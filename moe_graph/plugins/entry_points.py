"""Plugin packages: what installed packages name under `moe_graph.plugins` is imported when the simulated device has started, and
before `inspect --check` looks at a graph."""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

GROUP = "moe_graph.plugins"


class PluginError(RuntimeError):
    """An installed plugin cannot be imported."""


@functools.cache
def load() -> list[str]:
    """Import each plugin, once in a process; call it, if it is a function. Returns their names.

    Raises PluginError, which names the plugin and its package, if one fails.
    """
    found: Any = importlib.metadata.entry_points()
    plugins = found.select(group=GROUP) if hasattr(found, "select") else found.get(GROUP, ())
    names = []
    for plugin in plugins:
        try:
            loaded = plugin.load()
            if callable(loaded):
                loaded()
        except Exception as error:
            package = getattr(getattr(plugin, "dist", None), "name", "") or "a package"
            raise PluginError(
                f"the plugin {plugin.name} = {plugin.value} of {package} (entry point {GROUP}) failed: {type(error).__name__}: {error}"
            ) from error
        names.append(plugin.name)
    return names

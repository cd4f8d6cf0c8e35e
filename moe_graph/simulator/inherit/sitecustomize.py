"""The simulated device starts when torch is imported. Python runs this in the child processes of `moe-graph run`, and where the switch
(`moe-graph activate`, `moe-graph env`) is on.

The launcher puts this folder first on PYTHONPATH, so that workers of torchrun, torch.multiprocessing and DataLoader, which are started
by commands of their own, find the same device; the switch has a .pth file run it. Processes that do not import torch are not touched,
nor those with MOE_GRAPH_SIM=0, nor a machine with CANN; a sitecustomize of the machine's own is run too. The file stands alone: importing
moe_graph here would import torch in every process.
"""

import importlib.machinery
import importlib.util
import os
import sys

_SWITCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"


class _Loader:
    """Executes torch without its autoload of torch_npu, which would fail with no CANN, then starts the simulated device."""

    def __init__(self, loader, finder):
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        sys.meta_path.remove(self._finder)
        module.__loader__ = module.__spec__.loader = self._loader
        before = os.environ.get(_SWITCH)
        os.environ[_SWITCH] = "0"
        try:
            self._loader.exec_module(module)
        except BaseException:
            sys.meta_path.insert(0, self._finder)  # the next attempt goes the same way
            raise
        finally:
            if before is None:
                del os.environ[_SWITCH]
            else:
                os.environ[_SWITCH] = before
        import moe_graph.simulator  # noqa: F401


class _LoaderByTorch:
    """torch_npu before torch: importing torch starts the device, which imports torch_npu; that module is the one."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        import torch  # noqa: F401

        self._module = sys.modules[spec.name]
        self._spec = self._module.__spec__
        return self._module

    def exec_module(self, module):
        module.__spec__, module.__loader__ = self._spec, self._spec.loader


class _Finder:
    """On the path until torch is executed: many only ask whether torch and torch_npu are there, some before they import them."""

    started_by = "moe_graph"  # the launcher and the switch may both be there: one finder is enough

    def find_spec(self, name, path=None, target=None):
        if name not in ("torch", "torch_npu") or _cann_is_present():
            return None
        others = (getattr(finder, "find_spec", None) for finder in sys.meta_path if finder is not self)
        found = (find(name, path, target) for find in others if find is not None)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self) if name == "torch" else _LoaderByTorch(spec.loader)
        return spec


def _cann_is_present():
    """As moe_graph's own modules say it, without importing moe_graph."""
    file = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "foundation", "cann.py")
    spec = importlib.util.spec_from_file_location("_moe_graph_cann", file)
    cann = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cann)
    return cann.is_present()


def _run_hidden_sitecustomize():
    here = os.path.dirname(os.path.abspath(__file__))
    elsewhere = [folder for folder in sys.path if os.path.abspath(folder or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if os.environ.get("MOE_GRAPH_SIM", "1") not in ("", "0"):
    if "torch" not in sys.modules and not any(hasattr(finder, "started_by") for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
if __name__ == "sitecustomize":
    _run_hidden_sitecustomize()

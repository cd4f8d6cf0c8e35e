"""moe_graph: `npu_moe_re_routing` complete in graph mode and usable everywhere.

Importing it registers, where they are missing, the operator's schema, fake implementation, eager fallback, autograd and torchair converter.

    foundation/   contract, checks of arguments, products        re_routing/    index, fallback, gradient, front end
    meta/         fake implementation                            converters/    lowering to GE
    operators/    the other operators, one module each           registration/  who registers what, when; status
    engine/       executes a lowered GE graph on the CPU         simulator/     a device for the real torch_npu without CANN
    conformance/  torchair's declared cases on the engine        testing        assertions on a model's lowered graph
    dumps/        graph dumps: read, summarised, compared        passes         passes over the graph that is lowered
    planning/     graphs and their costs from shapes alone
"""

from moe_graph.foundation import at_import  # noqa: F401  isort: skip  what needs no torch is answered before it is imported
from moe_graph.foundation import checkout  # noqa: F401  isort: skip  where the package's parts are
from moe_graph.foundation import torch_import  # noqa: F401  isort: skip  must come before the first import of torch
from moe_graph import passes
from moe_graph.foundation.contract import MoeReRoutingOutput, MoeUnRoutingOutput
from moe_graph.foundation.product import set_product
from moe_graph.foundation.settings import check_devices, torchair_numbers
from moe_graph.foundation.version import __version__ as __version__
from moe_graph.re_routing.debug import Difference, compare_with_fallback, force_fallback
from moe_graph.re_routing.functional import moe_re_routing, moe_un_routing
from moe_graph.registration.register import register, unregister
from moe_graph.registration.status import status

# Tools of the host engine, imported when they are asked for; they need torchair's wheel, so `import *` leaves them out.
_LAZY = {
    "trace": "moe_graph.engine.trace",
    "compare_graph": "moe_graph.engine.compare",
    "compare_graphs": "moe_graph.engine.compare_program",
    "plan": "moe_graph.planning.entry",
}

__all__ = [
    "Difference",
    "MoeReRoutingOutput",
    "MoeUnRoutingOutput",
    "check_devices",
    "compare_with_fallback",
    "force_fallback",
    "moe_re_routing",
    "moe_un_routing",
    "passes",
    "register",
    "set_product",
    "status",
    "torchair_numbers",
    "unregister",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list:
    return sorted({*globals(), *_LAZY})


register()

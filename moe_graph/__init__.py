"""moe_graph: `npu_moe_re_routing` complete in graph mode and usable everywhere.

Importing it registers, where they are missing, the operator's schema, fake implementation, eager fallback, autograd and torchair converter.

    functional    moe_re_routing, moe_un_routing: the front end            contract      names, schema, outputs
    fallback      the operator composed of index_select                     index         the index computation
    autograd      its gradient                                              validation    the checks of arguments
    meta/         fake implementation                                       converters/   lowering to GE
    registration  who registers what, when                                  status        what is registered, from whom
    debug         fallback against kernel                                   product       what the kernel accepts on which Ascend
    engine/       executes a lowered GE graph on the CPU                    simulator/    a device for the real torch_npu without CANN
    conformance/  torchair's declared cases on the engine                   testing       assertions on a model's lowered graph
    family/       the operators around it in an expert-parallel layer       passes        passes over the graph that is lowered
    dumps/        graph dumps: read, summarised, drawn, compared
"""

from moe_graph import torch_import  # noqa: F401  isort: skip  must come before the first import of torch
from moe_graph import passes
from moe_graph.contract import MoeReRoutingOutput, MoeUnRoutingOutput
from moe_graph.debug import Difference, compare_with_fallback, force_fallback
from moe_graph.functional import moe_re_routing, moe_un_routing
from moe_graph.product import set_product
from moe_graph.registration import register, unregister
from moe_graph.settings import check_devices
from moe_graph.status import status

__version__ = "0.1.0"

# Tools of the host engine, imported when they are asked for; they need torchair's wheel, so `import *` leaves them out.
_LAZY = {"trace": "moe_graph.engine.trace", "compare_graph": "moe_graph.engine.compare"}

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

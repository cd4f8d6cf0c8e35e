"""These tests run on plain torch: moe_graph comes first, so that torch loads also where a torch_npu wheel lies without CANN."""

import moe_graph  # noqa: F401

"""Fake implementations, one module an operator. Registered by `moe_graph.register`."""

from moe_graph.meta.moe_re_routing import fake_re_routing

__all__ = ["fake_re_routing"]

"""Failed cases whose reason lies in torchair's lowering, or in the case itself.

They stay failed cases: a graph with them gives other numbers than eager PyTorch. An entry without a failing case is an error of the test.
"""

from __future__ import annotations

from moe_graph.converters.known import KNOWN

# Operator -> what is wrong with its declared cases.
FAULTY_CASES = {
    "aten.native_group_norm_backward.default": (
        "torchair computes the variance as 1 / rstd^2, and the case draws rstd below 0, which no variance has"
    ),
}
# Operator -> what torchair lowers it to instead; `moe_graph.converters.known` has the evidence and the remedy.
TORCHAIR = {operator: entry.what for entry in KNOWN for operator in entry.operators}


def explained(operator: str, reason: str) -> str:
    """The reason of a failed case, after what is known of torchair's lowering of this operator."""
    known = TORCHAIR.get(operator) or FAULTY_CASES.get(operator)
    return f"{known} ({reason})" if known else reason

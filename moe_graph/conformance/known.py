"""Cases that fail because torchair lowers them to something else than the operator is: found by this walk, and why.

They stay failed cases: a graph with them gives other numbers than eager PyTorch. An entry without a failing case is an error of the test.
"""

from __future__ import annotations

# Operator -> what torchair 2.13 does.
TORCHAIR = {
    "aten._native_batch_norm_legit.default": "torchair returns the running statistics where PyTorch has the batch's, and the reverse",
    "aten._native_batch_norm_legit_functional.default": (
        "torchair returns the running statistics where PyTorch has the batch's, and the reverse"
    ),
    "aten.native_batch_norm_backward.default": (
        "torchair hands save_invstd, 1 / sqrt(variance + eps), to an input of GE that is the variance"
    ),
    "aten.native_group_norm_backward.default": (
        "torchair computes the variance as 1 / rstd^2, and the case draws rstd below 0, which no variance has"
    ),
}


def explained(operator: str, reason: str) -> str:
    """The reason of a failed case, after what is known of torchair's lowering of this operator."""
    return f"{TORCHAIR[operator]} ({reason})" if operator in TORCHAIR else reason

"""Gradients on CPU tensors inside a kernel, where torch has switched its autograd off."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def _default_keys() -> tuple[Any, Any]:
    """The dispatch keys that a thread which has done nothing yet includes and excludes."""
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.extend(
            (torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set())
        )
    )
    thread.start()
    thread.join()
    return found[0], found[1]


_INCLUDED, _EXCLUDED = _default_keys()


def vjp(
    function: Callable[..., Any], inputs: Sequence[Tensor | None], grads: Any, mask: Sequence[bool] | None = None
) -> list[Any]:
    """Gradients with respect to each input for the gradients of the results: None where there is no input or `mask` is False.

    `function(*inputs)` is differentiable and returns a tensor or several; `grads`: as many, None for those without.
    """
    wanted = [x is not None and (mask is None or mask[i]) for i, x in enumerate(inputs)]
    if not any(wanted):
        return [None] * len(inputs)
    with torch._C._ForceDispatchKeyGuard(_INCLUDED, _EXCLUDED), torch.inference_mode(False), torch.enable_grad():
        leaves = [
            None if x is None else x.detach().clone().requires_grad_() if wanted[i] else x.detach()
            for i, x in enumerate(inputs)
        ]
        results = function(*leaves)
        results, grads = ([results], [grads]) if isinstance(results, Tensor) else (list(results), list(grads))
        pairs = [(r, g) for r, g in zip(results, grads) if g is not None and r.requires_grad]
        asked = [leaf for leaf, use in zip(leaves, wanted) if use and leaf is not None]
        found = iter(
            torch.autograd.grad([r for r, _ in pairs], asked, [g.to(r.dtype) for r, g in pairs], allow_unused=True)
        )
        return [
            (lambda g, x: torch.zeros_like(x) if g is None else g)(next(found), x) if use else None
            for x, use in zip(inputs, wanted)
        ]

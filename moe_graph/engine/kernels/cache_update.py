"""Writing new entries into caches. Scatter and QuantUpdateScatter assign to their reference `var`, as GE defines them: torchair gives
them a copy (TensorMove) where the operator of the program leaves its input alone, the input itself where it changes it."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.registry import Tensors, kernel


def _check_update(reduce: str, allowed: tuple[str, ...] = ("update", "none")) -> None:
    if reduce not in allowed:
        raise NotImplementedError(f"reduce must be {' or '.join(allowed)}, got {reduce!r}")


def _write_windows(var: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """Assign updates[i] to a window of var along axis: of var[i] from indices[i] on, or, where indices is [N, 2], of
    var[indices[i, 0]] from indices[i, 1] on."""
    axis %= var.dim()
    if not axis:
        raise ValueError(f"axis must not be the first of {var.dim()} dimensions, which indices goes along")
    batch, start = indices.long().unbind(-1) if indices.dim() == 2 else (torch.arange(len(indices)), indices.long())
    length = updates.shape[axis]
    if len(start) and (int(start.min()) < 0 or int(start.max()) + length > var.shape[axis]):
        raise ValueError(
            f"indices must leave room for {length} in dimension {axis} of size {var.shape[axis]}, got {int(start.min())} to "
            f"{int(start.max())}"
        )
    places = start.unsqueeze(1) + torch.arange(length)
    var.movedim(axis, 1)[batch.unsqueeze(1), places] = updates.movedim(axis, 1)
    return var


@kernel("Scatter", assigns="var")
def scatter(var: Tensor, indices: Tensor, updates: Tensor, *, reduce: str, axis: int = 0) -> Tensor:
    """GE Scatter: updates[i] assigned to var[i] from place indices[i] of axis on; indices [N, 2] names the entry of var, too."""
    _check_update(reduce)
    return _write_windows(var, indices, updates, axis)


@kernel("QuantUpdateScatter", assigns="var")
def quant_update_scatter(
    var: Tensor,
    indices: Tensor,
    updates: Tensor,
    quant_scales: Tensor,
    quant_zero_points: Tensor | None = None,
    *,
    reduce: str,
    axis: int = -2,
    quant_axis: int = -1,
    reciprocal_scale: bool = False,
    round_mode: str = "rint",
) -> Tensor:
    """GE QuantUpdateScatter: Scatter of updates / quant_scales + quant_zero_points rounded to int8, a scale for each place of the
    last dimension; with reciprocal_scale updates * quant_scales. Other types of var than int8 are not modelled."""
    _check_update(reduce, ("update",))
    if var.dtype != torch.int8 or round_mode != "rint":
        raise NotImplementedError(f"var must be int8 and round_mode rint, got {var.dtype} and {round_mode!r}")
    if quant_axis not in (-1, updates.dim() - 1):
        raise NotImplementedError(f"quant_axis must be the last of {updates.dim()} dimensions, got {quant_axis}")
    scales = quant_scales.reshape(-1).float()
    scaled = updates.float() * scales if reciprocal_scale else updates.float() / scales
    if quant_zero_points is not None:
        scaled = scaled + quant_zero_points.reshape(-1).float()
    return _write_windows(var, indices, scaled.round().clamp(-128, 127).to(torch.int8), axis)


@kernel("ScatterList")
def scatter_list(
    var: Tensors, indice: Tensor, updates: Tensor, mask: Tensor | None = None, *, reduce: str = "update", axis: int = -2
) -> Tensors:
    """GE ScatterList: var[i] with updates[i] from place indice[i] of axis on, where mask[i] is not 0.

    Only the form with one place for each tensor is modelled, and axis counted from the end.
    """
    _check_update(reduce, ("update",))
    if indice.dim() != 1 or axis >= 0:
        raise NotImplementedError(f"indice must have one dimension and axis be negative, got {indice.dim()} and {axis}")
    if not len(var) == len(indice) == len(updates):
        raise ValueError(f"indice and updates must have {len(var)} entries, got {len(indice)} and {len(updates)}")
    chosen = [True] * len(var) if mask is None else mask.bool().tolist()
    results = []
    for tensor, place, update, wanted in zip(var, indice.tolist(), updates, chosen):
        result = tensor.clone()
        if wanted:
            result.narrow(axis, place, update.shape[axis]).copy_(update)
        results.append(result)
    return results


@kernel("ScatterPaKvCache")
def scatter_pa_kv_cache(
    key: Tensor,
    key_cache: Tensor,
    slot_mapping: Tensor,
    value: Tensor,
    value_cache: Tensor,
    compress_lens: Tensor | None = None,
    compress_seq_offset: Tensor | None = None,
    seq_lens: Tensor | None = None,
    *,
    cache_mode: str = "Norm",
    scatter_mode: str = "None",
    strides: list = (1, 1),
    offsets: list = (0, 0),
) -> tuple[Tensor, Tensor]:
    """GE ScatterPaKvCache: the caches with key and value [tokens, heads, D] at the slots slot_mapping [tokens] of their pages.

    cache_mode "Norm" has caches [pages, page size, heads, D], "PA_NZ" [pages, heads * D / n, page size, n]. Compressed caches
    and other scatter modes are not modelled.
    """
    compressed = (compress_lens, compress_seq_offset, seq_lens)
    if scatter_mode != "None" or any(tensor is not None for tensor in compressed):
        raise NotImplementedError(f"scatter_mode must be None, without lengths of compression, got {scatter_mode!r}")
    if list(strides) != [1, 1] or list(offsets) != [0, 0]:
        raise NotImplementedError(f"strides must be 1 and offsets 0, got {list(strides)} and {list(offsets)}")
    if cache_mode not in ("Norm", "PA_NZ"):
        raise NotImplementedError(f"cache_mode must be Norm or PA_NZ, got {cache_mode!r}")
    if slot_mapping.numel() and int(slot_mapping.min()) < 0:
        raise ValueError(f"slot_mapping must not be negative, got {int(slot_mapping.min())}")
    return tuple(
        _paged(cache, tokens, slot_mapping.long(), cache_mode)
        for cache, tokens in ((key_cache, key), (value_cache, value))
    )


def _paged(cache: Tensor, tokens: Tensor, slots: Tensor, cache_mode: str) -> Tensor:
    result = cache.clone()
    pages = result if cache_mode == "Norm" else result.transpose(1, 2)  # [pages, page size, ...]
    size = pages.shape[1]
    pages[slots // size, slots % size] = tokens.reshape(len(slots), *pages.shape[2:])
    return result

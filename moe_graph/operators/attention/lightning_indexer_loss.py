"""The lightning indexer's training: gradients of its scores, and the loss that it is trained with.

    scores  I[t, s] = sum over the heads n of weights[t, n] * relu(query_index[t, n] @ key_index[s])
    target  p[t, s] = mean over the heads of exp(scale_value * query[t, n] @ key[s] - softmax_max) / softmax_sum, of the attention itself
    loss    sum over t, s of p * (log p - log softmax(I)), both logarithms of at least 1e-8; its gradient of I is softmax(I) - p

    npu_lightning_indexer_grad                  of npu_lightning_indexer's values: dy [B, S, (1,) count] for the keys of sparse_indices
    npu_dense_lightning_indexer_softmax_lse     max and sum of exp(I - max) of each query, float32 [B, 1, S] or [1, T]
    npu_dense_lightning_indexer_grad_kl_loss    over all keys of a sequence; softmax(I) is of these two
    npu_sparse_lightning_indexer_grad_kl_loss   over the keys of sparse_indices; softmax(I) is over them

    query [B, S, N, D], key [B, Sk, N2, D], query_index [B, S, Ni, D], key_index [B, Sk, 1, D], weights [B, S, Ni] (TND: without B)
    softmax_max, softmax_sum  [B, N2, S, N / N2] or [N2, T, N / N2]     query_rope, key_rope  added to the scores of the attention
    actual_seq_qlen, actual_seq_klen  where each sequence ends, in TND     sparse_mode 3: causal from the lower right corner
    -> gradients of query_index, key_index and weights in their dtypes, and of the two losses float32 [1]

Sources: the operators' pages in the torch_npu documentation; the references of op-plugin's tests; npu_lightning_indexer_grad: torch_npu's
derivative of npu_lightning_indexer. Float32 inside, rounded once. Not served: sinks. torchair has no converters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from moe_graph.operators.attention import layouts
from moe_graph.operators.attention.masks import CAUSAL_RIGHT
from moe_graph.operators.attention.sparse import ANY, Sides, sides, whole_range
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_LEAST = 1e-8
_FLOATS = (torch.float16, torch.bfloat16)


class _Index:
    """The indexer's operands by sequence, and the gradients that are collected for them."""

    def __init__(self, check: Checks, found: Sides, query: Tensor, key: Tensor, weights: Tensor) -> None:
        check.dtype("query", query, _FLOATS)
        check.dtype("key", key, (query.dtype,))
        check.dtype("weights", weights, (query.dtype, torch.float32))
        if key.shape[-2] != 1 or key.shape[-1] != query.shape[-1] or weights.shape != query.shape[:-1]:
            check.refuse(
                "key and weights",
                f"of one head of {query.shape[-1]} elements, and of shape {tuple(query.shape[:-1])}",
                f"{tuple(key.shape)} and {tuple(weights.shape)}",
            )
        self.found, self.dtypes, self.rows = found, (query.dtype, key.dtype, weights.dtype), key.shape
        self.query = found.queries_of("query", query).float()  # [B, N, S, D]
        self.key = found.keys_of("key", key).float()[:, 0]  # [B, Sk, D]
        self.weights = found.queries_of("weights", weights.unsqueeze(-1)).float().squeeze(-1)  # [B, N, S]
        self.gradients = [torch.zeros_like(tensor) for tensor in (self.query, self.key, self.weights)]

    def products(self, at: int) -> Tensor:
        """query @ key of one sequence, [N, S, Sk]."""
        return self.query[at] @ self.key[at].t()

    def scores(self, at: int) -> Tensor:
        """I of one sequence, [S, Sk]."""
        return (self.products(at).relu() * self.weights[at].unsqueeze(-1)).sum(0)

    def through(self, at: int, gradient: Tensor) -> None:
        """Collect what the gradient [S, Sk] of one sequence's scores gives."""
        products = self.products(at)
        for_query, for_key, for_weights = self.gradients
        for_weights[at] = (products.relu() * gradient).sum(-1)
        of_products = (gradient * self.weights[at].unsqueeze(-1)).masked_fill(products <= 0, 0)
        for_query[at] = of_products @ self.key[at]
        for_key[at] = torch.einsum("nst,nsd->td", of_products, self.query[at])

    def collected(self) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients in the layouts and dtypes of the operands."""
        for_query, for_key, for_weights = self.gradients
        if self.found.layout_key == "BSND":
            for_key = torch.nn.functional.pad(for_key, (0, 0, 0, self.rows[1] - for_key.shape[1]))
        key = layouts.from_bnsd(for_key.unsqueeze(1), self.found.layout_key, self.found.packed_keys, 0)
        query, weights = self.found.output(for_query), self.found.output(for_weights.unsqueeze(-1)).squeeze(-1)
        dtypes = self.dtypes
        return query.to(dtypes[0]), key.to(dtypes[1]), weights.to(dtypes[2])


def _sides(check: Checks, query: Tensor, key: Tensor, layout: str, ends: Sequence[Sequence[int] | None]) -> Sides:
    """The sequences; `ends` of the queries and of the keys, which only TND needs."""
    given = []
    for name, of_side, x in (("actual_seq_qlen", ends[0], query), ("actual_seq_klen", ends[1], key)):
        if layout == "BSND" and of_side is not None:
            whole = [x.shape[1] * (i + 1) for i in range(x.shape[0])]
            if list(of_side) != whole:
                check.refuse(name, f"None or {whole} in layout BSND", list(of_side))
            of_side = None
        given.append(None if of_side is None else torch.tensor(list(of_side)))
    return sides(check, query, key, layout, layout, given[0], given[1], None, ("layout", "actual_seq_klen"))


def _mode(check: Checks, sparse_mode: int | None, pre_tokens: int | None, next_tokens: int | None) -> None:
    check.value("sparse_mode", sparse_mode, (CAUSAL_RIGHT,))
    for name, tokens in (("pre_tokens", pre_tokens), ("next_tokens", next_tokens)):
        if tokens is not None and tokens < 2**16:  # the page's own call gives 65536 for any number
            check.refuse(name, f"at least {2**16}", tokens)


def lightning_indexer_grad(
    query: Tensor,
    key: Tensor,
    dy: Tensor,
    sparse_indices: Tensor,
    weights: Tensor,
    actual_seq_lengths_query: Tensor | None = None,
    actual_seq_lengths_key: Tensor | None = None,
    layout: str | None = "BSND",
    sparse_mode: int | None = 3,
    pre_tokens: int | None = ANY,
    next_tokens: int | None = ANY,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and weights."""
    check, name = Checks("npu_lightning_indexer_grad"), layout or "BSND"
    modes = (CAUSAL_RIGHT if sparse_mode is None else sparse_mode, *(t or ANY for t in (pre_tokens, next_tokens)))
    whole_range(check, *modes)
    lengths = (actual_seq_lengths_query, actual_seq_lengths_key)
    found = sides(check, query, key, name, name, *lengths, None, ("layout", "actual_seq_lengths_key"))
    index = _Index(check, found, query, key, weights)
    for at, (places, chosen) in _chosen(check, found, sparse_indices):
        values = _of_queries(check, found, "dy", dy)[at].float().masked_fill(~chosen, 0)
        index.through(at, torch.zeros(len(places), found.keys.rows).scatter_add_(1, places, values))
    return index.collected()


def _of_queries(check: Checks, found: Sides, name: str, x: Tensor) -> Tensor:
    """[B, S, 1, count] or [T, 1, count], or without the 1, as [B, S, count]."""
    rank = len(found.layout_query)
    check.rank(name, x, (rank - 1, rank), f"{found.layout_query[:-1]} and count, with or without N")
    return found.queries_of(name, x.unsqueeze(-2) if x.dim() < rank else x)[:, 0]


def _chosen(check: Checks, found: Sides, sparse_indices: Tensor) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """(sequence, (its keys' positions [S, count], which of them are meant))."""
    check.dtype("sparse_indices", sparse_indices, (torch.int32, torch.int64))
    every = _of_queries(check, found, "sparse_indices", sparse_indices).long()
    for at in range(found.batch):
        rows = torch.arange(found.queries.rows) < found.queries.lengths[at]
        chosen = (every[at] >= 0) & rows.unsqueeze(1)
        places = every[at].masked_fill(~chosen, 0)
        if bool((places >= found.keys.lengths[at].clamp_min(1)).any()):
            check.refuse("sparse_indices", f"below {int(found.keys.lengths[at])}, the keys", int(every[at].max()))
        yield at, (places, chosen)


def dense_lightning_indexer_softmax_lse(
    query_index: Tensor,
    key_index: Tensor,
    weights: Tensor,
    *,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_klen: Sequence[int] | None = None,
    layout: str | None = "BSND",
    sparse_mode: int | None = 3,
    pre_tokens: int | None = ANY,
    next_tokens: int | None = ANY,
) -> tuple[Tensor, Tensor]:
    """softmax_max_index and softmax_sum_index."""
    check, name = Checks("npu_dense_lightning_indexer_softmax_lse"), layout or "BSND"
    _mode(check, sparse_mode, pre_tokens, next_tokens)
    found = _sides(check, query_index, key_index, name, (actual_seq_qlen, actual_seq_klen))
    index, seen = _Index(check, found, query_index, key_index, weights), found.seen(CAUSAL_RIGHT)
    largest, sums = torch.zeros(2, found.batch, found.queries.rows)
    for at in range(found.batch):
        scores = index.scores(at).masked_fill(~seen[at], -torch.inf)
        largest[at] = scores.amax(-1)
        sums[at] = (scores - largest[at].unsqueeze(-1)).exp().sum(-1)
    return _of_rows(found, largest), _of_rows(found, sums)


def _of_rows(found: Sides, x: Tensor) -> Tensor:
    """[B, S] as [B, 1, S] or [1, T]."""
    rows = found.output(x[:, None, :, None])  # [B, S, 1, 1] or [T, 1, 1]
    return rows.squeeze(-1).movedim(-1, 0 if found.layout_query == "TND" else 1)


def _target(
    check: Checks,
    found: Sides,
    query: Tensor,
    key: Tensor,
    ropes: tuple[Tensor | None, Tensor | None],
    softmax_max: Tensor,
    softmax_sum: Tensor,
    scale: float,
) -> Iterator[Tensor]:
    """p of each sequence, [S, Sk], not masked."""
    if (ropes[0] is None) != (ropes[1] is None):
        check.refuse("query_rope and key_rope", "given both or neither", [rope is not None for rope in ropes])
    left, right = found.queries_of("query", query).float(), found.keys_of("key", key).float()
    if ropes[0] is not None and ropes[1] is not None:
        left = torch.cat((left, found.queries_of("query_rope", ropes[0]).float()), -1)
        right = torch.cat((right, found.keys_of("key_rope", ropes[1]).float()), -1)
    heads, groups = left.shape[1], left.shape[1] // right.shape[1]
    is_packed = found.layout_query == "TND"
    for name, x in (("softmax_max", softmax_max), ("softmax_sum", softmax_sum)):
        shape = (
            (right.shape[1], query.shape[0], groups)
            if is_packed
            else (*key.shape[:1], right.shape[1], query.shape[1], groups)
        )
        if tuple(x.shape) != shape:
            check.refuse(name, f"of shape {list(shape)}", f"shape {tuple(x.shape)}")

    def by_head(x: Tensor) -> Tensor:
        """[B, N, S, 1]"""
        rows = x.movedim(0, 1).flatten(1) if is_packed else x.movedim(1, 2).flatten(2)  # [T, N], [B, S, N]
        return found.queries_of("softmax_max", rows.unsqueeze(-1)).float()

    largest, sums = by_head(softmax_max), by_head(softmax_sum)
    for at in range(found.batch):
        keys = right[at].repeat_interleave(groups, 0)
        yield ((left[at] @ keys.transpose(1, 2) * scale - largest[at]).exp() / sums[at]).sum(0) / heads


def _loss(p: Tensor, softmax: Tensor, seen: Tensor) -> Tensor:
    difference = p.clamp_min(_LEAST).log() - softmax.clamp_min(_LEAST).log()
    return (difference * p).masked_fill(~seen, 0).sum()


def dense_lightning_indexer_grad_kl_loss(
    query: Tensor,
    key: Tensor,
    query_index: Tensor,
    key_index: Tensor,
    weights: Tensor,
    softmax_max: Tensor,
    softmax_sum: Tensor,
    softmax_max_index: Tensor,
    softmax_sum_index: Tensor,
    scale_value: float,
    *,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_klen: Sequence[int] | None = None,
    layout: str | None = "BSND",
    sparse_mode: int | None = 3,
    pre_tokens: int | None = ANY,
    next_tokens: int | None = ANY,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d_query_index, d_key_index, d_weights and the loss."""
    check, name = Checks("npu_dense_lightning_indexer_grad_kl_loss"), layout or "BSND"
    _mode(check, sparse_mode, pre_tokens, next_tokens)
    found = _sides(check, query_index, key_index, name, (actual_seq_qlen, actual_seq_klen))
    index, seen = _Index(check, found, query_index, key_index, weights), found.seen(CAUSAL_RIGHT)
    targets = _target(check, found, query, key, (query_rope, key_rope), softmax_max, softmax_sum, scale_value)
    front = 0 if name == "TND" else 1  # [1, T] and [B, 1, S]
    largest, sums = (
        found.queries_of("softmax_max_index", x.movedim(front, -1).unsqueeze(-1)).float()[:, 0]
        for x in (softmax_max_index, softmax_sum_index)
    )
    loss = torch.zeros(1)
    for at, p in enumerate(targets):
        softmax = (index.scores(at) - largest[at]).exp() / sums[at]
        loss += _loss(p, softmax, seen[at])
        index.through(at, (softmax - p).masked_fill(~seen[at], 0))
    return *index.collected(), loss


def sparse_lightning_indexer_grad_kl_loss(
    query: Tensor,
    key: Tensor,
    query_index: Tensor,
    key_index: Tensor,
    weights: Tensor,
    sparse_indices: Tensor,
    softmax_max: Tensor,
    softmax_sum: Tensor,
    scale_value: float,
    *,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_klen: Sequence[int] | None = None,
    layout: str | None = "BSND",
    sparse_mode: int | None = 3,
    pre_tokens: int | None = ANY,
    next_tokens: int | None = ANY,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d_query_index, d_key_index, d_weights and the loss."""
    check, name = Checks("npu_sparse_lightning_indexer_grad_kl_loss"), layout or "BSND"
    _mode(check, sparse_mode, pre_tokens, next_tokens)
    check.absent("sinks", sinks, "they are not served")
    found = _sides(check, query_index, key_index, name, (actual_seq_qlen, actual_seq_klen))
    index = _Index(check, found, query_index, key_index, weights)
    targets = _target(check, found, query, key, (query_rope, key_rope), softmax_max, softmax_sum, scale_value)
    loss = torch.zeros(1)
    for p, (at, (places, chosen)) in zip(targets, _chosen(check, found, sparse_indices)):
        seen = torch.zeros(len(places), found.keys.rows).scatter_add_(1, places, chosen.float()) > 0
        softmax = index.scores(at).masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0)
        loss += _loss(p, softmax, seen)
        index.through(at, (softmax - p).masked_fill(~seen, 0))
    return *index.collected(), loss


GRAD_OPERATOR = of_torch_npu("npu_lightning_indexer_grad", lightning_indexer_grad)
SOFTMAX_OPERATOR = of_torch_npu("npu_dense_lightning_indexer_softmax_lse", dense_lightning_indexer_softmax_lse)
DENSE_OPERATOR = of_torch_npu("npu_dense_lightning_indexer_grad_kl_loss", dense_lightning_indexer_grad_kl_loss)
SPARSE_OPERATOR = of_torch_npu("npu_sparse_lightning_indexer_grad_kl_loss", sparse_lightning_indexer_grad_kl_loss)

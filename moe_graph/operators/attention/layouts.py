"""The layouts in which attention takes queries, keys and values and gives its output: to [B, N, S, D] and back.

    BSH [B, S, N*D]   BSND [B, S, N, D]   BNSD [B, N, S, D]   SBH [S, B, N*D]   NSD [N, S, D] and SH [S, N*D]: one sequence
    TND [T, N, D]     NTD [N, T, D]: T tokens of all sequences, one after the other       NBSD [N, B, S, D]: output alone

TND_NTD reads "queries TND, output NTD". In TND and NTD a list holds where each sequence ends: the running sum of their lengths.
Source: the pages of npu_fused_infer_attention_score, npu_prompt_flash_attention and npu_fusion_attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks

Lengths = Union[Sequence[int], Tensor]
"""Lengths or ends of sequences: a list, or a tensor of whole numbers."""

_PACKED = ("TND", "NTD")
_AXES = {"BSH": "BSND", "SBH": "SBND", "SH": "SND"}


@dataclass(frozen=True)
class Layout:
    """What `input_layout` says: the layouts of the queries (keys and values, too, where they are not paged) and of the output."""

    given: str
    output: str

    @property
    def packed(self) -> bool:
        """Do the sequences lie one after the other, without a batch's axis?"""
        return self.given in _PACKED


def parse(check: Checks, name: str, allowed: Sequence[str], query: Tensor) -> Layout:
    """The layout of this name. Raises ValueError for one that is not allowed, or if the query's rank differs."""
    check.value("input_layout", name, allowed)
    given, _, output = name.partition("_")
    check.rank("query", query, (len(given),), f"{given}, {len(given)} dimensions")
    return Layout(given, output or given)


def numbers(lengths: Lengths) -> list[int]:
    """The lengths as a list."""
    return [int(item) for item in (lengths.flatten().tolist() if isinstance(lengths, Tensor) else lengths)]


class Packed:
    """Where the sequences of a packed layout lie, from their ends. `lengths` [B] int64, `widest`: the longest."""

    def __init__(self, check: Checks, argument: str, ends: Sequence[int], tokens: int) -> None:
        starts = [0, *ends[:-1]]
        if not ends or ends[-1] > tokens or any(end < start for start, end in zip(starts, ends)):
            check.refuse(argument, f"the running sum of the sequences' lengths, at most {tokens}", list(ends))
        self._tokens = tokens
        self.lengths = torch.tensor([end - start for start, end in zip(starts, ends)])
        self.widest = int(self.lengths.max())
        position = torch.arange(self.widest)
        self._is_even = all(length == self.widest for length in self.lengths.tolist())
        self._is_token = position < self.lengths[:, None]
        self._token = (torch.tensor(starts)[:, None] + position).clamp_max(max(tokens - 1, 0))

    def pad(self, x: Tensor) -> Tensor:
        """[N, T, ...] to [B, N, S, ...]; behind the end of a shorter sequence stand tokens of others."""
        if self._is_even:
            return x[:, : self._token.numel()].unflatten(1, self._token.shape).transpose(0, 1)
        return x[:, self._token].transpose(0, 1)

    def unpad(self, x: Tensor, outside: float = 0) -> Tensor:
        """[B, N, S, D] to [N, T, D]. Tokens of no sequence get the value `outside`."""
        x = x.transpose(0, 1)
        x = x.flatten(1, 2) if self._is_even else x[:, self._is_token]
        missing = self._tokens - x.shape[1]
        return torch.cat([x, x.new_full((x.shape[0], missing, x.shape[2]), outside)], 1) if missing else x


def to_bnsd(check: Checks, argument: str, x: Tensor, layout: str, heads: int, packed: Packed | None) -> Tensor:
    """A tensor of this layout as [B, N, S, D], a view where strides allow it. Raises ValueError if the heads do not fit."""
    if layout[-1] == "H":
        if x.shape[-1] % heads:
            check.refuse(argument, f"of a last size that the {heads} heads divide", f"shape {tuple(x.shape)}")
        x = x.unflatten(-1, (heads, x.shape[-1] // heads))
    axes = _AXES.get(layout, layout)
    if x.shape[axes.index("N")] != heads:
        check.refuse(argument, f"{layout} with {heads} heads", f"shape {tuple(x.shape)}")
    if packed is not None:
        return packed.pad(_permuted(x, axes, "NTD"))
    if "B" not in axes:
        x, axes = x.unsqueeze(0), "B" + axes
    return _permuted(x, axes, "BNSD")


def from_bnsd(x: Tensor, layout: str, packed: Packed | None, outside: float = 0) -> Tensor:
    """[B, N, S, D] in this layout, contiguous. Tokens of no sequence get the value `outside`."""
    axes = _AXES.get(layout, layout)
    if packed is not None:
        x = _permuted(packed.unpad(x, outside), "NTD", axes)
    else:
        x = _permuted(x, "BNSD", axes if "B" in axes else "B" + axes)
        x = x if "B" in axes else x[0]
    return x.flatten(-2).contiguous() if layout[-1] == "H" else x.contiguous()


def eightfold(x: Tensor, packed: Packed) -> Tensor:
    """[B, N, S, 1] as [T, N, 8], contiguous: a softmax's sums, as packed layouts hand them over."""
    return from_bnsd(x, "TND", packed).expand(-1, -1, 8).contiguous()


def _permuted(x: Tensor, axes: str, wanted: str) -> Tensor:
    return x if axes == wanted else x.permute([axes.index(axis) for axis in wanted])

"""An expert-parallel layer by plain loops: what each rank must receive, and the dense layer that the whole must equal."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """A layer on a number of ranks; 12 experts divide among 1 to 4 of them.

    batches: BS of each rank, repeated    mask: 0 none, 1 of tokens, 2 of tokens and experts
    special: zero, copy and constant experts    wide_alpha: the constants' alphas for each element
    comm_quant_mode: of the combine    packed: the tokens are int32    timed: with performance_info
    lost: the rank that takes no part any more
    """

    name: str
    experts: int = 12
    k: int = 2
    hidden: int = 6
    batches: tuple[int, ...] = (5,)
    shared: int = 1
    shared_ranks: int = 0
    mask: int = 0
    quant_mode: int = 0
    with_scales: bool = False
    with_expert_scales: bool = False
    skewed: bool = False
    expert_token_nums_type: int = 1
    dtype: torch.dtype = torch.bfloat16
    special: tuple[int, int, int] = (0, 0, 0)
    wide_alpha: bool = False
    comm_quant_mode: int = 0
    packed: bool = False
    timed: bool = False
    lost: int | None = None

    def batch(self, rank: int) -> int:
        return self.batches[rank % len(self.batches)]

    def keywords(self, size: int) -> dict:
        differ = len(self.batches) > 1
        return {
            "shared_expert_num": self.shared,
            "shared_expert_rank_num": self.shared_ranks,
            "global_bs": max(self.batches) * size if differ else 0,
            "zero_expert_num": self.special[0],
            "copy_expert_num": self.special[1],
            "const_expert_num": self.special[2],
        }


CASES = [
    Case("plain"),
    Case("three experts a token", k=3, dtype=torch.float16),
    Case("skewed", skewed=True, expert_token_nums_type=0),
    Case("ranks differ in tokens", batches=(3, 0, 7)),
    Case("weights travel too", with_expert_scales=True),
    Case("tokens left out", mask=1),
    Case("experts left out", mask=2, k=3),
    Case("int8", quant_mode=2),
    Case("int8 with scales of experts", quant_mode=2, with_scales=True, dtype=torch.float16),
    Case("no shared expert", shared=0),
    Case("zero and copy experts", k=4, special=(2, 3, 0)),
    Case("every special expert, some left out", k=6, special=(1, 4, 5), mask=2, dtype=torch.float16),
    Case("constants for each element", k=5, special=(0, 0, 6), wide_alpha=True),
    Case("combined as int8", comm_quant_mode=2, hidden=11),
    Case("packed int4", packed=True),
    Case("timed", timed=True),
]
SHARED = [
    Case("one shared expert on one rank", shared_ranks=1),
    Case("shared and left out", shared_ranks=1, mask=2),
    Case("shared and int8 with scales", shared_ranks=1, quant_mode=2, with_scales=True),
    Case("shared and special", shared_ranks=1, k=4, special=(2, 3, 2)),
    Case("without rank 0", lost=0),
]
SHARED_COPIES = [
    Case("one shared expert on two ranks", shared_ranks=2),
    Case("two shared experts on two ranks", shared=2, shared_ranks=2, batches=(3, 5)),
]


def cases(size: int) -> list[Case]:
    return CASES + (SHARED if size > 1 else []) + (SHARED_COPIES if size > 2 else [])


@dataclass
class Inputs:
    """What one rank brings. mask is bool [BS, K], or None."""

    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    mask: torch.Tensor | None


def inputs(case: Case, rank: int) -> Inputs:
    generator = torch.Generator().manual_seed(rank)
    batch = case.batch(rank)
    order = torch.rand(batch, case.experts + sum(case.special), generator=generator).argsort(1)
    ids = torch.arange(case.k).expand(batch, case.k) if case.skewed else order[:, : case.k]
    mask = None
    if case.mask == 1:
        mask = torch.arange(batch) < batch // 2 + rank
    elif case.mask == 2:
        mask = torch.rand(batch, case.k, generator=generator) < 0.5
    x = torch.randn(batch, case.hidden, generator=generator).to(case.dtype)
    return Inputs(
        torch.randint(-9999, 9999, x.shape, generator=generator, dtype=torch.int32) if case.packed else x,
        ids.int().contiguous(),
        torch.rand(batch, case.k, generator=generator),
        mask,
    )


def scales(case: Case) -> torch.Tensor | None:
    if not case.with_scales:
        return None
    rows = case.experts + (case.shared if case.shared_ranks else 0)
    return torch.rand(rows, case.hidden, generator=torch.Generator().manual_seed(99)) + 0.5


def constants(case: Case) -> dict[str, torch.Tensor]:
    """What the constant experts compute with."""
    generator, count = torch.Generator().manual_seed(5), case.special[2]
    if not count:
        return {}
    alpha = (count, case.hidden) if case.wide_alpha else (count,)
    shapes = {"const_expert_alpha_1": alpha, "const_expert_alpha_2": alpha, "const_expert_v": (count, case.hidden)}
    return {name: torch.randn(shape, generator=generator).to(case.dtype) for name, shape in shapes.items()}


def of_special(case: Case, token: torch.Tensor, expert: int) -> torch.Tensor:
    """The result of special expert `expert`, counted from the first, for one token [H], float64."""
    zeros, copies, _ = case.special
    if expert < zeros:
        return torch.zeros(case.hidden, dtype=torch.float64)
    if expert < zeros + copies:
        return token.double()
    alpha_1, alpha_2, v = (tensor[expert - zeros - copies].double() for tensor in constants(case).values())
    return alpha_1 * token.double() + alpha_2 * v


def expert_matrices(case: Case) -> torch.Tensor:
    """[shared + experts, H, H]."""
    shared = case.shared if case.shared_ranks else 0
    generator = torch.Generator().manual_seed(7)
    return torch.randn(shared + case.experts, case.hidden, case.hidden, generator=generator)


def is_active(own: Inputs, token: int, place: int) -> bool:
    if own.mask is None:
        return True
    return bool(own.mask[token] if own.mask.dim() == 1 else own.mask[token, place])


def local_experts(case: Case, size: int, rank: int) -> list[int]:
    """Rows of `expert_matrices` that a rank has: shared experts first, on the first ranks."""
    if rank < case.shared_ranks:
        return [rank // (case.shared_ranks // case.shared)]
    shared, per_rank = (case.shared if case.shared_ranks else 0), case.experts // (size - case.shared_ranks)
    first = (rank - case.shared_ranks) * per_rank
    return [shared + first + i for i in range(per_rank)]


def received(case: Case, size: int, rank: int) -> list[list[list[tuple[int, int, int]]]]:
    """For each local expert, for each source rank, the rows: (source rank, token, place)."""
    shared, result = (case.shared if case.shared_ranks else 0), []
    for expert in local_experts(case, size, rank):
        by_rank = []
        for source in range(size):
            own, rows = inputs(case, source), []
            for token in range(case.batch(source)):
                if rank < case.shared_ranks:
                    copies = case.shared_ranks // case.shared
                    used = any(is_active(own, token, place) for place in range(case.k))
                    if used and source % copies == rank % copies:
                        rows.append((source, token, case.k + expert))
                else:
                    for place in range(case.k):
                        if int(own.ids[token, place]) == expert - shared and is_active(own, token, place):
                            rows.append((source, token, place))
            by_rank.append(rows)
        result.append(by_rank)
    return result


def dense(case: Case, rank: int, function) -> torch.Tensor:
    """The layer on one rank's tokens alone, float64 [BS, H]; `function(x, expert)` is expert's result for one token."""
    own, shared = inputs(case, rank), (case.shared if case.shared_ranks else 0)
    y = torch.zeros(case.batch(rank), case.hidden, dtype=torch.float64)
    for token in range(case.batch(rank)):
        places = [place for place in range(case.k) if is_active(own, token, place)]
        for place in places:
            expert, x = int(own.ids[token, place]), own.x[token]
            special = expert >= case.experts
            result = of_special(case, x, expert - case.experts) if special else function(x, shared + expert)
            y[token] += own.weights[token, place].double() * result
        for expert in range(shared if places else 0):
            y[token] += function(own.x[token], expert)
    return y

"""npu_mla_prolog, v2 and v3 against loops over tokens from the operator's page."""

import pytest
import torch
import torch_npu
from test_operators_cache import paged
from test_operators_position import random, turned

from everywhere import check

HIDDEN, QUERY_RANK, RANK, HEADS, DEPTH, ROPE, SIZE = 64, 32, 64, 2, 16, 32, 4


def normed(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean() + 1e-5).sqrt() * gamma.double()


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return turned(x.double().unsqueeze(0), cos.double(), sin.double(), "interleave-half").double().squeeze(0)


class Case:
    """Random arguments, and what the document makes of them, token by token."""

    def __init__(self, quant: int, cache_quant: int, cache_mode: str = "PA_BSND", joined: bool = False) -> None:
        self.lead = (4,) if joined else (2, 2)
        self.quant, self.cache_quant, self.cache_mode = quant, cache_quant, cache_mode

        def weight(rows: int, columns: int, int8: bool) -> torch.Tensor:
            return torch.randint(-9, 9, (rows, columns)).to(torch.int8) if int8 else random(rows, columns) / 8

        everything = quant == 2
        self.x = torch.randint(-9, 9, (*self.lead, HIDDEN)).to(torch.int8) if everything else random(*self.lead, HIDDEN)
        self.dq = weight(HIDDEN, QUERY_RANK, everything)
        self.uq = weight(QUERY_RANK, HEADS * (DEPTH + ROPE), quant > 0)
        self.uk = random(HEADS, DEPTH, RANK) / 4
        self.dkv = weight(HIDDEN, RANK + ROPE, everything)
        self.gammas = random(QUERY_RANK), random(RANK)
        self.sin, self.cos = random(*self.lead, ROPE, seed=3), random(*self.lead, ROPE, seed=4)
        self.caches = [
            torch.randint(-9, 9, (3, SIZE, 1, RANK)).to(torch.int8 if cache_quant else torch.bfloat16),
            torch.randint(-9, 9, (3, SIZE, 1, ROPE)).to(torch.int8 if cache_quant == 2 else torch.bfloat16),
        ]
        self.slots = torch.tensor([7, 0, -1, 11]).view(self.lead)
        self.scales: dict[str, torch.Tensor] = {}
        if everything:
            self.scales["dequant_scale_x"] = torch.rand(4, 1) / 50
            self.scales["dequant_scale_w_dq"] = torch.rand(1, QUERY_RANK) / 4
            self.scales["dequant_scale_w_dkv_kr"] = torch.rand(1, RANK + ROPE) / 4
        if quant:
            self.scales["dequant_scale_w_uq_qr"] = torch.rand(1, HEADS * (DEPTH + ROPE)) / 9
            self.scales["smooth_scales_cq"] = torch.rand(1, QUERY_RANK) + 0.5
        if cache_quant:
            self.scales["quant_scale_ckv"] = (
                torch.rand(1, RANK if cache_quant == 2 else 1).view((1, RANK) if cache_quant == 2 else (1,)) * 20
            )
        if cache_quant == 2:
            self.scales["quant_scale_ckr"] = torch.rand(1, ROPE) * 20

    def expected(self) -> list[torch.Tensor]:
        """query, query_rope, kv_cache, kr_cache, dequant_scale_q_nope."""
        queries, ropes, scales, latents, keys = [], [], [], [], []
        flat = [t.reshape(4, -1) for t in (self.x, self.sin, self.cos)]
        for t in range(4):
            x, sin, cos = (part[t] for part in flat)

            def product(vector, matrix, own=None, name=None):
                y = vector.double() @ matrix.double()
                if own is None:
                    return y.bfloat16().double() if matrix.dtype != torch.int8 else y
                return y * float(own) * self.scales[name].double().flatten()

            of_x = self.scales["dequant_scale_x"][t] if self.quant == 2 else None
            c = normed(product(x, self.dq, of_x, "dequant_scale_w_dq"), self.gammas[0])
            if self.quant:
                c = c * self.scales["smooth_scales_cq"].double().flatten()
                own = c.abs().max() / 127
                q = product((c / own).round(), self.uq, own, "dequant_scale_w_uq_qr")
            else:
                q = product(c.bfloat16(), self.uq)
            q = q.view(HEADS, DEPTH + ROPE)
            absorbed = torch.stack([q[h, :DEPTH].bfloat16().double() @ self.uk[h].double() for h in range(HEADS)])
            turned_ones = torch.stack([rope(q[h, DEPTH:], cos, sin) for h in range(HEADS)]).bfloat16().double()
            if self.quant == 2 and self.cache_quant == 1:
                absorbed = absorbed.bfloat16().double()
                own = absorbed.abs().amax(-1, keepdim=True) / 127
                absorbed = (absorbed / own).round()
                turned_ones = turned_ones * self.scales["quant_scale_ckv"].double() / own
                scales.append(own)
            queries.append(absorbed)
            ropes.append(turned_ones)
            latent = product(x, self.dkv, of_x, "dequant_scale_w_dkv_kr")
            latents.append(normed(latent[:RANK], self.gammas[1]))
            keys.append(rope(latent[RANK:], cos, sin))
        rows = [torch.stack(latents), torch.stack(keys)]
        for i, name in enumerate(("quant_scale_ckv", "quant_scale_ckr")):
            if name in self.scales:
                rows[i] = (rows[i] * self.scales[name].double()).round().clamp(-128, 127)
        nz = self.cache_mode.endswith("NZ")
        caches = [
            paged(cache, r.to(cache.dtype), self.slots.flatten().tolist(), SIZE, nz)
            for cache, r in zip(self.caches, rows)
        ]
        query_dtype = torch.int8 if scales else torch.bfloat16
        scale = torch.stack(scales).float() if scales else torch.empty(0)
        shape = (*self.lead, HEADS, -1)
        return [
            torch.stack(queries).to(query_dtype).view(shape),
            torch.stack(ropes).bfloat16().view(shape),
            *caches,
            scale,
        ]

    def arguments(self) -> list[torch.Tensor]:
        return [self.x, self.dq, self.uq, self.uk, self.dkv, *self.gammas, self.sin, self.cos]


MODES = [(0, 0), (1, 0), (1, 2), (2, 0), (2, 1)]
# Rounded to bfloat16 twice on the way; int8 one step.
TOLERANCE = dict(rtol=2**-5, atol=2**-4)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("cache_mode", ["PA_BSND", "PA_NZ"])
@pytest.mark.parametrize("quant, cache_quant", MODES)
def test_v3(quant, cache_quant, cache_mode, joined):
    torch.manual_seed(0)
    case = Case(quant, cache_quant, cache_mode, joined)
    query, query_rope, kv_cache, kr_cache, scale = case.expected()

    def prolog(x, dq, uq, uk, dkv, gamma_cq, gamma_ckv, sin, cos, kv_cache, kr_cache, slots, scales):
        found = torch_npu.npu_mla_prolog_v3(
            x, dq, uq, uk, dkv, gamma_cq, gamma_ckv, sin, cos, kv_cache, kr_cache, cache_index=slots,
            weight_quant_mode=quant, kv_cache_quant_mode=cache_quant, cache_mode=cache_mode, **dict(zip(case.scales, scales)),
        )  # fmt: skip
        return found[0], found[1], found[2], kv_cache, kr_cache

    args = [*case.arguments(), *case.caches, case.slots, list(case.scales.values())]
    modes = (
        ("eager", "static", "dynamic")
        if cache_mode == "PA_BSND" and joined and (quant, cache_quant) in ((0, 0), (2, 1))
        else ("eager",)
    )
    tolerance = dict(TOLERANCE, atol=1.0) if quant or cache_quant else TOLERANCE
    check(prolog, args, [query, query_rope, scale, kv_cache, kr_cache], modes=modes, **tolerance)

    def in_copies(x, dq, uq, uk, dkv, gamma_cq, gamma_ckv, sin, cos, kv_cache, kr_cache, slots, scales):
        found = torch.ops.npu.npu_mla_prolog_v3_functional(
            x, dq, uq, uk, dkv, gamma_cq, gamma_ckv, sin, cos, kv_cache, kr_cache, cache_index=slots,
            weight_quant_mode=quant, kv_cache_quant_mode=cache_quant, cache_mode=cache_mode, **dict(zip(case.scales, scales)),
        )  # fmt: skip
        return *found[:3], *found[5:]

    unchanged = [*[None] * 9, *case.caches]
    check(in_copies, args, [query, query_rope, scale, kv_cache, kr_cache, *unchanged], modes=("eager",), **tolerance)


@pytest.mark.parametrize("quant, cache_quant", [(0, 0), (2, 1)])
def test_v2_and_v1(quant, cache_quant):
    torch.manual_seed(0)
    case = Case(quant, cache_quant)
    query, query_rope, kv_cache, kr_cache, scale = case.expected()
    npu = [t.npu() for t in (*case.arguments(), case.slots, *case.caches)]
    scales = {name: value.npu() for name, value in case.scales.items()}
    second = torch_npu.npu_mla_prolog_v2(*npu, **scales)
    wanted = [query, query_rope, kv_cache, kr_cache, scale if scale.numel() else torch.zeros(1)]
    for got, value in zip(second, wanted):
        torch.testing.assert_close(got.cpu().double(), value.double(), rtol=2**-5, atol=1.0 if quant else 2**-4)
    assert second[2].data_ptr() == npu[10].data_ptr()
    if not quant:
        first = torch_npu.npu_mla_prolog(*[t.npu() for t in (*case.arguments(), case.slots, *case.caches)])
        for got, value in zip(first, second):
            assert torch.equal(got.cpu(), value.cpu())


def test_pages_by_their_first_slot():
    """PA_BLK_BSND: cache_index names a page for each block of a sequence."""
    case = Case(0, 0)
    npu = [t.npu() for t in case.arguments()]
    plain, blocks = ([c.npu() for c in case.caches] for _ in range(2))
    index = torch.tensor([[1], [2]])  # two sequences of two tokens, a page each
    slots = torch.tensor([[4, 5], [8, 9]])
    torch_npu.npu_mla_prolog_v3(*npu, *plain, cache_index=slots.npu())
    torch_npu.npu_mla_prolog_v3(*npu, *blocks, cache_index=index.npu(), cache_mode="PA_BLK_BSND")
    for a, b in zip(plain, blocks):
        assert torch.equal(a.cpu(), b.cpu())


def test_forms_that_are_not_served_are_named():
    case = Case(0, 0)
    npu = [t.npu() for t in (*case.arguments(), *case.caches)]
    with pytest.raises(NotImplementedError, match="kv_cache_quant_mode must be one of"):
        torch_npu.npu_mla_prolog_v3(*npu, cache_index=case.slots.npu(), kv_cache_quant_mode=3)
    with pytest.raises(ValueError, match="cache_index must be given"):
        torch_npu.npu_mla_prolog_v3(*npu)

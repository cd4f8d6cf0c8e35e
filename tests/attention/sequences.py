"""Sequences of queries, keys and values, laid out as attention operators take them, and attention by plain loops over them.

Independent of the operators: NumPy in float64, one query and one key at a time, from the documents' formulas.
"""

from __future__ import annotations

import math

import numpy as np
import torch

TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}


def make(lengths, heads, width, dtype, seed):
    """For each length one array [heads, length, width], of values that the dtype has exactly."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(heads, length, width, generator=generator).to(dtype).double().numpy() for length in lengths]


def attention(queries, keys, values, scale, sees, bias=None, sink=None):
    """For each sequence its output [N, Sq, Dv] and log-sum-exp [N, Sq]. sees(b, i, j): does query i of b see key j? Else 0 and inf."""
    outputs, sums = [], []
    for b, (query, key, value) in enumerate(zip(queries, keys, values)):
        heads, rows, _ = query.shape
        group = heads // key.shape[0]
        output, lse = np.zeros((heads, rows, value.shape[2])), np.full((heads, rows), np.inf)
        for n in range(heads):
            for i in range(rows):
                scores = {}
                for j in range(key.shape[1]):
                    if sees(b, i, j):
                        scores[j] = scale * float(query[n, i] @ key[n // group, j])
                        scores[j] += 0 if bias is None else float(bias[b][n, i, j])
                extra = [] if sink is None else [float(sink[n])]
                if not scores and not extra:
                    continue
                most = max([*scores.values(), *extra])
                total = sum(math.exp(score - most) for score in [*scores.values(), *extra])
                lse[n, i] = math.log(total) + most
                for j, score in scores.items():
                    output[n, i] += math.exp(score - most) / total * value[n // group, j]
        outputs.append(output)
        sums.append(lse)
    return outputs, sums


def lay_out(sequences, layout, dtype, rows=None, fill=float("nan")):
    """The sequences as one tensor. Rows that no sequence has hold `fill`. `rows`: S of layouts with a batch's axis."""
    heads, _, width = sequences[0].shape
    if layout in ("TND", "NTD"):
        packed = np.concatenate(sequences, 1)
        return torch.tensor(packed.transpose(1, 0, 2) if layout == "TND" else packed).to(dtype)
    rows = max(x.shape[1] for x in sequences) if rows is None else rows
    padded = np.full((len(sequences), heads, rows, width), float(fill))
    for b, x in enumerate(sequences):
        padded[b, :, : x.shape[1]] = x
    padded = torch.tensor(padded).to(dtype)
    if layout == "BNSD":
        return padded
    padded = padded.transpose(1, 2).contiguous()
    return padded if layout == "BSND" else padded.flatten(2)


def read(tensor, layout, lengths, heads):
    """What a tensor of this layout holds of each sequence, [N, S, D] each."""
    tensor = tensor.detach().cpu().double()
    if layout in ("TND", "NTD"):
        tensor = tensor.transpose(0, 1) if layout == "TND" else tensor
        return [x.numpy() for x in tensor[:, : sum(lengths)].split(list(lengths), 1)]
    if layout == "BSH":
        tensor = tensor.unflatten(2, (heads, -1))
    order = {"BSH": (0, 2, 1, 3), "BSND": (0, 2, 1, 3), "BNSD": (0, 1, 2, 3), "NBSD": (1, 0, 2, 3)}[layout]
    tensor = tensor.permute(order)
    return [tensor[b, :, :length].numpy() for b, length in enumerate(lengths)]


def pages(sequences, block_size, form, dtype, seed, strip=None):
    """A cache in this form ("BnBsH", "BnNBsD", "NZ") with the sequences' tokens in shuffled blocks, and the block table.

    What no sequence has is NaN; of the table's entries for blocks that nobody needs, -1.
    """
    heads, _, width = sequences[0].shape
    counts = [-(-x.shape[1] // block_size) for x in sequences]
    order = torch.randperm(sum(counts) + 1, generator=torch.Generator().manual_seed(seed)).tolist()
    table = np.full((len(sequences), max(counts) + 1), -1)
    cache = np.full((sum(counts) + 1, heads, block_size, width), np.nan if dtype.is_floating_point else 0.0)
    for b, x in enumerate(sequences):
        for block in range(counts[b]):
            table[b, block] = order.pop()
            part = x[:, block * block_size : (block + 1) * block_size]
            cache[table[b, block], :, : part.shape[1]] = part
    cache = torch.tensor(cache).to(dtype)
    if form == "BnBsH":
        cache = cache.transpose(1, 2).flatten(2)
    elif form == "NZ":
        strip = strip or 16
        cache = torch.stack([cache[..., i : i + strip] for i in range(0, width, strip)], 2)
    return cache.contiguous(), torch.tensor(table, dtype=torch.int32)


def ends(lengths):
    return np.cumsum(lengths).tolist()


def triangle():
    """The mask of the causal modes."""
    return torch.ones(2048, 2048, dtype=torch.bool).triu(1)


def assert_close(found, expected, dtype):
    for x, y in zip(found, expected):
        np.testing.assert_allclose(x, y, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])

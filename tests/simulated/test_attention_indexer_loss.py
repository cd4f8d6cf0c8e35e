"""The lightning indexer's gradients and the loss it is trained with, sequence by sequence in float64, their gradients by autograd."""

import pytest
import torch
import torch_npu

from versions import need_operator

HEADS, WIDTH, ATTENTION, COUNT = 3, 8, 4, 3
SEQUENCES = [(2, 4), (3, 5)]  # queries and keys of each
FORMS = {"TND": SEQUENCES, "BSND": [(3, 5), (3, 5)]}


def made(layout, *, packed_softmax=False):
    """Operands in the layout, and by sequence."""
    torch.manual_seed(0)
    sequences = FORMS[layout]
    rows = {
        "query": lambda q, k: (q, ATTENTION, WIDTH),
        "key": lambda q, k: (k, 2, WIDTH),
        "query_index": lambda q, k: (q, HEADS, WIDTH),
        "key_index": lambda q, k: (k, 1, WIDTH),
        "weights": lambda q, k: (q, HEADS),
        "query_rope": lambda q, k: (q, ATTENTION, 2),
        "key_rope": lambda q, k: (k, 2, 2),
    }
    parts = {name: [torch.randn(of(q, k)).half() for q, k in sequences] for name, of in rows.items()}
    whole = {name: torch.cat(x) if layout == "TND" else torch.stack(x) for name, x in parts.items()}
    return sequences, whole, parts


def causal(queries, keys):
    return torch.tensor([[s <= t + keys - queries for s in range(keys)] for t in range(queries)])


def scores_of(query, key, weights):
    """I [S, Sk], a query and a key at a time."""
    rows = []
    for t in range(len(query)):
        of_heads = [weights[t, n] * torch.relu(key[:, 0] @ query[t, n]) for n in range(query.shape[1])]
        rows.append(sum(of_heads))
    return torch.stack(rows)


def attention_of(parts, at, scale):
    """max, sum [S, N] and p [S, Sk] of the attention itself."""
    query = torch.cat((parts["query"][at], parts["query_rope"][at]), -1).double()
    key = torch.cat((parts["key"][at], parts["key_rope"][at]), -1).double()
    seen, p = causal(len(query), len(key)), 0
    largest, sums = torch.zeros(2, len(query), ATTENTION, dtype=torch.float64)
    for n in range(ATTENTION):
        scores = (query[:, n] @ key[:, n // 2].t() * scale).masked_fill(~seen, -torch.inf)
        largest[:, n] = scores.amax(1)
        sums[:, n] = (scores - scores.amax(1, keepdim=True)).exp().sum(1)
        p = p + scores.softmax(1) / ATTENTION
    return largest, sums, p


def in_layout(layout, parts):
    """Softmax statistics [S, N] of each sequence as [N2, T, G] or [B, N2, S, G]."""
    if layout == "TND":
        return torch.cat(parts).float().unflatten(1, (2, 2)).movedim(1, 0).contiguous()
    return torch.stack(parts).float().unflatten(2, (2, 2)).movedim(2, 1).contiguous()


def lengths(layout, sequences):
    if layout == "BSND":
        return {}
    ends = torch.tensor(sequences).cumsum(0)
    return {"actual_seq_qlen": ends[:, 0].tolist(), "actual_seq_klen": ends[:, 1].tolist()}


def joined(layout, parts):
    return torch.cat(parts) if layout == "TND" else torch.stack(parts)


def npu(values):
    return {name: x.npu() if isinstance(x, torch.Tensor) else x for name, x in values.items()}


@pytest.mark.parametrize("layout", FORMS)
@pytest.mark.parametrize("sparse", [False, True])
def test_loss(layout, sparse):
    need_operator("npu_dense_lightning_indexer_grad_kl_loss")
    sequences, whole, parts = made(layout)
    names, scale = ("query_index", "key_index", "weights"), 0.3
    leaves = [[x.double().requires_grad_() for x in parts[name]] for name in names]
    statistics, loss, chosen, largest, sums = [], 0, [], [], []
    for at, (queries, keys) in enumerate(sequences):
        seen = causal(queries, keys)
        scores = scores_of(*(leaf[at] for leaf in leaves))
        if sparse:
            order = scores.detach().masked_fill(~seen, -torch.inf).argsort(1, descending=True)[:, :COUNT]
            kept = torch.gather(seen, 1, order)
            chosen.append(order.masked_fill(~kept, -1).int().unsqueeze(1))
            seen = torch.zeros(queries, keys).scatter_add_(1, order, kept.float()) > 0
        most, total, p = attention_of(parts, at, scale)
        statistics.append((most, total))
        masked = scores.masked_fill(~seen, -torch.inf)
        largest.append(masked.detach().amax(1, keepdim=True))
        sums.append((masked.detach() - largest[-1]).exp().sum(1, keepdim=True))
        for t in range(queries):
            of_row = masked[t][seen[t]].softmax(0)
            target = p[t][seen[t]]
            # Where the target is no distribution, as over some keys, the gradient is still softmax - p.
            loss = loss + (target * target.log()).sum() - (target * of_row.log()).sum()
            for_row = (of_row.detach() - target) * masked[t][seen[t]]
            for_row.sum().backward(retain_graph=True)
    options = dict(
        query_rope=whole["query_rope"], key_rope=whole["key_rope"], layout=layout, **lengths(layout, sequences)
    )
    softmax = [in_layout(layout, list(x)) for x in zip(*statistics)]
    operands = [whole[name] for name in ("query", "key", *names)]
    if sparse:
        found = torch_npu.npu_sparse_lightning_indexer_grad_kl_loss(
            *(x.npu() for x in (*operands, joined(layout, chosen), *softmax)), scale, **npu(options)
        )
    else:
        given = {name: x for name, x in options.items() if "rope" not in name}
        index = torch_npu.npu_dense_lightning_indexer_softmax_lse(*(x.npu() for x in operands[2:]), **npu(given))
        for one, wanted in zip(index, (largest, sums)):
            wanted = joined(layout, wanted).movedim(-1, 0 if layout == "TND" else 1).float()
            torch.testing.assert_close(one.cpu(), wanted, rtol=1e-5, atol=1e-5)
        found = torch_npu.npu_dense_lightning_indexer_grad_kl_loss(
            *(x.npu() for x in (*operands, *softmax)), *index, scale, **npu(options)
        )
    for one, leaf in zip(found, leaves):
        wanted = joined(layout, [x.grad for x in leaf])
        assert one.dtype == torch.float16
        torch.testing.assert_close(one.cpu().double(), wanted, rtol=2**-9, atol=2**-10)
    assert float(found[3].cpu()) == pytest.approx(float(loss.detach()), rel=1e-4)
    with pytest.raises(RuntimeError, match="sparse_mode must be one of 3"):
        torch_npu.npu_dense_lightning_indexer_softmax_lse(*(x.npu() for x in operands[2:]), sparse_mode=0)


def test_gradients_of_the_values():
    need_operator("npu_lightning_indexer_grad")
    sequences, whole, parts = made("BSND")
    names = ("query_index", "key_index", "weights")
    leaves = [whole[name].npu().requires_grad_() for name in names]
    indices, values = torch_npu.npu_lightning_indexer(*leaves, sparse_count=4, return_value=True)
    dy = torch.randn(values.shape).half()
    values.backward(dy.npu())
    wide = [[x.double().requires_grad_() for x in parts[name]] for name in names]
    for at, (queries, _) in enumerate(sequences):
        scores = scores_of(*(leaf[at] for leaf in wide))
        total = 0
        for t in range(queries):
            for place, position in enumerate(indices[at, t, 0].tolist()):
                total = total + (scores[t, position] * float(dy[at, t, 0, place]) if position >= 0 else 0)
        total.backward()
    for leaf, expected in zip(leaves, wide):
        wanted = torch.stack([x.grad for x in expected])
        torch.testing.assert_close(leaf.grad.cpu().double(), wanted, rtol=2**-9, atol=2**-9)

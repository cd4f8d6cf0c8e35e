"""One rank of an expert-parallel group: every case on its device, results as JSON {case: "ok" or the traceback}.

Arguments: the device (cpu, or npu under the simulated device), the file of the rendezvous, the folder for the results, and "lost" if rank
1 is to be killed before it takes part, or "graph" and a number n if the operators are compiled by torchair and must give what they give
eagerly, in every nth case.
RANK and WORLD_SIZE are in the environment.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import moe_graph  # noqa: F401  isort: skip
import torch
import torch.distributed as dist

from family import distribute as reference
from family.quantization import assert_quantized
from moe_graph.foundation import compat

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
TIMEOUT = 20
operators = torch.ops.npu


def group_name(device, group):
    if device == "cpu":
        return compat.group_name(group)
    return group._get_backend(torch.device("npu")).get_hccl_comm_name(dist.get_rank())


def eager(operator):
    return operator


def compiled(operator):
    """The operator in a graph, which must give what it gives eagerly, bit by bit. Rank 0's is for one shape, the others' for every."""
    import torchair

    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    graph = torch.compile(
        lambda *args, **keywords: operator(*args, **keywords), backend=backend, fullgraph=True, dynamic=bool(RANK)
    )

    def call(*args, **keywords):
        torch._dynamo.reset()
        results, wanted = graph(*args, **keywords), operator(*args, **keywords)
        pairs = zip(results, wanted) if isinstance(wanted, (list, tuple)) else [(results, wanted)]
        for result, want in pairs:
            assert torch.equal(result.cpu(), want.cpu()) and result.dtype == want.dtype, operator
        return results

    return call


def other_form(name, device):
    """An operator that torch_npu alone defines; on the CPU its function."""
    if device == "npu":
        return getattr(operators, f"npu_moe_{name}")
    module = importlib.import_module(f"moe_graph.operators.communication.{name}")
    return module.OPERATOR.reference


def check_first_form(case, device, mode, dispatched, combined, call):
    """npu_moe_distribute_dispatch and combine: what the second form gives, but for expand_idx."""
    if sum(case.special) or case.packed or case.lost is not None or case.shared > 1 or SIZE % (case.shared_ranks or 1):
        return
    left_out = ("zero_expert_num", "copy_expert_num", "const_expert_num")
    common = {name: value for name, value in call["common"].items() if name not in left_out}
    position, ids, weights = call["position"], call["ids"], call["weights"]
    outputs = mode(other_form("distribute_dispatch", device))(call["x"], ids, *position, **call["dispatch"], **common)
    for number, (output, other) in enumerate(zip(outputs, dispatched)):
        assert number == 2 or torch.equal(output.cpu(), other.cpu()), number
    flat = ids.flatten().tolist()
    assert outputs[2].tolist() == [flat[:place].count(expert) for place, expert in enumerate(flat)]
    y = mode(other_form("distribute_combine", device))(
        call["results"], ids, outputs[2], outputs[4], weights, *position, comm_quant_mode=case.comm_quant_mode, **common
    )
    beside = 0 if case.shared_ranks else 1  # shared_expert_x, which graphs of the first form do not have
    torch.testing.assert_close(y.cpu().float(), combined.cpu().float() - beside, rtol=0.02, atol=0.05)


def check_with_norm(case, device, mode, combined, call):
    """npu_moe_distribute_combine_add_rms_norm against its formulas in float64, from the loops' sum."""
    tokens, hidden = combined.shape
    generator = torch.Generator().manual_seed(3)
    residual = torch.randn(tokens, 1, hidden, generator=generator).to(case.dtype)
    gamma = torch.randn(hidden, generator=generator).to(case.dtype)
    y, rstd, x = mode(other_form("distribute_combine_add_rms_norm", device))(
        call["results"],
        call["ids"],
        call["assist"],
        call["counts"],
        call["weights"],
        residual.to(device),
        gamma.to(device),
        *call["position"],
        norm_eps=0.5,
        **call["combine"],
        **call["common"],
    )
    wanted = combined.unsqueeze(1) + residual.double()
    scale = (wanted.square().mean(-1, keepdim=True) + 0.5) ** -0.5
    close = {"rtol": 0.05, "atol": 0.15} if case.quant_mode or case.comm_quant_mode else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(x.cpu().double(), wanted, **close)
    torch.testing.assert_close(rstd.cpu().double(), scale, rtol=0.05, atol=1e-3)
    torch.testing.assert_close(y.cpu().double(), wanted * scale * gamma.double(), rtol=0.1, atol=0.15)
    assert (rstd.dtype, y.dtype, x.dtype) == (torch.float32, case.dtype, case.dtype)


def elastic_info(case):
    """As the document of aclnnMoeDistributeDispatchV3 lays it out, without the lost rank."""
    members = [rank for rank in range(SIZE) if rank != case.lost]
    new = [members.index(rank) if rank in members else -1 for rank in range(SIZE)]
    experts = case.experts // SIZE * len(members)
    return torch.tensor([1, len(members), 0, experts, *new, *members, *[-1] * (SIZE - len(members))]).int()


def run(case, device, name, mode=eager):
    if RANK == case.lost:
        return
    whole, rank, size = case, RANK, SIZE
    if case.lost is not None:  # the layer that is left
        case, rank = replace(case, experts=case.experts // SIZE * (SIZE - 1)), RANK - (RANK > case.lost)
        size = SIZE - 1
    own = reference.inputs(case, rank)

    def moved(tensor):
        return None if tensor is None else tensor.to(device)

    common = {**case.keywords(SIZE), "x_active_mask": moved(own.mask)}
    if case.lost is not None:
        common["elastic_info"] = moved(elastic_info(case=whole))
    waits = torch.full((SIZE,), 3, device=device) if case.timed else None
    position = (name, SIZE, RANK, whole.experts)
    x, ids, weights = moved(own.x), moved(own.ids), moved(own.weights)
    of_dispatch = {
        "scales": moved(own.x[:, 0].float() if case.packed else reference.scales(case)),
        "expert_scales": weights if case.with_expert_scales else None,
        "quant_mode": case.quant_mode,
        "expert_token_nums_type": case.expert_token_nums_type,
    }
    outputs = mode(operators.npu_moe_distribute_dispatch_v2)(
        x, ids, *position, performance_info=waits, **of_dispatch, **common
    )
    assert all(output.device.type == device for output in outputs)
    expand_x, dynamic_scales, assist, token_nums, recv_counts, _, expand_scales = (output.cpu() for output in outputs)

    if waits is not None:
        waited = waits.cpu().tolist()
        assert all(wait > 3 if other != RANK else wait == 3 for other, wait in enumerate(waited)), waited

    by_expert = reference.received(case, size, rank)
    rows = [row for by_rank in by_expert for source in by_rank for row in source]
    sizes = [sum(map(len, by_rank)) for by_rank in by_expert]
    expected = torch.tensor(sizes)
    assert torch.equal(token_nums[: len(sizes)], expected if case.expert_token_nums_type else expected.cumsum(0))
    counts = torch.tensor([len(source) for by_rank in by_expert for source in by_rank])
    assert torch.equal(recv_counts[: len(counts)], counts.cumsum(0).int())
    assert assist[: 3 * len(rows)].view(-1, 3).tolist() == [list(row) for row in rows]
    everyone = [reference.inputs(case, other) for other in range(size)]
    if case.with_expert_scales:
        wanted = [1.0 if k >= case.k else float(everyone[r].weights[t, k]) for r, t, k in rows]
        assert expand_scales[: len(rows)].tolist() == wanted
    tokens = torch.stack([everyone[r].x[t] for r, t, _ in rows]) if rows else own.x[:0]
    results = expand_x
    if case.quant_mode == 0:
        assert torch.equal(expand_x[: len(rows)], tokens)
        assert not expand_x[len(rows) :].any()
    else:
        values = tokens.float()
        if case.with_scales:
            of_row = [
                expert for expert, count in zip(reference.local_experts(case, size, rank), sizes) for _ in range(count)
            ]
            values = values * reference.scales(case)[of_row]
        assert_quantized(expand_x[: len(rows)].tolist(), dynamic_scales[: len(rows)].tolist(), values.tolist())
        results = (expand_x.float() * dynamic_scales.unsqueeze(1)).to(case.dtype)

    if case.packed:
        assert dynamic_scales[: len(rows)].tolist() == tokens[:, 0].tolist()
        return
    matrices, start = reference.expert_matrices(case), 0
    results = results.clone()
    for expert, count in zip(reference.local_experts(case, size, rank), sizes):
        results[start : start + count] = (results[start : start + count].float() @ matrices[expert]).to(case.dtype)
        start += count
    beside = None if case.shared_ranks else torch.ones(own.x.shape, dtype=case.dtype)
    of_combine = {
        "shared_expert_x": moved(beside),
        "ori_x": x if any(case.special[1:]) else None,
        "comm_quant_mode": case.comm_quant_mode,
        **{name: moved(tensor) for name, tensor in reference.constants(case).items()},
    }
    y = mode(operators.npu_moe_distribute_combine_v2)(
        results.to(device),
        ids,
        outputs[2],
        outputs[4],
        weights,
        *position,
        performance_info=waits,
        **of_combine,
        **common,
    )
    assert y.device.type == device and y.dtype == case.dtype
    wide = matrices.double()
    factors = reference.scales(case)

    def of_expert(token, expert):
        token = token.double() * (1 if factors is None else factors[expert].double())
        return token @ wide[expert]

    expected = reference.dense(case, rank, of_expert) + (0 if beside is None else 1)
    rough = case.quant_mode or case.comm_quant_mode
    close = {"rtol": 0.05, "atol": 0.15} if rough else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(y.cpu().double(), expected, **close)
    call = {"x": x, "ids": ids, "weights": weights, "position": position, "results": results.to(device)}
    call |= {
        "assist": outputs[2],
        "counts": outputs[4],
        "common": common,
        "dispatch": of_dispatch,
        "combine": of_combine,
    }
    check_first_form(case, device, mode, outputs, y, call)
    check_with_norm(case, device, mode, expected, call)


def one_graph(name):
    """A layer of experts that double their tokens, compiled once for every number of tokens."""
    import torchair

    def layer(x, ids, weights):
        position = (name, SIZE, RANK, 12)
        outputs = operators.npu_moe_distribute_dispatch_v2(x, ids, *position)
        return x + operators.npu_moe_distribute_combine_v2(
            outputs[0] * 2, ids, outputs[2], outputs[4], weights, *position, shared_expert_x=x * 3
        )

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    graph = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    for batch in (3, 5, 8):
        own = reference.inputs(reference.Case("", batches=(batch,), dtype=torch.float16), RANK)
        y = graph(own.x.npu(), own.ids.npu(), own.weights.npu())
        wanted = own.x.double() * (4 + 2 * own.weights.double().sum(1, keepdim=True))
        torch.testing.assert_close(y.cpu().double(), wanted, rtol=2e-3, atol=2e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def lose_a_rank(device, name):
    """Rank 1 is killed; the others must get an error, soon."""
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    try:
        run(reference.Case("lost"), device, name)
    except RuntimeError:
        return {"seconds": time.monotonic() - start}
    return {"seconds": None}


def main():
    device, rendezvous, folder, *what = sys.argv[1:]
    if device == "npu":
        torch.npu.set_device(RANK)
    backend = "gloo" if device == "cpu" else "hccl"
    dist.init_process_group(
        backend, init_method=f"file://{rendezvous}", rank=RANK, world_size=SIZE, timeout=timedelta(seconds=TIMEOUT)
    )
    name = group_name(device, dist.new_group(list(range(SIZE))))
    results = {}
    if what == ["lost"]:
        results = lose_a_rank(device, name)
    else:
        in_graphs = what[:1] == ["graph"]
        if in_graphs:
            one_graph(name)
        for case in reference.cases(SIZE)[:: int(what[1]) if in_graphs else 1]:
            if in_graphs and not all(case.batch(rank) for rank in range(SIZE)):
                continue  # torchair makes a constant of an output without elements: no node, and the other ranks wait
            try:
                run(case, device, name, compiled if in_graphs else eager)
                results[case.name] = "ok"
                print(case.name, "ok", flush=True)
            except Exception:
                results[case.name] = traceback.format_exc()
                print(case.name, results[case.name], flush=True)
    Path(folder, f"{RANK}.json").write_text(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)  # a group with a lost rank does not shut down


if __name__ == "__main__":
    main()

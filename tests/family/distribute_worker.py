"""One rank of an expert-parallel group: every case on its device, results as JSON {case: "ok" or the traceback}.

Arguments: the device (cpu, or npu under the simulated device), the file of the rendezvous, the folder for the results, and "lost" if rank
1 is to be killed before it takes part. RANK and WORLD_SIZE are in the environment.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
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


def run(case, device, name):
    own = reference.inputs(case, RANK)

    def moved(tensor):
        return None if tensor is None else tensor.to(device)

    common = {**case.keywords(SIZE), "x_active_mask": moved(own.mask)}
    position = (name, SIZE, RANK, case.experts)
    x, ids, weights = moved(own.x), moved(own.ids), moved(own.weights)
    outputs = operators.npu_moe_distribute_dispatch_v2(
        x,
        ids,
        *position,
        scales=moved(reference.scales(case)),
        expert_scales=weights if case.with_expert_scales else None,
        quant_mode=case.quant_mode,
        expert_token_nums_type=case.expert_token_nums_type,
        **common,
    )
    assert all(output.device.type == device for output in outputs)
    expand_x, dynamic_scales, assist, token_nums, recv_counts, _, expand_scales = (output.cpu() for output in outputs)

    by_expert = reference.received(case, SIZE, RANK)
    rows = [row for by_rank in by_expert for source in by_rank for row in source]
    sizes = [sum(map(len, by_rank)) for by_rank in by_expert]
    expected = torch.tensor(sizes)
    assert torch.equal(token_nums, expected if case.expert_token_nums_type else expected.cumsum(0)), token_nums
    counts = torch.tensor([len(source) for by_rank in by_expert for source in by_rank])
    assert torch.equal(recv_counts[: len(counts)], counts.cumsum(0).int())
    assert assist[: 3 * len(rows)].view(-1, 3).tolist() == [list(row) for row in rows]
    everyone = [reference.inputs(case, rank) for rank in range(SIZE)]
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
                expert for expert, size in zip(reference.local_experts(case, SIZE, RANK), sizes) for _ in range(size)
            ]
            values = values * reference.scales(case)[of_row]
        assert_quantized(expand_x[: len(rows)].tolist(), dynamic_scales[: len(rows)].tolist(), values.tolist())
        results = (expand_x.float() * dynamic_scales.unsqueeze(1)).to(case.dtype)

    matrices, start = reference.expert_matrices(case), 0
    results = results.clone()
    for expert, size in zip(reference.local_experts(case, SIZE, RANK), sizes):
        results[start : start + size] = (results[start : start + size].float() @ matrices[expert]).to(case.dtype)
        start += size
    beside = None if case.shared_ranks else torch.ones(own.x.shape, dtype=case.dtype)
    y = operators.npu_moe_distribute_combine_v2(
        results.to(device), ids, outputs[2], outputs[4], weights, *position, shared_expert_x=moved(beside), **common
    )
    assert y.device.type == device and y.dtype == case.dtype
    wide = matrices.double()
    factors = reference.scales(case)

    def of_expert(token, expert):
        token = token.double() * (1 if factors is None else factors[expert].double())
        return token @ wide[expert]

    expected = reference.dense(case, RANK, of_expert) + (0 if beside is None else 1)
    close = {"rtol": 0.05, "atol": 0.15} if case.quant_mode else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(y.cpu().double(), expected, **close)


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
        for case in reference.cases(SIZE):
            try:
                run(case, device, name)
                results[case.name] = "ok"
            except Exception:
                results[case.name] = traceback.format_exc()
    Path(folder, f"{RANK}.json").write_text(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)  # a group with a lost rank does not shut down


if __name__ == "__main__":
    main()

"""What an operator hands to the other ranks of a group and takes from them, in bytes of the tensors concerned.

Payload, not what a link carries: how a collective is cut into messages between ranks is HCCL's choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from moe_graph.operators.communication import process_group
from moe_graph.planning import flops, traffic

_NAMESPACES = ("_c10d_functional", "npu_define", "c10d")
_NO_COMMUNICATION = frozenset("wait_tensor _wrap_tensor_autograd check_for_nan barrier monitored_barrier_".split())
_RESULTS = frozenset("out outputs output output_tensor output_tensors output_lists tensor_list out_tensor".split())
_GROUPS = ("hcom", "group_ep", "group_name", "group", "tag", "pg_tag")


@dataclass(frozen=True)
class Message:
    """One call of a collective by this rank.

    Attributes:
        operator: its name: "all_reduce", "npu_moe_distribute_dispatch_v2"
        ranks: the ranks of the group
        given: bytes that this rank hands to the collective
        received: bytes that it has from it; None where the values decide, as in a dispatch of tokens
    """

    operator: str
    ranks: tuple[int, ...]
    given: int
    received: int | None


@dataclass(frozen=True)
class Routed:
    """One routing of this rank's tokens to experts.

    Attributes:
        tokens, top_k, experts, ranks: how many tokens, experts that a token goes to, experts of all ranks, and ranks
        row: bytes of a token as it is sent
    """

    tokens: int
    top_k: int
    experts: int
    ranks: int
    row: int


def routed(operator: torch._ops.OpOverload, args: Any, kwargs: Any, result: Any) -> tuple[Routed, ...]:
    """The routing that a call is: a dispatch, or the copying of tokens by expert before an AlltoAll."""
    name = operator._schema.name.partition("::")[2]
    dispatch = name.startswith("npu_moe_distribute_dispatch")
    if not dispatch and name not in ("npu_moe_init_routing_v2", "npu_moe_init_routing_v3"):
        return ()
    given = flops.named(operator, args, kwargs)
    copies = traffic.tensors(result)[0]
    tokens, top_k = map(int, given["expert_ids" if dispatch else "expert_idx"].shape)
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    ranks, experts = (given["ep_world_size"], given["moe_expert_num"]) if dispatch else (world, given["expert_num"])
    return (Routed(tokens, top_k, experts, ranks, int(copies.shape[-1]) * copies.element_size()),)


def messages(operator: torch._ops.OpOverload, args: Any, kwargs: Any, result: Any) -> tuple[Message, ...]:
    """What one call communicates; nothing for operators that compute alone."""
    space, _, name = operator._schema.name.partition("::")
    if name in _NO_COMMUNICATION or not (space in _NAMESPACES or (space == "npu" and _is_collective(operator))):
        return ()
    given = flops.named(operator, args, kwargs)
    ranks = _ranks(given)
    sizes = (_distributed if space == "npu" else _collective)(name, given, result)
    return (Message(name.rstrip("_"), ranks, *sizes),)


def _is_collective(operator: torch._ops.OpOverload) -> bool:
    names = [argument.name for argument in operator._schema.arguments]
    return "hcom" in names or "group_ep" in names


def _ranks(given: Mapping[str, Any]) -> tuple[int, ...]:
    listed = given.get("ranks", given.get("rank_list"))
    if listed is not None:
        return tuple(listed)
    group = given.get("process_group")
    if group is None:
        group = process_group.named(next(given[name] for name in _GROUPS if given.get(name)))
    return tuple(dist.get_process_group_ranks(group))


def _collective(name: str, given: Mapping[str, Any], result: Any) -> tuple[int, int]:
    handed = traffic.tensors([value for argument, value in given.items() if argument not in _RESULTS])
    return traffic.total(handed), traffic.total(traffic.tensors(result))


def _distributed(name: str, given: Mapping[str, Any], result: Any) -> tuple[int, int | None]:
    """torch_npu's own: tokens to the experts of all ranks and back, and products fused with a collective."""
    results = traffic.tensors(result)
    if "dispatch" in name:
        copies, row = given["expert_ids"].numel(), given["x"].shape[-1] * results[0].element_size()
        return copies * row, None
    if "combine" in name:
        copies, rows = given["expert_ids"].numel(), given["expand_x"]
        return copies * rows.shape[-1] * rows.element_size(), None
    first, made = traffic.size(next(iter(given.values()))), traffic.size(results[0])
    size = given.get("world_size") or 1
    if "all_gather" in name:
        return first, first * size
    if "reduce_scatter" in name:
        return made * size, made
    if "gmm_alltoallv" in name:
        row = given["gmm_weight"].shape[-1] * results[0].element_size()
        return sum(given["send_counts"]) * row, sum(given["recv_counts"]) * row
    if "alltoallv" in name:
        row = traffic.size(given["gmm_x"]) // max(len(given["gmm_x"]), 1)
        return sum(given["send_counts"]) * row, sum(given["recv_counts"]) * row
    return made, made  # all_reduce, and AlltoAll with a product


def by_group(sent: Iterable[Message]) -> dict[tuple[int, ...], dict[str, tuple[int, int, int | None]]]:
    """Group -> operator -> (calls, bytes given, bytes received)."""
    found: dict[tuple[int, ...], dict[str, tuple[int, int, int | None]]] = {}
    for message in sent:
        table = found.setdefault(message.ranks, {})
        calls, given, received = table.get(message.operator, (0, 0, 0))
        both = None if received is None or message.received is None else received + message.received
        table[message.operator] = (calls + 1, given + message.given, both)
    return found

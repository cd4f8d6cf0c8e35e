"""npu_moe_re_routing in graph mode, at the sizes of the operator's document, with the graph dumped.

On an NPU:  python examples/graph_mode.py
Anywhere:   python -m moe_graph run examples/graph_mode.py
"""

from pathlib import Path

import torch
import torch_npu
import torchair as tng
from torchair.configs.compiler_config import CompilerConfig

import moe_graph

TOKENS, HIDDEN, RANKS, EXPERTS = 16384, 7168, 16, 16
DUMP = Path("graph_dump")


class Model(torch.nn.Module):
    def forward(self, tokens, expert_token_num_per_rank, per_token_scales):
        return torch_npu.npu_moe_re_routing(
            tokens,
            expert_token_num_per_rank,
            per_token_scales=per_token_scales,
            expert_token_num_type=1,
            idx_type=0,
        )


def main():
    torch.manual_seed(0)
    tokens = torch.randint(-10, 20, (TOKENS, HIDDEN), dtype=torch.int8)
    chunk = torch.randint(0, RANKS * EXPERTS, (TOKENS,))
    expert_token_num_per_rank = torch.bincount(chunk, minlength=RANKS * EXPERTS).view(RANKS, EXPERTS).to(torch.int32)
    per_token_scales = torch.randn(TOKENS)

    DUMP.mkdir(exist_ok=True)
    for old in DUMP.glob("*.pbtxt"):
        old.unlink()
    config = CompilerConfig()
    config.experimental_config.keep_inference_input_mutations = True
    config.debug.graph_dump.type = "pbtxt"
    config.debug.graph_dump.path = str(DUMP)
    npu_backend = tng.get_npu_backend(compiler_config=config)
    model = torch.compile(Model().npu(), backend=npu_backend, dynamic=False)

    outputs = model(tokens.npu(), expert_token_num_per_rank.npu(), per_token_scales.npu())
    print(f"graph mode on {outputs[0].device}: {', '.join(f'{tuple(x.shape)} {x.dtype}' for x in outputs)}")

    (dump,) = DUMP.glob("*optimized*.pbtxt")
    nodes = dump.read_text().count('op: "MoeReRouting"')
    print(f"graph dump {dump}: {nodes} MoeReRouting node")
    if nodes != 1:
        raise SystemExit("expected exactly one MoeReRouting node")

    # The same call on CPU tensors runs moe_graph's eager fallback.
    expected = moe_graph.moe_re_routing(tokens, expert_token_num_per_rank, per_token_scales=per_token_scales)
    for name, output, reference in zip(expected._fields, outputs, expected):
        if not torch.equal(output.cpu(), reference):
            raise SystemExit(f"{name} differs from the eager fallback")
        print(f"  {name} equals the eager fallback")


if __name__ == "__main__":
    main()

"""The model whose dumps lie beside this file. To write them again, here:

for kind in txt pbtxt py; do python -m moe_graph run model.py $kind; done
"""

import re
import sys
from pathlib import Path

import torch
import torch_npu
import torchair


class Model(torch.nn.Module):
    def forward(self, x, weight, counts, scales):
        tokens = (x @ weight.t()).to(torch.float16) * 2
        routed = torch_npu.npu_moe_re_routing(
            tokens,
            counts,
            per_token_scales=scales,
            expert_token_num_type=1,
            idx_type=0,
        )
        halves = routed[0].view(-1, 2, 8).float()
        return halves + 1, routed[1], routed[3].cumsum(0)


def main(kind):
    config = torchair.CompilerConfig()
    config.debug.graph_dump.type = kind
    config.debug.graph_dump.path = "."
    backend = torchair.get_npu_backend(compiler_config=config)
    x, weight = torch.randn(12, 4), torch.randn(16, 4)
    counts = torch.tensor([[2, 1, 3], [4, 0, 2]], dtype=torch.int32)
    inputs = [x.npu(), weight.npu(), counts.npu(), torch.rand(12).npu()]
    for value in (inputs[0], inputs[3]):
        torch._dynamo.mark_dynamic(value, 0)
    torch.compile(Model(), backend=backend, dynamic=None)(*inputs)
    for dump in Path(".").glob(f"dynamo_*_rank_*.{kind}"):
        dump.rename(re.sub(r"_rank_.*\.", ".", dump.name))


if __name__ == "__main__":
    main(sys.argv[1])

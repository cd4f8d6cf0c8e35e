"""Runs the offline entry point of a checkout of hicann/cann-recipes-infer, unchanged, on a checkpoint that lies in a folder.

`RECIPES=checkout python public_model.py MODEL MODE FOLDER TOKENS [watch | perturb]`, under `python -m moe_graph run` and, for several
ranks, torchrun. Every rank writes FOLDER/rank_R.pt: for each of its requests the prompt's tokens and the generated ones, and the logits of
each step. What the repository reads data sets with, and its own compiled package, are empty modules where they are not installed.

`watch`: every graph is compared with eager mode, node by node, within a rounding of bfloat16; FOLDER/watch_R.json has the counts.
`perturb`: npu_add_rms_norm gives a twentieth more, in eager mode and in graphs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import types
from collections import Counter
from pathlib import Path

import torch
import torch_npu  # noqa: F401
import yaml

from configurations import MODELS, yaml_changes

ROUNDING = 2**-7  # from one number of bfloat16 to the next, at most, as a part of it


def perturb() -> None:
    """npu_add_rms_norm gives a twentieth more, in eager mode and in graphs."""
    import dataclasses

    from moe_graph import operators
    from moe_graph.engine import registry

    def wrong(function):
        def call(*args, **kwargs):
            first, *rest = function(*args, **kwargs)
            return (first * 1.05, *rest)

        return call

    served = operators.every()
    right = served["npu::npu_add_rms_norm"]
    served["npu::npu_add_rms_norm"] = dataclasses.replace(right, reference=wrong(right.reference))
    kernel = registry._kernels["AddRmsNorm"]
    registry._kernels["AddRmsNorm"] = dataclasses.replace(kernel, function=wrong(kernel.function))


@contextlib.contextmanager
def watching(path: Path):
    """Compare every graph that is compiled inside; write what was found."""
    import moe_graph

    with moe_graph.compare_graphs(rtol=ROUNDING) as report:
        yield
    counts = Counter(tensor.status for tensor in report.tensors)
    unseen = Counter(f"{tensor.target}: {tensor.reason}" for tensor in report.with_status("no reference"))
    first = None if report.ok else str(report.first)
    path.write_text(json.dumps(dict(counts=counts, no_reference=unseen, first=first), indent=1))


def main(name: str, mode: str, folder: Path, tokens: int, extra: str = "") -> None:
    sys.path.insert(0, os.environ["RECIPES"])
    for missing in ("datasets", "custom_ops"):
        if importlib.util.find_spec(missing) is None:
            sys.modules[missing] = types.ModuleType(missing)
            sys.modules[missing].load_dataset = None
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    sections = dict(
        model_config=dict(
            model_name=MODELS[name].executor,
            model_path=str(folder),
            exe_mode=mode,
            with_ckpt=True,
            output_path=str(folder),
        ),
        data_config=dict(dataset="default", dataset_path=str(folder), input_truncated_len=32),
        parallel_config=dict(world_size=world, attn_tp_size=1, moe_tp_size=1, embed_tp_size=1, lmhead_tp_size=1),
        scheduler_config=dict(max_new_tokens=tokens, batch_size=2 * world),
    )
    for section, changes in yaml_changes(MODELS[name], world, mode).items():
        sections[section].update(changes)
    if sections["parallel_config"]["attn_tp_size"] > 1:
        sections["scheduler_config"]["batch_size"] = 2
    path = folder / f"run_{rank}.yaml"
    path.write_text(yaml.safe_dump(sections))
    os.chdir(folder)

    from executor.core.model_worker import model_worker
    from executor.offline import infer, offline_inference

    inference = model_worker.ModelWorker.inference
    valid_output = offline_inference.OfflineInference.get_valid_output
    steps: list[torch.Tensor] = []
    requests: list[tuple[list[int], list[int]]] = []

    def recorded(self, model_inputs, is_prefill, *args, **kwargs):
        result = inference(self, model_inputs, is_prefill, *args, **kwargs)
        if is_prefill:  # the last one is the program's own; what came before was its warm-up
            steps.clear()
        first = result[0][0] if isinstance(result[0], (tuple, list)) else result[0]
        steps.append(first.detach().float().cpu().flatten(0, -2))
        return result

    def seen(self, request):
        requests.append((request.input_ids.flatten().tolist(), [int(token) for token in request.output_id_list]))
        return valid_output(self, request)

    model_worker.ModelWorker.inference = recorded
    offline_inference.OfflineInference.get_valid_output = seen
    sys.argv = ["infer.py", "--yaml_file_path", str(path)]
    if extra == "perturb":
        perturb()
    with watching(folder / f"watch_{rank}.json") if extra == "watch" else contextlib.nullcontext():
        infer.main()
    torch.save((requests, steps), folder / f"rank_{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).resolve(), int(sys.argv[4]), *sys.argv[5:])

"""Runs the offline entry point of a checkout of hicann/cann-recipes-infer, unchanged, on a checkpoint that lies in a folder.

`RECIPES=checkout python public_model.py MODEL MODE FOLDER TOKENS`, under `python -m moe_graph run` and, for several ranks, torchrun. Every
rank writes FOLDER/rank_R.pt: for each of its requests the prompt's tokens and the generated ones, and the logits of each step. What the
repository reads data sets with, and its own compiled package, are empty modules where they are not installed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path

import torch
import torch_npu  # noqa: F401
import yaml

from configurations import MODELS, yaml_changes


def main(name: str, mode: str, folder: Path, tokens: int) -> None:
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
    for section, changes in yaml_changes(MODELS[name], world).items():
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
    infer.main()
    torch.save((requests, steps), folder / f"rank_{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).resolve(), int(sys.argv[4]))

"""Tiny random checkpoints as transformers writes them, with a tokenizer of bytes, and transformers' own logits of a sequence."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from configurations import Model

PROMPTS = ["hello world", "hello earth", "brown foxes", "other words"]


def tokenizer(folder: Path, size: int) -> None:
    """A tokenizer with a token for each byte and a chat template, written to the folder."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet())[: size - len(vocabulary)]:
        vocabulary[character] = len(vocabulary)
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    names = dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)
    wrapped.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    wrapped.save_pretrained(folder)


def write(model: Model, folder: Path) -> torch.nn.Module:
    """A random checkpoint of the model in the folder, and the model itself in float32: its weights are bfloat16 numbers."""
    configuration = getattr(transformers, model.architecture[0])(**model.sizes)
    configuration._attn_implementation = "eager"
    torch.manual_seed(0)
    made = getattr(transformers, model.architecture[1])(configuration).to(torch.bfloat16).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.6 / parameter.shape[-1] ** 0.5 if "embed" not in name else 1.0)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.1)
    made.save_pretrained(folder)
    _with_the_older_names(folder / "config.json")
    tokenizer(folder, model.sizes["vocab_size"])
    (folder / "default_prompt.json").write_text(json.dumps({"text": PROMPTS}))
    return made.float()


def _with_the_older_names(path: Path) -> None:
    """rope_theta and rope_scaling beside rope_parameters, as the published checkpoints have them: some of the public code reads these."""
    written = json.loads(path.read_text())
    rope = dict(written["rope_parameters"])
    written["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] != "default":
        written["rope_scaling"] = dict(rope, type=rope["rope_type"])
    path.write_text(json.dumps(written, indent=1))


@torch.no_grad()
def logits(made: torch.nn.Module, tokens: list[int], last: int) -> torch.Tensor:
    """transformers' logits for the `last` next tokens of a sequence: [last, vocabulary]"""
    return made(torch.tensor([tokens])).logits[0, -last:]

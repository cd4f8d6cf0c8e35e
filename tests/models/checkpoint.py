"""Tiny random checkpoints as transformers writes them, with a tokenizer of bytes, and transformers' own logits of a sequence."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from configurations import Model

# No choice of an expert hangs on bfloat16's rounding. With "green grass" the margin of one in deepseek_r1 is 0.00001; with "north winds"
# transformers' own longcat_flash in bfloat16 is off by 0.019 of the largest logit.
PROMPTS = [
    "hello world",
    "hello earth",
    "brown foxes",
    "other words",
    "small ducks",
    "green trees",
    "lazy summer",
    "quick notes",
]


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
    torch.manual_seed(model.seed)
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
    if model.further:
        _add_weights(model, folder / "model.safetensors")
    _with_the_older_names(folder / "config.json")
    tokenizer(folder, model.sizes["vocab_size"])
    (folder / "default_prompt.json").write_text(json.dumps({"text": PROMPTS}))
    return made.float()


def _add_weights(model: Model, path: Path) -> None:
    """The weights that transformers' model has not, random, added to those of each layer in the file."""
    tensors = load_file(path)
    for layer in range(model.sizes["num_hidden_layers"]):
        for name, shape in model.further.items():
            random = torch.randn(shape) * 0.6 / shape[-1] ** 0.5 if len(shape) > 1 else torch.rand(shape) + 0.5
            tensors[f"model.layers.{layer}.{name}"] = random.to(torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})


def _with_the_older_names(path: Path) -> None:
    """rope_theta and rope_scaling beside rope_parameters, and num_layers in place of num_hidden_layers where there are both, as the
    published checkpoints have them: some of the public code reads these."""
    written = json.loads(path.read_text())
    rope = dict(written["rope_parameters"])
    written["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] != "default":
        written["rope_parameters"]["type"] = rope["rope_type"]
        written["rope_scaling"] = dict(rope, type=rope["rope_type"])
    if "num_layers" in written:
        written.pop("num_hidden_layers", None)
    path.write_text(json.dumps(written, indent=1))


@torch.no_grad()
def logits(made: torch.nn.Module, tokens: list[int], last: int) -> torch.Tensor:
    """transformers' logits for the `last` next tokens of a sequence: [last, vocabulary]"""
    return made(torch.tensor([tokens])).logits[0, -last:]

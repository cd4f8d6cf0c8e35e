"""Whole programs on the simulated device, against the same program on CPU tensors."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn

STEPS, BATCH, LENGTH, WORDS, WIDTH = 50, 8, 12, 17, 32


class Model(nn.Module):
    """A small language model of torch's own layers: attention by scaled_dot_product_attention, layer norm, gelu."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.1)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words):
        mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1], device=words.device)
        x = self.embedding(words) + self.position[: words.shape[1]]
        return self.head(self.layers(x, mask=mask, is_causal=True))


def losses(model, device, autocast=False):
    """The losses of 50 steps of AdamW on the same batches, and the model on the CPU."""
    model = copy.deepcopy(model).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(STEPS):
        start = torch.randint(0, WORDS, (BATCH, 1), generator=generator)
        words = ((start + torch.arange(LENGTH + 1) * 3) % WORDS).to(device)  # a rule that can be learnt
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            logits = model(words[:, :-1])
            loss = nn.functional.cross_entropy(logits.reshape(-1, WORDS).float(), words[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())
    return found, model.cpu()


def test_a_transformer_trains_as_on_the_cpu():
    torch.manual_seed(0)
    model = Model()
    expected, on_cpu = losses(model, "cpu")
    found, on_npu = losses(model, "npu")
    assert found == pytest.approx(expected, rel=1e-3)
    assert expected[-1] < 0.5 * expected[0]  # it learnt
    for (name, ours), (_, theirs) in zip(on_npu.named_parameters(), on_cpu.named_parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2, msg=lambda text, name=name: f"{name}: {text}")


def test_it_trains_under_autocast():
    torch.manual_seed(0)
    found, _ = losses(Model(), "npu", autocast=True)
    assert found[-1] < 0.5 * found[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_on_the_cpu_is_left_alone():
    x = torch.randn(4, 5)
    torch.testing.assert_close(torch.compile(lambda x: (x * 2).relu().sum(-1))(x), (x * 2).relu().sum(-1))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe"])
def test_a_hugging_face_moe_model_generates_the_same_tokens(family):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: models)")
    sizes = dict(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    if family == "Mixtral":
        sizes["num_local_experts"] = 4
    else:
        sizes.update(num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=24)
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    prompt = torch.randint(0, 64, (2, 5))
    how = dict(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
    with torch.no_grad():
        expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
        on_npu = model.to("npu")
        found = on_npu.generate(prompt.npu(), attention_mask=torch.ones_like(prompt).npu(), **how)
        logits = on_npu(expected.npu()).logits.cpu()
    assert found.device.type == "npu" and found.shape == (2, 17)
    assert found.tolist() == expected.tolist()
    torch.testing.assert_close(logits, model.to("cpu")(expected).logits.detach())

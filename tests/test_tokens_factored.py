"""Merged tokens against a reference that is written as a loop, and what must hold whatever the weights are."""

import math

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTForImageClassification

from hf_vitcompress.planning.building import merged_model
from support.models import seeded, tiny_config

FOUR = {"num_hidden_layers": 4}


@pytest.fixture(scope="module")
def vit() -> PreTrainedModel:
    return seeded(ViTForImageClassification, tiny_config(**FOUR)).double()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tokens_of(*counts: int) -> dict[str, int]:
    return {f"vit.layers.{block}": count for block, count in enumerate(counts)}


def slow_merge(hidden: list[Tensor], members: list[list[int]], count: int) -> tuple[list[Tensor], list[list[int]]]:
    """One image, one class token: the closest pairs of an even and an odd patch, and the mean of all their members."""
    patches = list(range(1, len(hidden)))
    even, odd = patches[::2], patches[1::2]

    def cosine(a: int, b: int) -> float:
        return float(hidden[a] @ hidden[b] / math.sqrt(float(hidden[a] @ hidden[a]) * float(hidden[b] @ hidden[b])))

    best = {a: max(odd, key=lambda b: cosine(a, b)) for a in even}
    leaving = sorted(even, key=lambda a: -cosine(a, best[a]))[:count]
    result, own = [], []
    for token in range(len(hidden)):
        if token in leaving:
            continue
        group = [token, *(a for a in leaving if best[a] == token)]
        weight = sum(len(members[a]) for a in group)
        result.append(sum(hidden[a] * len(members[a]) for a in group) / weight)
        own.append([i for a in group for i in members[a]])
    return result, own


def slow_logits(model: PreTrainedModel, image: Tensor, counts: list[int]) -> Tensor:
    """The dense model's weights, one image, one head and one query at a time."""
    vit, config = model.vit, model.config
    hidden = list(vit.embeddings(image[None])[0])
    members = [[i] for i in range(len(hidden))]
    for layer, count in zip(vit.layers, [*counts, 0], strict=True):
        read = [layer.layernorm_before(x) for x in hidden]
        q, k, v = (
            [f(x) for x in read] for f in (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj)
        )
        size, attended = config.hidden_size // config.num_attention_heads, []
        for query in q:
            heads = []
            for head in range(config.num_attention_heads):
                part = slice(head * size, (head + 1) * size)
                weights = [
                    len(m) * math.exp(float(query[part] @ key[part]) / math.sqrt(size))
                    for m, key in zip(members, k, strict=True)
                ]
                heads.append(sum(w * value[part] for w, value in zip(weights, v, strict=True)) / sum(weights))
            attended.append(layer.attention.o_proj(torch.cat(heads)))
        hidden = [x + a for x, a in zip(hidden, attended, strict=True)]
        hidden = [x + layer.mlp(layer.layernorm_after(x)) for x in hidden]
        hidden, members = slow_merge(hidden, members, count)
    return model.classifier(vit.layernorm(hidden[0]))


@torch.no_grad()
def test_it_is_what_a_loop_over_images_heads_queries_and_pairs_computes(vit: PreTrainedModel, pixels: Tensor) -> None:
    counts = [3, 0, 2]
    fast = merged_model(vit, tokens_of(*counts))(pixels).logits
    slow = torch.stack([slow_logits(vit, image, counts) for image in pixels])
    assert (fast - vit(pixels).logits).abs().max() > 1e-3
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)

"""Merged tokens against a reference that is written as a loop, and what must hold whatever the weights are."""

import copy
import json
import math
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel, ViTForImageClassification

from hf_vitcompress.configuration_factored import FactoredViTConfig
from hf_vitcompress.deploy.export_formats import UNMASKED
from hf_vitcompress.modeling_factored import FactoredViTForImageClassification
from hf_vitcompress.planning.building import merged_model
from hf_vitcompress.tokens_factored import ORIGIN, FactoredViTLayer, merged, proportional_mask, sizes
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


@torch.no_grad()
def test_merging_no_token_changes_nothing(vit: PreTrainedModel, pixels: Tensor) -> None:
    same = merged_model(vit, tokens_of(0, 0))
    assert torch.equal(same(pixels).logits, vit(pixels).logits)
    assert {type(block) for block in same.vit.layers} == {type(block) for block in vit.vit.layers}


@torch.no_grad()
def test_equal_tokens_lose_nothing(vit: PreTrainedModel) -> None:
    """A class token and patches of only two kinds, which no position tells apart."""
    model = copy.deepcopy(vit)
    model.vit.embeddings.position_embeddings.zero_()
    kinds = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    which = torch.tensor([0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1])
    image = kinds[which].reshape(4, 4, 3, 4, 4).permute(2, 0, 3, 1, 4).reshape(1, 3, 16, 16)
    small = merged_model(model, tokens_of(8, 2))
    ours, theirs = (each(image, output_hidden_states=True) for each in (small, model))
    assert ours.hidden_states[2].shape[1] == 17 - 8 - 2
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.hidden_states[-1], theirs.hidden_states[-1], rtol=1e-10, atol=1e-10)


def test_tokens_keep_their_mass_and_their_order() -> None:
    hidden = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, origin = hidden, torch.arange(20).expand(2, -1)
    for count in (4, 3, 2):
        before = hidden
        hidden, origin = merged(hidden, origin, count, prefix=2)
        weight = sizes(origin, hidden.shape[1]).double()
        assert hidden.shape[1] == before.shape[1] - count
        assert (weight.sum(1) == 20).all()
        assert (weight >= 1).all()
        assert torch.equal(origin[:, :2], torch.tensor([[0, 1], [0, 1]]))
        assert torch.equal(hidden[:, :2], whole[:, :2])
        # Each token is the mean of those that it stands for, and what was not merged is in its old order.
        means = torch.zeros_like(hidden).scatter_add(1, origin[..., None].expand(-1, -1, 6), whole) / weight[..., None]
        torch.testing.assert_close(hidden, means)
    for own, size in zip(origin, sizes(origin, hidden.shape[1]), strict=True):
        alone = own[size[own] == 1]
        assert torch.equal(alone, alone.sort().values)


def test_images_are_merged_by_themselves(vit: PreTrainedModel, pixels: Tensor) -> None:
    small = merged_model(vit, tokens_of(3, 2))
    with torch.no_grad():
        order = torch.tensor([2, 0, 1])
        torch.testing.assert_close(small(pixels[order]).logits, small(pixels).logits[order], rtol=1e-12, atol=1e-12)
        alone = torch.cat([small(image[None]).logits for image in pixels])
        torch.testing.assert_close(alone, small(pixels).logits, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_the_last_block_gives_every_token_its_place_again(vit: PreTrainedModel, pixels: Tensor) -> None:
    out = merged_model(vit, tokens_of(0, 5, 3))(pixels, output_hidden_states=True)
    assert [states.shape[1] for states in out.hidden_states] == [17, 17, 12, 9, 17]
    origin = getattr(out.hidden_states[3], ORIGIN)
    for states, own in zip(out.hidden_states[-1], origin, strict=True):
        assert len(states.unique(dim=0)) == len(own.unique()) == 9
        assert all(torch.equal(states[i], states[int((own == own[i]).nonzero()[0])]) for i in range(17))


@torch.no_grad()
@pytest.mark.parametrize(("side", "left"), [(24, 31), (8, 2), (4, 2)])
def test_images_of_another_size_merge_what_they_can(vit: PreTrainedModel, side: int, left: int) -> None:
    small = merged_model(vit, tokens_of(3, 1, 2))
    image = torch.randn(1, 3, side, side, dtype=torch.float64)
    out = small(image, interpolate_pos_encoding=True, output_hidden_states=True)
    assert out.hidden_states[3].shape[1] == left
    assert out.hidden_states[4].shape[1] == (side // 4) ** 2 + 1


@torch.no_grad()
def test_a_mask_that_is_given_counts_the_tokens_that_it_shows(vit: PreTrainedModel, pixels: Tensor) -> None:
    small = merged_model(vit, tokens_of(3, 2))
    torch.testing.assert_close(small(pixels, attention_mask=torch.ones(3, 17)).logits, small(pixels).logits)
    hidden, origin = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2, 1, 1]])
    mask = torch.tensor([True, True, False, False, True])[None, None, None]
    least = torch.finfo(torch.float32).min
    for given in (mask, torch.where(mask, 0.0, least).expand(1, 1, 3, 5)):
        weights = proportional_mask(hidden, origin, given)
        torch.testing.assert_close(weights, torch.tensor([[[[0.0, math.log(2), least]]]]))
    with pytest.raises(ValueError, match="for all heads and queries"):
        proportional_mask(hidden, origin, torch.tril(torch.ones(1, 1, 5, 5)))


def test_eager_attention_gradients_and_checkpointed_blocks_agree(vit: PreTrainedModel, pixels: Tensor) -> None:
    def gradients(reentrant: bool | None = None) -> list[Tensor]:
        small = copy.deepcopy(merged_model(vit, tokens_of(3, 2))).train()
        if reentrant is not None:
            small.set_attn_implementation("eager")
            for block in small.vit.layers:
                block.gradient_checkpointing = True
                block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=reentrant)
        small(pixels).logits.square().sum().backward()
        return [parameter.grad for parameter in small.parameters() if parameter.grad is not None]

    for ours, theirs in zip(gradients(reentrant=False), gradients(), strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(RuntimeError, match="'use_reentrant': False"):
        gradients(reentrant=True)


@torch.no_grad()
def test_attention_that_makes_no_mask_of_its_own_weighs_tokens_too(vit: PreTrainedModel, pixels: Tensor) -> None:
    """As exported programs have it."""
    small = copy.deepcopy(merged_model(vit, tokens_of(3, 2)))
    expected = small(pixels).logits
    small.set_attn_implementation(UNMASKED)
    assert torch.equal(small(pixels).logits, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(vit: PreTrainedModel, pixels: Tensor, dtype: torch.dtype) -> None:
    small = copy.deepcopy(merged_model(vit, tokens_of(3, 2)))
    with torch.no_grad():
        exact, near = small(pixels).logits, small.to(dtype)(pixels.to(dtype)).logits
    assert near.dtype == dtype
    torch.testing.assert_close(near.double(), exact, rtol=0.05, atol=0.1)


@torch.no_grad()
def test_threads_do_not_mix_their_tokens(vit: PreTrainedModel, pixels: Tensor) -> None:
    small = merged_model(vit, tokens_of(3, 2))
    expected = [small(image[None]).logits for image in pixels]
    with ThreadPoolExecutor(3) as pool:
        found = pool.map(lambda image: torch.no_grad()(small)(image[None]).logits, [*pixels] * 4)
    assert all(torch.equal(*pair) for pair in zip(found, expected * 4, strict=True))


@torch.no_grad()
def test_programs_take_any_number_of_images(pixels: Tensor) -> None:
    small, images = merged_model(seeded(ViTForImageClassification, tiny_config()), tokens_of(3)), pixels.float()
    number = torch.export.Dim("number")
    program = torch.export.export(
        small, (), {"pixel_values": images[:2]}, dynamic_shapes={"pixel_values": {0: number}}
    ).module()
    torch.testing.assert_close(program(pixel_values=images).logits, small(images).logits)


@torch.no_grad()
@pytest.mark.parametrize("layers", [{}, {"vit.layers.1.mlp.fc1": {"rank": 8}}], ids=["tokens alone", "with a rank"])
def test_checkpoints_pickles_and_copies_merge_the_same_tokens(layers: Any, tmp_path: Path) -> None:
    dense = seeded(ViTForImageClassification, tiny_config(**FOUR))
    config = FactoredViTConfig(**{**dense.config.to_dict(), "compression": {"layers": layers, "tokens": tokens_of(3)}})
    small, images = seeded(FactoredViTForImageClassification, config), torch.randn(2, 3, 16, 16)
    small.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    headless = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert loaded.config.compression == {"layers": layers, "tokens": tokens_of(3)}
    assert json.loads((tmp_path / "config.json").read_text())["compression"]["version"] == 2
    for other in (loaded, pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):
        assert type(other.vit.layers[2]) is type(small.vit.layers[2])
        assert torch.equal(other.eval()(images).logits, small(images).logits)
    assert torch.equal(headless.eval()(images).last_hidden_state, small.vit(images).last_hidden_state)
    assert {"FactoredViTLayer", "ViTLayer"} <= loaded._no_split_modules
    assert FactoredViTLayer is type(small.vit.layers[1])


def test_models_without_merged_tokens_keep_the_first_format(tmp_path: Path) -> None:
    dense = seeded(ViTForImageClassification, tiny_config())
    merged_model(dense, {}).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["compression"]["version"] == 1


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ({"vit.layers.3": 1}, "the last block"),
        ({"vit.layers.9": 1}, "does not have"),
        ({"vit.layers.0.mlp": 1}, "'vit.layers.0.mlp', a ViTMLP"),
        ({"vit.layers.0": -1}, "merge -1 tokens"),
        ({"vit.layers.0": 1.5}, "merge 1.5 tokens"),
        ({"vit.layers.0": True}, "merge True tokens"),
        ([1], "is a list; it maps blocks to numbers of tokens"),
    ],
)
def test_configs_that_no_model_can_have_are_refused(tokens: Any, said: str) -> None:
    config = FactoredViTConfig(**{**tiny_config(**FOUR).to_dict(), "compression": {"layers": {}, "tokens": tokens}})
    with pytest.raises(ValueError, match=re.escape(said)):
        FactoredViTForImageClassification(config)


def test_attention_that_cannot_weigh_tokens_is_refused(vit: PreTrainedModel, pixels: Tensor) -> None:
    small = merged_model(vit, tokens_of(1))
    hidden = small.vit.layers[0](small.vit.embeddings(pixels))
    with pytest.raises(RuntimeError, match="do not say which tokens earlier blocks merged"):
        small.vit.layers[1](hidden * 1)
    small.vit.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match='attn_implementation="sdpa"'):
        small.vit.layers[1](hidden)

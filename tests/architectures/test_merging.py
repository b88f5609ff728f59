"""Which models may merge tokens, in which blocks, how many."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel, ViTForImageClassification

from hf_vitcompress.architectures.merging import check_tokens, merging_blocks, patches_of, tokens_left, why_not_merge
from hf_vitcompress.architectures.outputs import outputs_of
from hf_vitcompress.architectures.subject import Reading, Subject
from hf_vitcompress.errors import ConfigError, UnsupportedModelError
from hf_vitcompress.planning.building import merged_model
from hf_vitcompress.tokens_factored import MERGING, MergedTokensMixin, prefix_tokens
from support.models import seeded, tiny_config
from support.zoo import HEADS, Head

REFUSED = {
    "EveryPatch": ("Backbone", "Masked", "PreTraining", "Depth", "Segmentation", "Yolos", "DPT"),
    "distance": ("Beit", "Data2Vec"),
    "windows": ("Swin",),
    "turns queries": ("DINOv3",),
    "padded": ("Siglip2",),
}


@pytest.fixture(scope="module")
def vit() -> PreTrainedModel:
    return seeded(ViTForImageClassification, tiny_config(num_hidden_layers=4))


def reason_for(head: Head) -> str | None:
    """What the refusal of a head speaks of; `None` where its tokens can be merged."""
    found = [words for words, names in REFUSED.items() if any(name in head.name for name in names)]
    return found[0].replace("EveryPatch", "every patch") if found else None


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_every_family_merges_tokens_or_says_why_not(head: Head) -> None:
    """What comes out has the form of the dense model's, and is another answer."""
    model = replace(head, settings={**head.settings}).dense()
    refusal, reason = why_not_merge(model), reason_for(head)
    if reason is not None:
        assert reason in str(refusal)
        assert merging_blocks(model) == []
        with pytest.raises(UnsupportedModelError, match="Leave tokens out of the plan"):
            check_tokens(model, {"any": 1})
        return
    assert refusal is None
    blocks = merging_blocks(model)
    small = merged_model(model, dict.fromkeys(blocks, 2))
    pixels = head.pixels(3)
    for ours, theirs in zip(
        outputs_of(Subject.alone(small), pixels), outputs_of(Subject.alone(model), pixels), strict=True
    ):
        assert ours.values.shape == theirs.values.shape
        assert not torch.equal(ours.values, theirs.values)
    assert all(isinstance(small.get_submodule(name), MergedTokensMixin) for name in blocks)
    assert why_not_merge(small) is None
    assert merging_blocks(small) == blocks


@torch.no_grad()
@pytest.mark.parametrize("head", [head for head in HEADS if reason_for(head) is None], ids=str)
def test_prefix_tokens_are_those_before_the_patches(head: Head) -> None:
    model, seen = head.dense(), []
    block = model.get_submodule(merging_blocks(model)[0])
    handle = block.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[1]))
    outputs_of(Subject.alone(model), head.pixels(1))
    handle.remove()
    patches = patches_of(model, merging_blocks(model)[0])
    assert patches is not None
    assert seen == [patches + (prefix_tokens(block) or 0)]


def test_every_class_in_the_table_exists_and_takes_a_mask() -> None:
    import inspect
    import pkgutil

    for path in MERGING:
        assert list(inspect.signature(pkgutil.resolve_name(path).forward).parameters)[:3] == [
            "self",
            "hidden_states",
            "attention_mask",
        ]


def test_a_model_whose_hidden_states_are_read_between_blocks_is_refused(vit: PreTrainedModel) -> None:
    assert "between its blocks" in str(why_not_merge(vit, Reading((-2,))))
    assert why_not_merge(vit, Reading()) is None


def test_attention_without_a_mask_of_numbers_is_refused(vit: PreTrainedModel) -> None:
    model = seeded(ViTForImageClassification, tiny_config())
    model.config._attn_implementation = "flash_attention_2"
    assert "'sdpa'" in str(why_not_merge(model))


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ({"vit.layers.3": 1}, "not a block of the model that others follow. Did you mean"),
        ({"vit.layer.0": 1}, "Did you mean 'vit.layers.0'"),
        ({"vit.layers.0": -1}, "must be a whole number"),
        ({"vit.layers.0": 2.0}, "must be a whole number"),
        ({"vit.layers.0": True}, "must be a whole number"),
        ({"vit.layers.0": 9}, "where 16 patch tokens are left. A block can merge at most half of them, 8."),
        ({"vit.layers.0": 8, "vit.layers.2": 5}, "where 8 patch tokens are left"),
    ],
)
def test_tokens_that_the_model_cannot_merge_are_refused(vit: PreTrainedModel, tokens: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_tokens(vit, tokens)


def test_what_can_be_merged_is_taken(vit: PreTrainedModel) -> None:
    check_tokens(vit, {"vit.layers.0": 8, "vit.layers.1": 0, "vit.layers.2": 4})
    assert tokens_left(16, [8, 0, 4]) == 4
    assert tokens_left(5, [2, 2, 2]) == 1

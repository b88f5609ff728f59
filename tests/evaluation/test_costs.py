"""Costs against counts made by hand."""

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from hf_vitcompress.architectures.inputs import example_inputs
from hf_vitcompress.configuration_factored import factored_config_class
from hf_vitcompress.evaluation.costs import count_costs, count_macs, macs_of, tensor_bytes
from hf_vitcompress.modeling_factored import factored_model_class
from hf_vitcompress.runtime.weights import disk_bytes
from support.models import TINY, seeded, tiny_config
from support.zoo import HEADS

TOKENS = 16 + 1
PATCHES = 16 * 32 * (3 * 4 * 4)
RANKS = {"layers.0.attention.q_proj": 4, "layers.0.mlp.fc1": 8, "layers.1.mlp.fc2": 6}
SAVED = (32 * 32 - 4 * 64) + (96 * 32 - 8 * 128) + (32 * 96 - 6 * 128)


def blocks(tokens):
    linear = tokens * (4 * 32 * 32 + 2 * 32 * 96)
    attention = 2 * tokens * tokens * 32
    return 2 * (linear + attention)


def factored(dense=ViTForImageClassification, **changes):
    layers = {name: {"rank": rank} for name, rank in RANKS.items()}
    config = factored_config_class("vit")(**{**TINY, **changes}, compression={"layers": layers})
    return seeded(factored_model_class(dense), config)


def test_macs_of_a_dense_classifier(vit):
    assert count_macs(vit) == PATCHES + blocks(TOKENS) + 32 * 5


def test_macs_of_a_factored_classifier():
    assert count_macs(factored()) == PATCHES + blocks(TOKENS) + 32 * 5 - TOKENS * SAVED


def test_macs_of_a_distilled_model_count_its_second_token_and_head():
    model = seeded(DeiTForImageClassificationWithTeacher, DeiTConfig(**TINY))
    assert count_macs(model) == PATCHES + blocks(TOKENS + 1) + 2 * 32 * 5


def test_macs_of_a_masked_model_count_its_decoder():
    model = seeded(ViTForMaskedImageModeling, tiny_config(encoder_stride=4))
    assert count_macs(model) == PATCHES + blocks(TOKENS) + 16 * 32 * (3 * 4 * 4)


@pytest.mark.parametrize(("dense", "tokens"), [(ViTModel, TOKENS), (DeiTModel, TOKENS + 1)])
@pytest.mark.parametrize("pooler", [True, False])
def test_macs_of_a_backbone_count_the_pooler_it_has(dense, tokens, pooler):
    model = dense(dense.config_class(**TINY), add_pooling_layer=pooler)
    assert count_macs(model) == PATCHES + blocks(tokens) + (32 * 32 if pooler else 0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_macs_depend_on_neither_attention_implementation_nor_dtype(attention, dtype):
    model = ViTForImageClassification._from_config(tiny_config(), attn_implementation=attention, dtype=dtype)
    assert count_macs(model) == PATCHES + blocks(TOKENS) + 32 * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counting_leaves_the_model_as_it_was(dtype):
    model = ViTForImageClassification._from_config(tiny_config(), attn_implementation="sdpa", dtype=dtype).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_costs(model)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert model.config.dtype == dtype
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float16, 2)])
def test_costs_hold_parameters_macs_and_bytes(dtype, size):
    embeddings = 32 + TOKENS * 32 + (32 * 3 * 4 * 4 + 32)
    block = 4 * (32 * 32 + 32) + (96 * 32 + 96) + (32 * 96 + 32) + 4 * 32
    parameters = embeddings + 2 * block + 2 * 32 + (5 * 32 + 5)
    dense = count_costs(seeded(ViTForImageClassification, tiny_config()).to(dtype))
    assert (dense.parameters, dense.bytes) == (parameters, parameters * size)
    small = count_costs(factored().to(dtype))
    assert (small.parameters, small.bytes) == (parameters - SAVED, (parameters - SAVED) * size)
    assert dense.macs - small.macs == TOKENS * SAVED


def test_the_bytes_of_a_tensor_made_of_others_are_theirs():
    assert tensor_bytes(torch.empty(3, 5, dtype=torch.float16)) == 30
    assert tensor_bytes(torch.nn.Parameter(TwoTensor(torch.empty(3, 5), torch.empty(3, 5)))) == 2 * 60


def test_macs_of_images_that_are_not_square():
    model = ViTModel(tiny_config(image_size=[16, 32], num_channels=1))
    assert count_macs(model) == 32 * 32 * 4 * 4 + blocks(4 * 8 + 1) + 32 * 32


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_macs_without_storage_are_those_of_the_real_model(head):
    # Eager and with gradients: fused kernels are not counted.
    config = head.model_class.config_class(**head.settings)
    model = head.model_class._from_config(config, attn_implementation="eager").eval()
    inputs = example_inputs(model)
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    assert count_macs(model) == counter.get_total_flops() // 2


def test_models_of_one_class_and_config_are_counted_once():
    macs_of.cache_clear()
    counts = [count_macs(factored()) for _ in range(3)]
    assert counts == [count_macs(factored(), (3, 16, 16))] * 3
    assert count_macs(factored(), [3, 16, 16]) == counts[0]
    assert (macs_of.cache_info().misses, macs_of.cache_info().hits) == (2, 3)
    assert macs_of.cache_info().maxsize is not None


def test_what_differs_in_class_config_options_or_shape_is_counted_anew():
    models = [
        ViTModel(tiny_config()),
        ViTModel(tiny_config(), add_pooling_layer=False),
        ViTModel(tiny_config(intermediate_size=64)),
        ViTForImageClassification(tiny_config()),
        factored(),
    ]
    counts = [count_macs(model) for model in models]
    assert len(set(counts)) == len(models)
    assert [count_macs(model) for model in reversed(models)] == counts[::-1]
    any_size = Dinov2ForImageClassification(DINOV2)
    assert count_macs(any_size, (3, 24, 24)) < count_macs(any_size)


def test_a_config_that_was_edited_is_another_one(vit):
    before = count_macs(vit)
    vit.config.num_hidden_layers = 1
    assert count_macs(vit) == PATCHES + blocks(TOKENS) // 2 + 32 * 5 < before


def test_layers_put_into_a_model_afterwards_count_as_those_they_stand_for():
    model, plain = factored(), factored()
    model.get_submodule("vit.layers.0.mlp").fc2 = torch.nn.Sequential(torch.nn.Linear(96, 7), torch.nn.Linear(7, 32))
    assert count_macs(model) == count_macs(plain)
    macs_of.cache_clear()
    assert count_macs(model) == count_macs(plain)
    assert count_costs(model).parameters < count_costs(plain).parameters


@pytest.mark.parametrize(("shard", "files"), [("1GB", 1), ("20KB", None)])
def test_disk_bytes_are_those_of_the_weight_files(shard, files, tmp_path):
    model = factored()
    model.save_pretrained(tmp_path, max_shard_size=shard)
    weights = list(tmp_path.glob("*.safetensors"))
    assert len(weights) == files or (files is None and len(weights) > 1)
    assert disk_bytes(tmp_path) == disk_bytes(str(tmp_path)) == sum(len(path.read_bytes()) for path in weights)
    assert 0 < disk_bytes(tmp_path) - 4 * model.num_parameters() < 8000


def test_disk_bytes_count_older_weight_files_and_nothing_else(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 10)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 20)
    (tmp_path / "config.json").write_bytes(b"x" * 40)
    assert disk_bytes(tmp_path) == 30


def test_what_only_looks_like_weights_is_not_counted(tmp_path):
    for name in ("training_args.bin", "model_ema.safetensors", "optimizer.bin", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes(b"x" * 10)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"x" * 20)
    assert disk_bytes(tmp_path) == 20


DINOV2 = Dinov2Config(**{**TINY, "image_size": 56, "mlp_ratio": 3})


@pytest.mark.parametrize(("shape", "patches"), [(None, 14 * 14), ((3, 24, 24), 6 * 6), ([3, 16, 32], 4 * 8)])
def test_costs_are_for_images_of_the_given_shape(shape, patches):
    """Its processor crops images smaller than the config says."""
    model = seeded(Dinov2ForImageClassification, DINOV2)
    expected = patches * 32 * (3 * 4 * 4) + blocks(patches + 1) + 2 * 32 * 5
    assert count_macs(model, shape) == count_costs(model, shape).macs == expected


def test_costs_of_patches_are_for_as_many_as_there_are():
    model = next(head for head in HEADS if head.name == "Siglip2VisionModel").dense()
    assert count_macs(model, (16, 48)) == count_macs(model)
    assert count_macs(model, (8, 48)) < 0.6 * count_macs(model)

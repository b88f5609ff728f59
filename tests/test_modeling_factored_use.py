"""What transformers, accelerate and torch do with factored models: training, pipelines, compiling, offloading."""

import logging

import pytest
import torch
import transformers
from transformers import AutoModelForImageClassification, Trainer, pipeline
from transformers.models.auto import modeling_auto

from hf_vitcompress.configuration_factored import factored_config_class
from hf_vitcompress.modeling_factored import factored_model_class
from support.factored import Labelled, assert_same_outputs, every_head, factored, outputs, training_arguments
from support.zoo import HEADS


def test_the_trainer_trains_the_factors_and_its_checkpoint_reloads(pixels, tmp_path):
    model = factored()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    result = Trainer(model, training_arguments(tmp_path), train_dataset=Labelled(pixels[:8])).train()
    assert result.global_step == 2
    assert torch.isfinite(torch.tensor(result.training_loss))
    factors = [name for name in before if ".up." in name or ".down." in name]
    assert len(factors) == 3 * 3
    now = dict(model.named_parameters())
    assert not any(torch.equal(before[name], now[name]) for name in factors)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert_same_outputs(model.eval(), loaded, pixels)


def test_the_image_classification_pipeline_runs_on_a_saved_folder(pictures, processor, tmp_path):
    model = factored()
    model.companions.append(processor)
    model.save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path), device="cpu")
    scores = {entry["label"]: entry["score"] for entry in classify(pictures[0], top_k=5)}
    with torch.no_grad():
        expected = model(**processor(pictures[0], return_tensors="pt")).logits.softmax(-1)[0]
    assert scores == pytest.approx({f"LABEL_{i}": float(p) for i, p in enumerate(expected)}, abs=1e-5)


TASKS = {
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForSemanticSegmentation": "image-segmentation",
    "ForDepthEstimation": "depth-estimation",
    "Model": "image-feature-extraction",
}
PIPED = {(head.name, task): head for head in HEADS for end, task in TASKS.items() if head.name.endswith(end)}


@pytest.mark.parametrize(("name", "task"), PIPED)
def test_no_pipeline_reports_that_it_does_not_support_a_factored_class(name, task, processor, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    head = PIPED[name, task]
    config = factored_config_class(head.family)(**head.settings, compression={"layers": {}})
    pipeline(task, model=factored_model_class(head.model_class)(config), image_processor=processor, device="cpu")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_tables_of_class_names_hold_a_factored_class_once():
    """What pipelines compare with; more of them than there are tiny models for."""
    for model_type, table in [("clip", "ZERO_SHOT_IMAGE_CLASSIFICATION"), ("sam", "MASK_GENERATION")]:
        names = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES")
        dense = names[model_type]
        factored_model_class(getattr(transformers, dense))
        assert [name for name in names[f"vitcompress_{model_type}"] if name == f"Factored{dense}"] == [
            f"Factored{dense}"
        ]


def test_a_compiled_model_has_the_same_logits(pixels):
    torch._dynamo.reset()
    model = factored()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels[:4]).logits, model(pixels[:4]).logits)


def gradients(model, pixels):
    """Gradients by name, and how often the forward pass of one factored layer ran."""
    calls = []
    model.vit.layers[0].mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    model.train()(pixels[:4], labels=torch.arange(4)).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, len(calls)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant, pixels):
    expected, once = gradients(factored(), pixels)
    model = factored()
    # The name before transformers 5.23 warns since then.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    found, twice = gradients(model, pixels)
    assert (once, twice) == (1, 2)
    assert "vit.layers.0.mlp.fc1.down.weight" in found
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected)


@every_head
def test_eager_and_sdpa_attention_agree(dense, auto, pixels, tmp_path):
    factored(dense).save_pretrained(tmp_path)
    models = {kind: auto.from_pretrained(tmp_path, attn_implementation=kind) for kind in ("eager", "sdpa")}
    assert all(model.config._attn_implementation == kind for kind, model in models.items())
    eager, sdpa = (outputs(model, pixels) for model in models.values())
    for a, b in zip(eager, sdpa, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_device_map_auto_loads_the_same_model(pixels, tmp_path):
    model = factored()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, device_map="auto")
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    assert torch.allclose(outputs(loaded, pixels)[0].cpu(), outputs(model, pixels)[0], rtol=1e-4, atol=1e-4)


def test_layers_can_be_offloaded_to_disk(pixels, tmp_path):
    model = factored()
    model.save_pretrained(tmp_path / "model")
    where = {"vit.embeddings": "cpu", "vit.layers": "disk", "vit.layernorm": "cpu", "classifier": "cpu"}
    loaded = AutoModelForImageClassification.from_pretrained(
        tmp_path / "model", device_map=where, offload_folder=tmp_path / "offload"
    )
    assert loaded.vit.layers[0].mlp.fc1.down.weight.is_meta
    assert_same_outputs(model, loaded, pixels)


def test_a_dtype_can_be_chosen_when_loading(pixels, tmp_path):
    model = factored()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert_same_outputs(model.to(torch.bfloat16), loaded, pixels)

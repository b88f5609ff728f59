"""A vision tower inside a larger model: compressed by itself, saved and loaded as a whole."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPProcessor,
    CLIPTokenizer,
    CLIPVisionModel,
    PreTrainedModel,
)

from hf_vitcompress import CompressionConfig, ViTCompressor, to_dense
from hf_vitcompress.architectures.outputs import outputs_of
from hf_vitcompress.errors import ConfigError
from hf_vitcompress.model.loading import load_model
from hf_vitcompress.model.towers import part_of
from hf_vitcompress.report.report import CompressionReport
from support.larger import TOWERS
from support.models import TINY, seeded
from support.terminal import Run, running_commands  # noqa: F401  (the fixture "run")
from support.zoo import STAGES, TEXT, VISION

LANGUAGE = {**TEXT, "model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True}
SETTINGS = {"rank_multiple": 1, "precision": "float32", "measuring_images": 0}
WHOLE = ["clip", "siglip", "llava"]


def whole(kind: str) -> PreTrainedModel:
    model = _whole(kind)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.copy_(1 + 0.3 * torch.randn_like(module.weight))
    return model


def _whole(kind: str) -> PreTrainedModel:
    if kind == "clip":
        return seeded(transformers.CLIPModel, transformers.CLIPConfig(**TOWERS))
    if kind == "siglip":
        return seeded(
            transformers.SiglipModel,
            transformers.SiglipConfig(**{**TOWERS, "text_config": {**TEXT, "projection_size": 32}}),
        )
    config = transformers.LlavaConfig(
        vision_config={**VISION, "model_type": "clip_vision_model"}, text_config=LANGUAGE, image_token_index=39
    )
    return seeded(transformers.LlavaForConditionalGeneration, config)


TARGETS = {"clip": "vision_model", "siglip": "vision_model", "llava": "vision_tower"}


def asked(model: PreTrainedModel, pixels: Tensor) -> list[Tensor]:
    """What the whole model says to two images and a text for each."""
    images = 16 if "Llava" in type(model).__name__ else 0
    ids = torch.tensor([[0, *([39] * images), 5, 7, 1]] * 2)
    with torch.no_grad():
        result = model(input_ids=ids, pixel_values=pixels[:2])
    names = ("logits", "logits_per_image", "image_embeds", "text_embeds")
    return [result[name] for name in names if result.get(name) is not None]


def compress(
    model: PreTrainedModel, pixels: Tensor, kind: str, **settings: object
) -> tuple[PreTrainedModel, ViTCompressor]:
    config = CompressionConfig(**{"keep_ratio": 0.6, **SETTINGS, "target": TARGETS[kind], **settings})
    compressor = ViTCompressor(config, progress=False)
    return compressor.compress(model, pixels), compressor


@pytest.mark.parametrize("kind", WHOLE)
def test_only_the_tower_changes(kind: str, pixels: Tensor) -> None:
    model = whole(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small, compressor = compress(model, pixels, kind)
    subject = part_of(model, TARGETS[kind])
    name, tower = subject.name, subject.model
    assert type(small).__name__ == f"Factored{type(model).__name__}"
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    after = small.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if not key.startswith(f"{name}."))
    small_tower = small.get_submodule(name)
    kept = sum(p.numel() for p in small_tower.parameters())
    assert 0.5 < kept / tower.num_parameters() <= 0.6
    assert compressor.report is not None
    assert compressor.report.compressed.parameters == kept
    assert compressor.report.dense.parameters == tower.num_parameters()
    assert small.num_parameters() == model.num_parameters() - tower.num_parameters() + kept
    assert TARGETS[kind] in compressor.report.title


@pytest.mark.parametrize("kind", WHOLE)
def test_the_whole_is_saved_and_loaded(kind: str, pixels: Tensor, tmp_path: Path) -> None:
    small, _ = compress(whole(kind), pixels, kind)
    small.save_pretrained(tmp_path)
    auto = AutoModelForImageTextToText if kind == "llava" else AutoModel
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(small) is type(load_model(tmp_path, Accelerator(cpu=True)))
    assert not any(info.values())
    for ours, theirs in zip(asked(small, pixels), asked(loaded.eval(), pixels), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert CompressionReport.load(tmp_path).settings["target"] == TARGETS[kind]
    assert json.loads((tmp_path / "config.json").read_text())["compression"]["target"].endswith(TARGETS[kind])


@pytest.mark.parametrize("kind", WHOLE)
def test_multiplied_out_it_computes_the_same(kind: str, pixels: Tensor) -> None:
    model = whole(kind)
    small, _ = compress(model, pixels, kind)
    wide = to_dense(small)
    assert type(wide) is type(model)
    for ours, theirs in zip(asked(small, pixels), asked(wide, pixels), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_it_says_much_the_same_as_the_dense_model(pixels: Tensor) -> None:
    model = whole("clip")
    mild, _ = compress(model, pixels, "clip", keep_ratio=0.8)
    hard, _ = compress(model, pixels, "clip", keep_ratio=0.45)
    dense, near, far = (asked(m, pixels)[1] for m in (model, mild, hard))
    assert (near - dense).norm() < (far - dense).norm() < dense.norm()


def test_what_the_whole_does_not_read_of_its_tower_is_not_kept(pixels: Tensor) -> None:
    """LLaVA reads the hidden states before the last block."""
    _, compressor = compress(whole("llava"), pixels, "llava")
    assert compressor.report is not None
    kept = [0, 0]
    for part in compressor.report.parts:
        kept[part.block] += part.parameters
    assert kept[1] < 0.1 * kept[0] == 0.1 * sum(part.dense_parameters for part in compressor.report.parts) / 2


def test_a_clip_tower_is_judged_by_its_pooled_output(pixels: Tensor) -> None:
    subject = part_of(whole("clip"), "vision_model")
    (term,) = outputs_of(subject, pixels[:2])
    with torch.no_grad():
        assert torch.equal(term.values, subject.model(pixels[:2]).pooler_output)


def test_a_llava_tower_is_judged_by_the_hidden_states_that_are_read(pixels: Tensor) -> None:
    subject = part_of(whole("llava"), "vision_tower")
    (term,) = outputs_of(subject, pixels[:2])
    with torch.no_grad():
        states = subject.model(pixels[:2], output_hidden_states=True).hidden_states
    assert torch.equal(term.values, states[-2][:, 1:].flatten(1))


def test_compensation_reaches_the_whole(pixels: Tensor) -> None:
    model = whole("clip")
    settings = {
        "compensation": "distill",
        "compensation_duration": "6 epochs",
        "learning_rate": 1e-4,
        "held_out_images": 24,
    }
    settings |= {"distill_batch_size": 12, "keep_ratio": 0.45}
    small, compressor = compress(model, pixels, "clip", **settings)
    plain, _ = compress(model, pixels, "clip", keep_ratio=0.45)
    assert compressor.report is not None
    assert compressor.report.compensation is not None
    tensors = plain.state_dict()
    assert any(not torch.equal(tensor, tensors[name]) for name, tensor in small.state_dict().items())


def test_tied_weights_stay_tied(pixels: Tensor) -> None:
    small, _ = compress(whole("llava"), pixels, "llava")
    assert small.get_input_embeddings().weight is small.get_output_embeddings().weight


@pytest.mark.parametrize("kind", WHOLE)
def test_without_a_target_the_error_names_it(kind: str, pixels: Tensor) -> None:
    with pytest.raises(ConfigError, match=rf"takes more than images.*target.*{TARGETS[kind]}'"):
        ViTCompressor(CompressionConfig(**SETTINGS), progress=False).compress(whole(kind), pixels)


@pytest.mark.parametrize("target", ["vision", "nothing", "vision_model.encoder.layers.0", ""])
def test_a_target_that_is_no_model_is_refused_with_those_that_are(target: str) -> None:
    with pytest.raises(ConfigError, match=r"names no model inside CLIPModel.*'vision_model'"):
        part_of(whole("clip"), target)


def test_a_target_in_a_model_without_models_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"'encoder' names no model .*None in it .*: leave target \(--target\) out"):
        part_of(part_of(whole("clip"), "vision_model").model, "encoder")


def test_the_dense_tower_alone_does_not_load_from_a_compressed_whole(pixels: Tensor, tmp_path: Path) -> None:
    small, _ = compress(whole("clip"), pixels, "clip")
    small.save_pretrained(tmp_path)
    with pytest.raises(Exception, match="factored layers, which a dense model class cannot hold"):
        CLIPVisionModel.from_pretrained(tmp_path)
    with pytest.raises(Exception, match="factored layers, which a dense model class cannot hold"):
        transformers.CLIPModel.from_pretrained(tmp_path)


def test_tokenizer_and_processor_go_with_the_whole(pixels: Tensor, tmp_path: Path) -> None:
    whole("clip").save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 5}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    CLIPProcessor(CLIPImageProcessorPil(), tokenizer).save_pretrained(tmp_path)
    config = CompressionConfig(keep_ratio=0.6, target="vision_model", **SETTINGS)
    compressor = ViTCompressor(config, progress=False)
    compressor.compress(tmp_path, pixels).save_pretrained(tmp_path / "small")
    loaded = AutoProcessor.from_pretrained(tmp_path / "small")
    assert type(loaded) is CLIPProcessor
    assert loaded.tokenizer("a").input_ids == tokenizer("a").input_ids


def test_a_backbone_can_be_a_target_too(pixels: Tensor) -> None:
    backbone = transformers.SwinConfig(**{**STAGES, "image_size": 16, "out_features": ["stage1", "stage2"]})
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        hidden_size=8,
        pool_scales=[1, 2],
        num_labels=TINY["num_labels"],
        auxiliary_in_channels=32,
    )
    config.use_auxiliary_head = False
    model = seeded(transformers.UperNetForSemanticSegmentation, config)
    recipe = CompressionConfig(keep_ratio=0.6, target="backbone", **SETTINGS)
    small = ViTCompressor(recipe, progress=False).compress(model, pixels)
    with torch.no_grad():
        assert small(pixels[:2]).logits.shape == model(pixels[:2]).logits.shape


def test_the_terminal_compresses_judges_and_times_the_tower(
    run: Run, pictures: list[Image.Image], tmp_path: Path
) -> None:
    dense, photos, small = tmp_path / "clip", tmp_path / "photos", tmp_path / "small"
    whole("clip").save_pretrained(dense)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(dense)
    photos.mkdir()
    for number, picture in enumerate(pictures):
        picture.save(photos / f"{number}.png")
    recipe = ["--target", "vision_model", "--max-params", "19000", "--rank-multiple", "1", "--precision", "float32"]
    command = ["compress", str(dense), "--data", str(photos), "--output", str(small), "--measuring-images", "0"]
    done = run(*command, *recipe, "--test", str(photos), "--latency")
    assert done.code == 0, done.err
    assert "FactoredCLIPModel, its vision_model" in done.out
    again = run("evaluate", str(small), "--data", str(photos), "--against", str(dense), "--latency", "--update-card")
    assert again.code == 0, again.err
    report = CompressionReport.load(small)
    assert report.compressed.parameters <= 19000 < report.dense.parameters
    assert report.compressed.macs < report.dense.macs
    assert report.evaluation is not None
    assert report.evaluation.kl is not None
    assert 0 < report.evaluation.kl.value < 1
    assert {latency.batch_size for latency in report.latency} == {1, 32}
    card = (small / "README.md").read_text(encoding="utf-8")
    assert "Its `vision_model` was compressed" in card
    assert "relative error" in card
    parameters = next(line for line in again.out.splitlines() if "parameters" in line)
    assert f"{report.compressed.parameters:,}" in parameters

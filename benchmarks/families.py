"""The same function in other families: a trained ViT turned into other architectures exactly, each of them compressed.

Exact (to rounding) into ViT-MSN (the same computation), DINOv2 (layer scale of one, a classifier that does not look at
the mean of the patches), DINOv2 with registers (none), BEiT and data2vec-vision (no bias of the keys, which softmax
does not see; relative position biases of zero; a pooler that takes the class token). Not exact, and so not here: DeiT
(its distillation token would take part in attention), I-JEPA and SigLIP (no class token), CLIP (a norm before the
blocks), YOLOS (detection tokens), DINOv3 (rotary positions), Swin (windows).

Writes families.json and .md to benchmarks/results after every model, and goes on from there.
"""

import json
from dataclasses import asdict
from typing import Any

import torch
from common import RESULTS, markdown_table, measured_on, parser, write_json
from torch import Tensor
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    PreTrainedModel,
    ViTForImageClassification,
    ViTMSNConfig,
    ViTMSNForImageClassification,
)

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.architectures.outputs import class_logits
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.evaluation.evaluation import Outputs, judge, model_outputs

SHARED_SETTINGS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "num_channels",
    "hidden_act",
    "layer_norm_eps",
    "qkv_bias",
    "id2label",
    "label2id",
)
BIASED = {
    "use_absolute_position_embeddings": True,
    "use_relative_position_bias": True,
    "use_mean_pooling": False,
    "use_mask_token": False,
    "layer_scale_init_value": 1.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
}
NORMS = {"layernorm_before": "norm1", "layernorm_after": "norm2"}
SELF_ATTENTION = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
LAYERS: dict[str, tuple[type[PreTrainedModel], dict[str, Any], str, dict[str, str]]] = {
    "ViT-MSN": (ViTMSNForImageClassification, {}, "vit.layers", {}),
    "DINOv2": (Dinov2ForImageClassification, {"use_mask_token": False}, "dinov2.encoder.layer", NORMS),
    "DINOv2 with registers": (
        Dinov2WithRegistersForImageClassification,
        {"num_register_tokens": 0},
        "dinov2_with_registers.encoder.layer",
        NORMS,
    ),
    "BEiT": (BeitForImageClassification, BIASED, "beit.layers", {}),
    "data2vec-vision": (
        Data2VecVisionForImageClassification,
        BIASED,
        "data2vec_vision.encoder.layer",
        SELF_ATTENTION,
    ),
}
"""Family → class, settings that make it a ViT, where its blocks are, and names in a block that differ from ViT's."""
CONFIGS = {
    "ViT-MSN": ViTMSNConfig,
    "DINOv2": Dinov2Config,
    "DINOv2 with registers": Dinov2WithRegistersConfig,
    "BEiT": BeitConfig,
    "data2vec-vision": Data2VecVisionConfig,
}


def turned_into(family: str, vit: PreTrainedModel) -> PreTrainedModel:
    """A model of `family` that computes what `vit`, a `ViTForImageClassification`, does."""
    model_class, settings, blocks, names = LAYERS[family]
    shared = {name: getattr(vit.config, name) for name in SHARED_SETTINGS}
    shared["mlp_ratio"] = vit.config.intermediate_size // vit.config.hidden_size
    shared["intermediate_size"] = vit.config.intermediate_size
    known = CONFIGS[family]().to_dict()
    config = CONFIGS[family](**{key: value for key, value in shared.items() if key in known}, **settings)
    config.id2label, config.label2id = vit.config.id2label, vit.config.label2id
    model = model_class(config).eval()
    state = {**neutral(model), **{renamed(name, blocks, names): tensor for name, tensor in vit.state_dict().items()}}
    if state["classifier.weight"].shape != model.classifier.weight.shape:
        weight = state["classifier.weight"]  # behind it the mean of the patches, which does not count
        state["classifier.weight"] = torch.cat([weight, torch.zeros_like(weight)], 1)
    wanted = model.state_dict()
    model.load_state_dict({name: tensor for name, tensor in state.items() if name in wanted})
    return model


def neutral(model: PreTrainedModel) -> dict[str, Tensor]:
    """Tensors a ViT does not have: scales of one, position biases and mask tokens of zero."""
    state = {}
    for name, tensor in model.state_dict().items():
        if "lambda" in name:
            state[name] = torch.ones_like(tensor)
        elif "relative_position_bias_table" in name or "mask_token" in name or "register_tokens" in name:
            state[name] = torch.zeros_like(tensor)
        elif "relative_position_index" in name:
            state[name] = tensor
    return state


def renamed(name: str, blocks: str, names: dict[str, str]) -> str:
    base = blocks.partition(".")[0]
    name = name.replace("vit.layers", blocks) if name.startswith("vit.layers") else name.replace("vit.", f"{base}.", 1)
    for old, new in names.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--keep-ratio", type=float, default=0.5)
    arguments = options.parse_args()
    compressor = ViTCompressor(CompressionConfig(keep_ratio=arguments.keep_ratio, seed=arguments.seed), progress=False)
    vit = compressor.open(arguments.model)
    assert isinstance(vit.model, ViTForImageClassification)
    batches = list(compressor.open_images(arguments.test, vit).batches(vit.processor, 64))
    reference, labels = model_outputs(vit, batches, "bfloat16")
    exact = model_outputs(vit, batches[:4])[0]
    path = RESULTS / "families.json"
    known = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []
    content: dict[str, Any] = {
        **measured_on(arguments, batches),
        "keep_ratio": arguments.keep_ratio,
        "results": known,
    }
    for family in ["ViT", *LAYERS]:
        if family in {result["family"] for result in known}:
            continue
        dense = vit if family == "ViT" else Subject.alone(turned_into(family, vit.model), vit.processor)
        own = ViTCompressor(compressor.config, progress=False)
        small = own.compress(dense, arguments.calibration)
        assert own.report is not None
        outputs = model_outputs(dense, batches, "bfloat16")[0]
        small_outputs = model_outputs(dense.like(small), batches, "bfloat16")[0]
        known.append(
            {
                "family": family,
                "class": type(dense.model).__name__,
                "largest_difference_of_logits": largest_difference(model_outputs(dense, batches[:4])[0], exact),
                "dense": asdict(judge(outputs, reference, labels, classes=True)),
                "small": asdict(judge(small_outputs, reference, labels, classes=True)),
                "costs": asdict(own.report.compressed),
                "dense_costs": asdict(own.report.dense),
            }
        )
        print(row(known[-1]), flush=True)
        write_json("families.json", content)
        (RESULTS / "families.md").write_text(markdown(content), encoding="utf-8")


def largest_difference(outputs: Outputs, reference: Outputs) -> float:
    pairs = zip(outputs, reference, strict=True)
    return max(float((class_logits(ours) - class_logits(theirs)).abs().max()) for ours, theirs in pairs)


def row(result: dict[str, Any]) -> list[str]:
    small, drop = result["small"], result["small"]["top1_drop"]
    return [
        f"{result['family']} (`{result['class']}`)",
        f"{result['largest_difference_of_logits']:.1e}",
        f"{result['dense']['top1']['value']:.2%}",
        f"{result['costs']['parameters'] / result['dense_costs']['parameters']:.3f}",
        f"{small['kl']['value']:.4f} ({small['kl']['low']:.4f} to {small['kl']['high']:.4f})",
        f"{small['agreement']['value']:.2%}",
        f"{small['top1']['value']:.2%}",
        f"{drop['value'] * 100:.1f} ({drop['low'] * 100:.1f} to {drop['high'] * 100:.1f})",
    ]


def markdown(content: dict[str, Any]) -> str:
    header = (
        "family",
        "largest difference of logits",
        "dense top-1",
        "parameters",
        "KL",
        "agreement",
        "top-1",
        "drop, points",
    )
    return (
        f"# Families\n\n{content['model']} turned into other families exactly (the logits of 256 test images differ by "
        f"at most what the table says, float32), each calibrated by itself on images of {content['calibration']}, seed "
        f"{content['seed']}, and compressed by the default recipe at keep ratio {content['keep_ratio']}, closed form "
        "only. KL, agreement and drop, with 95 % intervals, are from the ViT itself, on "
        f"{content['test_images']} images of {content['test']}, bfloat16 autocast for dense and compressed alike.\n\n"
        + markdown_table(header, [row(result) for result in content["results"]])
    )


if __name__ == "__main__":
    main()

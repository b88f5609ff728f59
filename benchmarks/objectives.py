"""Whose curvature calibration measures: a classifier's, a headless model's, or that of the loss on given labels.

The same ViT, the same images, the same budgets. `classifier`: the Fisher of the logits, without labels (the default).
`headless`: the backbone alone, which knows of no classes, calibrated by random projections of its hidden states, and
then put under the head again. `labels`: the classifier's own loss on the images' labels, the empirical Fisher.
`activation`: no curvature at all. Closed form only. Writes objectives.json and .md to benchmarks/results.
"""

from dataclasses import asdict
from typing import Any

from common import RESULTS, markdown_table, measured_on, parser, write_json
from transformers import PreTrainedModel, ViTForImageClassification, ViTModel

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.configuration_factored import factored_config_class
from hf_vitcompress.evaluation.evaluation import judge, model_outputs
from hf_vitcompress.modeling_factored import factored_model_class

OBJECTIVES: dict[str, dict[str, Any]] = {
    "classifier": {},
    "headless": {},
    "labels": {"calibration_loss": "task"},
    "activation": {"metric": "activation", "measuring_images": 0},
}
KEEP_RATIOS = (0.7, 0.5, 0.4)


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """The headless model, without pooler."""
    backbone = ViTModel(model.config, add_pooling_layer=False).eval()
    backbone.load_state_dict(model.vit.state_dict())
    return backbone


def under_the_head(backbone: PreTrainedModel, model: PreTrainedModel) -> PreTrainedModel:
    """The classifier `model` with a compressed backbone."""
    values = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    config = factored_config_class("vit").from_dict({**values, "compression": backbone.config.compression})
    small = factored_model_class(ViTForImageClassification)(config).eval()
    head = {f"classifier.{name}": tensor for name, tensor in model.classifier.state_dict().items()}
    small.load_state_dict({**{f"vit.{name}": tensor for name, tensor in backbone.state_dict().items()}, **head})
    return small


def main() -> None:
    arguments = parser(__doc__).parse_args()
    compressor = ViTCompressor(CompressionConfig(seed=arguments.seed), progress=False)
    subject = compressor.open(arguments.model)
    dense = subject.model
    batches = list(compressor.open_images(arguments.test, subject).batches(subject.processor, 64))
    reference, labels = model_outputs(subject, batches, "bfloat16")
    head = dense.num_parameters() - backbone_of(dense).num_parameters()
    content: dict[str, Any] = {
        **measured_on(arguments, batches),
        "results": [],
    }
    for name, settings in OBJECTIVES.items():
        own = Subject.alone(backbone_of(dense), subject.processor) if name == "headless" else subject
        config = CompressionConfig(seed=arguments.seed, **settings)
        images = compressor.open_images(arguments.calibration, subject)  # labels in the classifier's terms
        statistics = ViTCompressor(config, progress=False).calibrate(own, images)
        for ratio in KEEP_RATIOS:
            limit = round(ratio * dense.num_parameters()) - (head if name == "headless" else 0)
            planned = ViTCompressor(config.with_budget(max_params=limit), progress=False)
            small = planned.compress(own, statistics=statistics)
            small = under_the_head(small, dense) if name == "headless" else small
            outputs = model_outputs(subject.like(small), batches, "bfloat16")[0]
            content["results"].append(
                {
                    "objective": name,
                    "keep_ratio": ratio,
                    "parameters": small.num_parameters() / dense.num_parameters(),
                    "evaluation": asdict(judge(outputs, reference, labels, classes=True)),
                }
            )
            print(row(content["results"][-1]), flush=True)
    write_json("objectives.json", content)
    (RESULTS / "objectives.md").write_text(markdown(content), encoding="utf-8")


def row(result: dict[str, Any]) -> list[str]:
    evaluation = result["evaluation"]
    kl, drop = evaluation["kl"], evaluation["top1_drop"]
    return [
        f"{result['keep_ratio']:.2f}",
        result["objective"],
        f"{result['parameters']:.3f}",
        f"{kl['value']:.4f} ({kl['low']:.4f} to {kl['high']:.4f})",
        f"{evaluation['agreement']['value']:.2%}",
        f"{drop['value'] * 100:.1f} ({drop['low'] * 100:.1f} to {drop['high'] * 100:.1f})",
    ]


def markdown(content: dict[str, Any]) -> str:
    header = ("kept", "calibrated by", "parameters", "KL", "agreement", "top-1 drop, points")
    ordered = sorted(content["results"], key=lambda result: -result["keep_ratio"])
    return (
        f"# Objectives\n\nWhose curvature calibration measures, on {content['model']} with images of "
        f"{content['calibration']}, seed {content['seed']}, default recipe otherwise, closed form only: a classifier's "
        "own Fisher without labels (the default), random projections of the headless backbone's hidden states (the "
        "classifier is put on again to judge it), the empirical Fisher of the loss on the images' labels, and no "
        f'curvature (`metric="activation"`). Figures from {content["test_images"]} images of {content["test"]}, '
        "bfloat16 autocast for dense and compressed alike, 95 % intervals.\n\n"
        + markdown_table(header, [row(result) for result in ordered])
    )


if __name__ == "__main__":
    main()

"""The metadata of a card, as the Hub validates it."""

from huggingface_hub import EvalResult, ModelCardData

from .merging import METRIC_SUFFIX, TRAITS
from .subject import CLASSIFIER, CardSubject
from .wording import stages

CLASSIFICATION = "image-classification"

PIPELINES = {CLASSIFIER: CLASSIFICATION, "AutoModel": "image-feature-extraction"}


def card_metadata(subject: CardSubject, name: str) -> ModelCardData:
    """Of the card of a checkpoint that is called `name` in the model index."""
    report, origin, judged = subject.report, subject.report.origin, subject.evaluation
    relation = "quantized" if report.quantization else "finetune"
    results = None
    if judged is not None and judged.top1 is not None:
        results = [
            EvalResult(
                task_type=CLASSIFICATION,
                dataset_type=judged.dataset or "imagefolder",
                dataset_name=judged.dataset or "unpublished test images",
                dataset_split=judged.split if judged.dataset else None,
                metric_type="accuracy",
                metric_value=judged.top1.value,
                metric_name=f"top-1, n={judged.images if judged.labelled is None else judged.labelled}{METRIC_SUFFIX}",
            )
        ]
    return ModelCardData(
        language=origin.language or None,
        license=origin.license,
        license_name=origin.license_name,
        license_link=origin.license_link,
        library_name="transformers",
        pipeline_tag=PIPELINES.get(subject.auto_class),
        tags=tags(subject),
        base_model=origin.base_model,
        base_model_relation=relation if origin.base_model else None,
        datasets=list(dict.fromkeys([*origin.datasets, *filter(None, [report.calibration_dataset])])) or None,
        metrics=["accuracy"] if results else None,
        eval_results=results,
        model_name=name if results else None,
    )


def tags(subject: CardSubject) -> list[str]:
    """The package's, that of timm, and those that say how the model was compressed."""
    report = subject.report
    kinds = {kind for part in report.parts for shape in part.shapes.values() for kind in shape}
    holds = (
        bool(kinds & {"rank", "qk_rank"}),
        bool(kinds & {"in_features", "out_features"}),
        "distill" in stages(report),
        report.quantization is not None,
    )
    traits = [tag for tag, applies in zip(TRAITS, holds, strict=True) if applies]
    return ["hf_vitcompress", *(["timm"] if subject.timm else []), "vision", "model-compression", *traits]

"""What a card says. Nothing is claimed that was not measured on these very weights; what was not measured is named."""

from ...evaluation.latency import latency_row
from ...report.report import CompressionReport
from ...report.tables import NOT_MEASURED, comparison_rows
from ...runtime.text import loss_text, seconds_text
from .subject import BACKBONE, CLASSIFIER, CardSubject
from .ways import dense_form, ways


def title(subject: CardSubject) -> str:
    """Which model, and how much of it is left."""
    origin = subject.report.origin
    name = subject.timm or subject.report.model.removeprefix("Factored")
    if origin.base_model and origin.published:
        name = origin.base_model.split("/")[-1]
    if (target := subject.report.settings.get("target")) is not None:
        name = f"{name}, its {target}"
    quantized = f", {subject.report.quantization}" if subject.report.quantization else ""
    return f"{name} at {subject.report.keep_ratio:.0%} of its parameters{quantized}"


def summary(subject: CardSubject) -> str:
    """What was compressed, to how much, in which ways."""
    report = subject.report
    kind = f"a {report.model.removeprefix('Factored')}" if subject.timm is None else f"a `{subject.timm}` of timm"
    base = f"[`{report.origin.base_model}`](https://huggingface.co/{report.origin.base_model})"
    dense = base if report.origin.published else f"{kind} made from {base}"
    if report.origin.base_model is None:
        dense = f"{kind} that is not published"
    kept = f"{report.compressed.parameters:,} of {report.dense.parameters:,} parameters ({report.keep_ratio:.1%})"
    how = "; ".join(ways(report)) or "nothing was changed"
    text = f"This is {dense}, compressed by `hf_vitcompress` to {kept}: {how}."
    if (target := report.settings.get("target")) is not None:
        text = (
            f"This is {dense}. Its `{target}` was compressed by `hf_vitcompress` to {kept}: {how}. The rest is as it "
            "was. All figures but the bytes on disk are of that part."
        )
    return text + (f" Its weights are quantized to {report.quantization}." if report.quantization else "")


def packages(subject: CardSubject) -> str:
    """What to give pip for the model."""
    own = "hf-vitcompress" if subject.timm is None else '"hf-vitcompress[timm]"'
    return f"{own} torchao" if subject.report.quantization else own


def rows(subject: CardSubject) -> list[tuple[str, str, str, str]]:
    """Of the table: quantity, dense, compressed, change; with rows for what was not measured."""
    report = subject.report
    found = comparison_rows(
        report.dense,
        report.compressed,
        report.origin.disk_bytes,
        subject.disk_bytes,
        subject.evaluation,
        report.latency,
        report.patch_tokens,
    )
    if subject.auto_class != CLASSIFIER:
        found = [row for row in found if row[0] != "top-1"]
    if not subject.same_weights and report.quantization is None:
        found = [row for row in found if row[0] != "weights in memory"]  # they may be of another type now
    found = [_with_dtypes(row, report.origin.dtypes, subject.dtypes) if "disk" in row[0] else row for row in found]
    names = " ".join(name for name, *_ in found)
    wanted = ("top-1", "agreement") if subject.auto_class == CLASSIFIER else ()
    found += [(name, NOT_MEASURED, NOT_MEASURED, "") for name in wanted if name not in names]
    return found if report.latency else [*found, _latency_when_planned(report)]


def _latency_when_planned(report: CompressionReport) -> tuple[str, str, str, str]:
    """Of a model that was not timed since; for another budget than one of time nothing was timed."""
    if report.timed is None:
        return "latency", NOT_MEASURED, NOT_MEASURED, ""
    name, dense, compressed, change = latency_row(report.timed.measured)
    return name.replace("latency", "latency when planned", 1), dense, compressed, change


def _with_dtypes(row: tuple[str, str, str, str], dense: list[str], own: list[str]) -> tuple[str, str, str, str]:
    """Bytes compare fairly only where both are stored in the same type."""
    name, before, after, change = row
    return name, f"{before} ({', '.join(dense)})" if dense else before, f"{after} ({', '.join(own)})", change


def measured(subject: CardSubject) -> list[str]:
    """On what accuracy and latency were measured, as far as they were."""
    report, judged = subject.report, subject.evaluation
    sentences = []
    if judged is not None:
        images = f"{judged.images:,} images{_place(judged.dataset, judged.split)}"
        if judged.labelled is not None and judged.labelled != judged.images:
            images += f", {judged.labelled:,} of them with labels"
        sentences.append(
            f"Accuracy: {images}, {judged.precision}; in brackets 95 % intervals, that of the change is paired."
        )
    if report.latency:
        first = report.latency[0]
        sentences.append(
            f"Latency: one forward pass, median of {first.rounds}, on {first.device}; both models "
            "in turn; in brackets the quartiles of the ratio."
        )
    elif report.timed is not None:
        timed = report.timed.measured
        sentences.append(
            "Latency when planned: of a model with these shapes, before its weights were computed; one forward pass, "
            f"median of {timed.rounds}, on {timed.device}; both models in turn; in brackets the quartiles of the ratio."
        )
    return sentences


def _place(dataset: str | None, split: str | None) -> str:
    """Of which published data set, and which part of it; of other data the part alone."""
    if not dataset:
        return f" of the split `{split}`" if split else ""
    return f" of `{dataset}`" + (f", split `{split}`" if split else "")


def making(subject: CardSubject) -> list[str]:
    """From which images the model was made, in what time, on what."""
    report = subject.report
    source = _place(report.calibration_dataset, report.calibration_split)
    source += "" if report.calibration_dataset else " from a source not on record"
    labels = "with their targets" if report.settings.get("calibration_loss") == "task" else "labels were not used"
    sentences = [f"Calibration: {report.calibration_images:,} images{source}; {labels}."]
    if report.measuring_images:
        sentences.append(f"Predicted losses are scaled to those measured on {report.measuring_images:,} other images.")
    if (found := report.search) is not None:
        images = f"{found.images:,} validation images{_place(found.dataset, found.split)}"
        stage = f", {report.search_stage}" if report.search_stage else ""
        sentences.append(f"Search on {images}: {found.quantity} {found.amount}{stage}.")
    if (timed := report.timed) is not None:
        sentences.append(f"{timed.name.capitalize()}: {timed.amount} ({timed.origin}).")
    if report.bad_images:
        sentences.append(f"{report.bad_images:,} images could not be read and were left out.")
    if (gates := report.gates) is not None:
        sentences.append(
            f"Scores of neurons and heads: learned from {gates.images:,} images in {seconds_text(gates.seconds)} s."
        )
    if (done := report.compensation) is not None:
        learnt = "with labels" if report.settings.get("label_weight") else "without labels"
        unit = " nats" if subject.auto_class == CLASSIFIER else ""
        sentences.append(
            f"Compensation ({' and '.join(stages(report))}): {done.images:,} images {learnt}, "
            f"{seconds_text(done.seconds)} s, loss on {done.held_out_images:,} others "
            f"from {loss_text(done.loss_before)} to {loss_text(done.loss_after)}{unit}."
        )
    if not subject.same_weights:
        sentences.append(
            "Afterwards the weights were changed, for instance trained further or stored otherwise: losses that are "
            "given here are of before."
        )
    if report.seconds:
        spent = ", ".join(f"{stage} {seconds_text(seconds)}" for stage, seconds in report.seconds.items())
        sentences.append(f"Seconds: {spent}.")
    if (place := report.environment) is not None:
        processes = f", {place.processes} processes" if place.processes > 1 else ""
        versions = ", ".join(f"{name} {version}" for name, version in place.versions.items())
        sentences += [f"Hardware: {place.hardware}{processes}.", f"Versions: {versions}."]
    return sentences


def stages(report: CompressionReport) -> list[str]:
    """Those of compensation, in their order."""
    return list(dict.fromkeys(point.stage for point in report.compensation.points)) if report.compensation else []


def limits(subject: CardSubject) -> list[str]:
    """What is not known about the model, and what it should not be used for."""
    report, judged = subject.report, subject.evaluation
    sentences = []
    if judged is None and report.evaluation is not None:
        sentences.append(
            "The accuracy that the report gives is of other weights than these; that of these is unknown until "
            "`vitcompress evaluate … --update-card` has judged them."
        )
    elif judged is None and subject.auto_class != CLASSIFIER:
        sentences.append("How far its outputs are from those of the dense model was not measured.")
    elif judged is None:
        estimate = "; the KL divergence that the report predicts is an estimate"
        sentences.append(f"Its accuracy was not measured{'' if report.predicted_loss is None else estimate}.")
    elif judged.top1 is None and subject.auto_class == CLASSIFIER:
        sentences.append("There were no labels to measure top-1 accuracy with.")
    if not report.latency and report.timed is None:
        sentences.append("Its speed was not measured.")
    elif not report.latency and report.quantization is not None:
        sentences.append("Its speed was measured before it was quantized, and not since.")
    sentences += [
        "Not measured: accuracy by class, on rare or shifted inputs and on other data than the above; fairness between "
        "groups; other hardware, precisions and batch sizes. Compression can cost rare cases more than the average.",
        "What the dense model should not be used for, this one should not either."
        + (" See the card of the base model." if report.origin.base_model else ""),
    ]
    if report.origin.license is None:
        sentences.append("The licence of the dense model is not known here; it applies to this one, too.")
    return sentences


def use(subject: CardSubject) -> list[str]:
    """What can be done with the loaded model, and what cannot."""
    report = subject.report
    if report.quantization is not None:
        sentences = [
            "It is an ordinary quantized model of `transformers`: `pipeline` and `save_pretrained` work on it.",
        ]
    else:
        sentences = [
            "It is an ordinary model of `transformers`: `Trainer`, `pipeline` and `save_pretrained` work on it.",
            f"With the package, `model.to_dense()` {dense_form(report)}, for tools that know only that.",
        ]
        if report.patch_tokens is not None:
            sentences.append("The dense form merges no tokens, so that the figures above are not those of it.")
        if subject.timm is not None and subject.auto_class != BACKBONE:
            sentences.append(
                "Its `timm_model` is the module of timm that computes it; the documentation of hf_vitcompress says how "
                "timm's own scripts open it."
            )
    if report.patch_tokens is not None:
        sentences.append(
            "Because tokens are merged, attention that takes no mask of numbers, such as `flash_attention_2`, is "
            "refused (`sdpa` and `eager` work), and gradient checkpointing has to be non-reentrant "
            '(`gradient_checkpointing_kwargs={"use_reentrant": False}`).'
        )
    if subject.auto_class == BACKBONE and subject.timm is None:
        sentences.append(
            f"`{BACKBONE}` takes a Hub id and no folder; a folder is opened by `{report.model}.from_pretrained`, after "
            f"`from hf_vitcompress.modeling_factored import {report.model}`."
        )
    return sentences

"""Programs for other runtimes, from models of any form; each is run and compared with torch before it is kept."""

import contextlib
import copy
import importlib
import importlib.metadata
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from ..architectures.inputs import image_shape, model_inputs
from ..errors import ConfigError, ExportError
from ..evaluation.latency import LATENCY_BATCHES, Latency, alternate_latency
from ..images.unloaded import UnloadedProcessor
from ..model.assembly import dense_class, dense_config, empty_model, tokens_in
from ..model.loading import check_model_type, load_dense_model, load_image_processor
from ..model.shapes import layout_of
from ..model.timm import is_wrapper
from ..model.timm_forms import public_form
from ..model.timm_images import as_companions, name_processor
from ..model.towers import compressed_part, takes_only_images
from ..publish.saved import save_beside_program
from ..runtime.outputs import Output, reserved
from .export_formats import (
    IMAGES,
    UNMASKED,
    Format,
    load_program,
    named_tensors,
    program_files,
    require_format,
    trace,
)
from .export_report import ExportReport, ExportResult, Port
from .export_sizes import Fit, Size, checked_size, fit_for

TOLERANCE = 1e-4
CHECKED_BATCHES = (1, 3)
MODEL = "the model"


def export_model(
    model: str | Path | PreTrainedModel,
    to: str = "onnx",
    output: str | Path | None = None,
    *,
    against: str | Path | PreTrainedModel | None = None,
    overwrite: bool = False,
    tolerance: float = TOLERANCE,
    max_batch: int | None = None,
    image_size: int | Size | None = None,
) -> ExportResult:
    """Convert a compressed or dense model for another runtime, and keep the result if it computes the same.

    The program computes in float32, whatever the model's dtype, and takes any number of images. It is run in its
    runtime on one and on several images, and kept only if every output is within `tolerance` of PyTorch's. The folder
    also gets what lies beside the model (image processor, tokenizer, licence; outside the model's folder recipe, plan
    and report, too), the config of the dense architecture (labels, image size), the `export.json` of transformers, and
    `export_report.json`, which names inputs and outputs. The program does not need this package. If a
    model takes more than images, such as CLIP, the part that was compressed is exported.

    Args:
        model: a folder, a Hub id or a loaded model, which is left as it was.
        to: `onnx`, `torch-export`, `openvino` or `executorch`.
        output: folder for the program; by default a folder inside the model's that has the name of the format.
        against: the dense model. It is exported to the same format, and both programs are timed in turn, with as many
            threads as torch uses; its program is not kept.
        overwrite: whether to replace a program of this package in `output`.
        tolerance: largest absolute difference of an output from torch's.
        max_batch: largest number of images, for `executorch`, which reserves memory for them. Default: 32.
        image_size: pixels of the images, one number or height and width; by default the size that the image processor
            makes. The image processor beside the program is set to it.

    Returns:
        the folder, the report, and with `against` the dense program's report and the latency of both.

    Raises:
        ConfigError: the format is unknown, or `output`, `against`, `max_batch` or `image_size` does not fit the model
            or the format.
        ExportError: a package is missing, the model cannot be traced, or the program's outputs differ.
        OutputError: `output` exists, holds something else, is or contains a model, or cannot be written.
        UnsupportedModelError: a model cannot be found, or its architecture is not supported.
    """
    chosen, size = _with_limit(require_format(to), max_batch), checked_size(image_size)
    folder = _output_folder(model, to, output)
    inputs = {MODEL: model, "the dense model (against)": against}
    with reserved(folder, "overwrite" if overwrite else "new", inputs, beside=(MODEL,)) as place:
        return _exported(place, model, chosen, against, tolerance, size)


def _exported(
    output: Output,
    model: str | Path | PreTrainedModel,
    chosen: Format,
    against: str | Path | PreTrainedModel | None,
    tolerance: float,
    size: Size | None,
) -> ExportResult:
    whole = _load(model)
    ours, theirs = _for_images(whole, whole), None if against is None else _for_images(_load(against), whole)
    if theirs is not None and image_shape(ours) != image_shape(theirs):
        raise ConfigError(
            f"The models take images of different shapes, {image_shape(ours)} and {image_shape(theirs)}, and cannot be "
            "timed against each other. Give against (--against) the dense model that was compressed."
        )
    fit = fit_for(ours, _image_processor(model, whole), size)
    with output.replaced() as staging:
        inside = isinstance(model, str | Path) and Path(model).resolve() in output.path.parents
        save_beside_program(staging, whole, record=not inside)
        # After that: its image processor is the one that makes images of the program's size.
        report = _export(ours, chosen, staging, tolerance, fit)
    if theirs is None:
        return ExportResult(output.path, report)
    with TemporaryDirectory(ignore_cleanup_errors=True) as place:  # Windows removes no file that a runtime has open
        dense = _export(theirs, chosen, Path(place), tolerance, Fit(fit.shape))
        large, small = load_program(Path(place), chosen), load_program(output.path, chosen)
        counts = _allowed(LATENCY_BATCHES, chosen)
        latency = [_latency(large, small, count, fit.shape) for count in counts]
    return ExportResult(output.path, report, dense, latency)


# ---- before


def _with_limit(chosen: Format, max_batch: int | None) -> Format:
    """The format, for at most `max_batch` images where that is given."""
    if max_batch is None:
        return chosen
    if chosen.max_batch is None:
        raise ConfigError(
            f"max_batch (--max-batch) is for executorch; a program for {chosen.name} takes any number of images."
        )
    if max_batch < 1:
        raise ConfigError(f"max_batch is {max_batch}; a program takes at least 1 image.")
    return replace(chosen, max_batch=max_batch)


def _allowed(sizes: Iterable[int], chosen: Format) -> list[int]:
    return [size for size in sizes if chosen.max_batch is None or size <= chosen.max_batch]


def _output_folder(model: str | Path | PreTrainedModel, to: str, output: str | Path | None) -> Path:
    if output is not None:
        return Path(output)
    if isinstance(model, str | Path) and Path(model).is_dir():
        return Path(model) / to
    raise ConfigError("Name a folder for the program with output (--output); the model is not a folder to put it in.")


def _load(model: str | Path | PreTrainedModel) -> PreTrainedModel:
    loaded = load_dense_model(model)
    check_model_type(loaded.config)
    return loaded


def _for_images(model: PreTrainedModel, compressed: PreTrainedModel) -> PreTrainedModel:
    """The model, or where it takes more than images what of it was compressed.

    Args:
        compressed: what says that; the model itself, or one that was made of it.

    Raises:
        ConfigError: nothing was, and `model` takes more than images.
    """
    if takes_only_images(model):
        return model
    part = compressed_part(model, compressed).model
    if not takes_only_images(part):
        raise ConfigError(
            f"{type(model).__name__} takes more than images, and a program takes images alone. Export the model in it "
            "that takes them, such as `model.vision_model`, or the whole after compressing that with target=…"
        )
    return part


def _image_processor(given: str | Path | PreTrainedModel, model: PreTrainedModel) -> Any:
    """The one beside the model, or the one that a model not saved yet would be saved with."""
    kinds = (ImageProcessingMixin, UnloadedProcessor)
    companions = [item for item in getattr(model, "companions", []) if isinstance(item, kinds)]
    return companions[0] if companions else load_image_processor(given)


# ---- the program


def _export(model: PreTrainedModel, chosen: Format, folder: Path, tolerance: float, fit: Fit) -> ExportReport:
    """Write a program to `folder`, if it computes what the model does."""
    name, (_, height, width) = type(model).__name__, fit.shape
    twin = _float32_twin(model)
    failure = f"{name} could not be run on images of {height} × {width} pixels alone"
    with torch.no_grad(), _explained(failure, chosen, "Choose another size with image_size (--image-size)"):
        batches = {size: _random_images(size, fit.shape) for size in _allowed(CHECKED_BATCHES, chosen)}
        expected = {size: _named_outputs(twin, images) for size, images in batches.items()}
    twin.set_attn_implementation(UNMASKED)
    with _explained(f"{name} could not be exported to {chosen.name}", chosen):
        exported = trace(twin, chosen, fit.shape)
    exported.config, architecture = public_form(dense_config(twin.config), dense_class(type(twin)))
    exported.config.update({"architectures": [architecture], "dtype": torch.float32})
    name_processor(exported.config, fit.processor)
    exported.save_pretrained(folder)
    for processor in as_companions(fit.processor):
        processor.save_pretrained(folder)
    difference = _checked_difference(folder, chosen, batches, expected, tolerance)
    report = ExportReport(
        format=chosen.name,
        model=name,
        files={file: (folder / file).stat().st_size for file in program_files(exported)},
        inputs=[_port(IMAGES, batches[1], chosen)],
        outputs=[_port(output, tensor, chosen) for output, tensor in expected[1].items()],
        max_batch=chosen.max_batch,
        checked_batches=list(batches),
        max_difference=difference,
        packages={package: _version(package) for package in ("torch", *chosen.packages)},
    )
    report.save(folder)
    return report


def _float32_twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same model in float32 on the CPU, for evaluation, sharing memory where it can; without hooks and the like."""
    if is_wrapper(model):  # whose fused layers stay so: that is how it would be run
        return cast(Any, copy.deepcopy(model)).to("cpu", torch.float32).eval()
    twin = empty_model(model, layout_of(model), tokens_in(model))
    state = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in model.state_dict().items()}
    twin.load_state_dict(state, assign=True)
    return cast(Any, twin).to("cpu", torch.float32).eval()  # what no checkpoint holds, too


def _named_outputs(model: PreTrainedModel, images: Tensor) -> dict[str, Tensor]:
    return named_tensors(model(**model_inputs(model, images)))


def _port(name: str, example: Tensor, chosen: Format) -> Port:
    """As seen with one image."""
    first: int | str = 1 if chosen.max_batch == 1 else "batch"
    return Port(name, str(example.dtype).removeprefix("torch."), (first, *example.shape[1:]))


def _version(package: str) -> str:
    """Of an import name; pip may know it as another, such as onnxruntime-gpu."""
    return getattr(importlib.import_module(package), "__version__", None) or importlib.metadata.version(package)


def _checked_difference(
    folder: Path,
    chosen: Format,
    batches: dict[int, Tensor],
    expected: dict[int, dict[str, Tensor]],
    tolerance: float,
) -> float:
    """The largest difference from torch over all batches and outputs.

    Raises:
        ExportError: it is more than `tolerance`, or not a number.
    """
    with _explained(f"The program for {chosen.name} could not be run", chosen):
        run = load_program(folder, chosen)
        outputs = {size: run(images) for size, images in batches.items()}
    largest = 0.0
    for size in batches:
        difference = _largest_difference(outputs[size], list(expected[size].values()))
        if not difference <= tolerance:
            raise ExportError(
                f"The program for {chosen.name} differs from the torch model by {difference:.1e} at batch size {size}, "
                f"more than the tolerance of {tolerance:.1e}; it was not kept. Choose another format, or allow more "
                "with tolerance (--tolerance)."
            )
        largest = max(largest, difference)
    return largest


def _largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Infinite where there is another number of outputs, or a shape differs."""
    if [output.shape for output in ours] != [output.shape for output in theirs]:
        return math.inf
    return max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))


# ---- latency


def _latency(
    dense: Callable[[Tensor], Any], compressed: Callable[[Tensor], Any], batch_size: int, shape: tuple[int, int, int]
) -> Latency:
    images = _random_images(batch_size, shape)
    return alternate_latency(lambda: _seconds(dense, images), lambda: _seconds(compressed, images), batch_size)


def _seconds(run: Callable[[Tensor], Any], images: Tensor) -> float:
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start


def _random_images(count: int, shape: tuple[int, int, int]) -> Tensor:
    """Images (count, *shape), the same for each count."""
    return torch.randn(count, *shape, dtype=torch.float32, generator=torch.Generator().manual_seed(count))


@contextlib.contextmanager
def _explained(failure: str, chosen: Format, remedy: str | None = None) -> Iterator[None]:
    """Whatever fails inside is an `ExportError` that begins with `failure`; the remedy is by default another format."""
    try:
        yield
    except Exception as error:  # exporters and runtimes raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        packages = " or ".join(("torch", *chosen.packages))
        remedy = remedy or f"Try another format, or another version of {packages}"
        raise ExportError(f"{failure}: {reason}. {remedy}.") from error

"""The formats a model can be exported to: what each needs, how a program is made, and how it is run again.

Tracing, files and runtimes are those of `transformers.exporters`.
"""

import contextlib
import functools
import importlib
import importlib.util
import io
import logging
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from torch import Tensor
from torch.export import Dim
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..architectures.inputs import model_inputs
from ..errors import ConfigError, ExportError, one_line

UNMASKED = "vitcompress_unmasked"
"""Attention without a mask. Otherwise transformers makes one, of ones, while it traces, and every block applies it."""

AttentionInterface.register(UNMASKED, sdpa_attention_forward)

IMAGES = "pixel_values"


@dataclass(frozen=True)
class Format:
    """A kind of program, and what runs it.

    Attributes:
        name: what to call it.
        config: its config class in `transformers.exporters`.
        packages: to be installed besides torch and transformers; the same name for import and pip.
        tidy: called with a traced program and the (channels, height, width) of its images, before it is saved.
        runtime: number of threads → options of the runner of `transformers.exporters`.
        plain_outputs: whether the program returns a dict, and not an output class of transformers.
        max_batch: images it takes at most, because it reserves memory for them; `None`: any number.
    """

    name: str
    config: str
    packages: tuple[str, ...] = ()
    tidy: Callable[[Any, tuple[int, int, int]], None] | None = None
    runtime: Callable[[int], dict[str, Any]] | None = None
    plain_outputs: bool = False
    max_batch: int | None = None


def require_format(name: str) -> Format:
    """The format of that name, with everything it needs at hand.

    Raises:
        ConfigError: there is no such format.
        ExportError: something is not installed, or too old.
    """
    if name not in FORMATS:
        raise ConfigError(f"to: {name!r} is no format to export to. Choose one of {', '.join(FORMATS)}.")
    chosen = FORMATS[name]
    missing = [package for package in chosen.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ExportError(
            f"Exporting to {name} needs {' and '.join(missing)}: `pip install {' '.join(chosen.packages)}`."
        )
    exporters = importlib.import_module("transformers.exporters")
    if not hasattr(exporters, "ExportedModel"):
        raise ExportError("Exporting needs transformers 5.23 or newer: `pip install --upgrade transformers`.")
    try:
        with quiet():
            exporters.AutoHfExporter.from_config(getattr(exporters, chosen.config)())
    except (ImportError, OSError) as error:
        packages = " ".join(("torch", "transformers", *chosen.packages))
        raise ExportError(
            f"Exporting to {name} is not possible with what is installed: {one_line(error)}. Renew it: "
            f"`pip install --upgrade {packages}`."
        ) from error
    return chosen


def trace(model: PreTrainedModel, chosen: Format, shape: tuple[int, int, int]) -> Any:
    """The `ExportedModel` of `transformers.exporters` that computes what `model` does.

    Args:
        model: in evaluation mode, float32, on the CPU; the exporters may change it.
        shape: (channels, height, width) of the images.
    """
    exporters = importlib.import_module("transformers.exporters")
    batch = Dim.STATIC if chosen.max_batch == 1 else Dim("batch", min=1, max=chosen.max_batch)
    config = getattr(exporters, chosen.config)(dynamic_shapes={IMAGES: {0: batch}})
    # ExecuTorch's exporter plans memory for four times what it has seen, and torch.export takes 1 for a constant.
    seen = 1 if chosen.max_batch == 1 else max(2, math.ceil((chosen.max_batch or 0) / 4))
    images = torch.zeros(seen, *shape, dtype=torch.float32)
    given = model_inputs(model, images)
    fixed = {name: value for name, value in given.items() if not isinstance(value, Tensor)}
    forward = functools.partial(model.forward, **fixed)
    if chosen.plain_outputs:
        cast(Any, model).forward = lambda **inputs: dict(forward(**inputs))
    elif fixed:
        cast(Any, model).forward = forward
    with quiet():
        exported = exporters.AutoHfExporter.from_config(config).export(model, {IMAGES: images}, config)
        if chosen.tidy is not None:
            chosen.tidy(exported.program, shape)
    return exported


def load_program(folder: str | Path, chosen: Format) -> Callable[[Tensor], list[Tensor]]:
    """A saved program on its runtime, with as many threads as torch has: images (n, …) → the model's outputs.

    Args:
        folder: written by this package a moment ago. Loading a program of torch.export unpickles it, so a folder from
            elsewhere could run any code.
    """
    exporters = importlib.import_module("transformers.exporters")
    with quiet():
        options = {} if chosen.runtime is None else chosen.runtime(torch.get_num_threads())
        # transformers 5.24 and newer unpickle nothing without this.
        options["trust_remote_code"] = True
        program = exporters.ExportedModel.from_pretrained(folder, device="cpu", **options)

    return lambda images: list(named_tensors(program(**{IMAGES: images})).values())


def named_tensors(outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a result, in order; of several under one name, such as feature maps, each with its number."""
    found: dict[str, Tensor] = {}
    for name, value in outputs.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, tuple | list):
            found |= named_tensors({f"{name}.{number}": item for number, item in enumerate(value)})
    return found


def program_files(exported: Any) -> list[str]:
    """Names of the files that `exported.save_pretrained` writes for its one program, the one to open first."""
    auto = importlib.import_module("transformers.exporters.auto")
    exporter = auto.get_exporter_class(exported.export_format)
    (name,) = exported.components
    return exporter.program_files(f"{exporter.program_prefix}{name}{exporter.program_suffix}")


_one_exporter = threading.RLock()
"""What exporters say is turned off for the whole process; two threads would put it back in the wrong order."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters say to their own developers; what they get wrong shows when the program is run."""
    loggers = {logging.getLogger(name): logging.NOTSET for name in ("transformers.exporters", "torch.onnx")}
    # torch.onnx prints its progress.
    with _one_exporter, warnings.catch_warnings(), contextlib.redirect_stdout(_OthersOnly(sys.stdout)):
        warnings.filterwarnings("ignore", ".*(treespec|var_to_val)", FutureWarning)  # inside torch and transformers
        warnings.filterwarnings("ignore", "This API is experimental", Warning)  # ExecuTorch's runtime, all of it
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # between the libraries
        for logger in loggers:
            # That versions are not those the exporters were tested with, and operators nobody here needs.
            loggers[logger] = logger.level
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in loggers.items():
                logger.setLevel(level)


class _OthersOnly(io.TextIOBase):
    """A standard output without what the thread writes that makes it."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.silent = out, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.silent else self.out.write(text)


# ---- formats


def _tidy_onnx(program: Any, shape: tuple[int, int, int]) -> None:
    """Call the free dimension `batch`, and leave out where in which file each node comes from."""
    onnx_ir = importlib.import_module("onnx_ir")
    common = importlib.import_module("onnx_ir.passes.common")
    common.ClearMetadataAndDocStringPass()(program)
    free = program.graph.inputs[0].shape[0]
    for value in (*program.graph.inputs, *(output for node in program.graph for output in node.outputs)):
        if value.shape is not None:
            value.shape = onnx_ir.Shape(["batch" if size == free else size for size in value.shape])


def _tidy_torch(program: Any, shape: tuple[int, int, int]) -> None:
    """Leave out where in which file each node comes from."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)


def _tidy_openvino(program: Any, shape: tuple[int, int, int]) -> None:
    """Fix every dimension but that of the batch."""
    program.reshape({IMAGES: [program.inputs[0].partial_shape[0], *shape]})


def _onnx_runtime(threads: int) -> dict[str, Any]:
    options = importlib.import_module("onnxruntime").SessionOptions()
    options.intra_op_num_threads = threads
    return {"session_options": options}


def _openvino_runtime(threads: int) -> dict[str, Any]:
    # Its own choice is bfloat16 on processors that have it.
    return {"config": {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}}


def _executorch_runtime(threads: int) -> dict[str, Any]:
    library = importlib.import_module("executorch.extension.pybindings.portable_lib")
    with contextlib.redirect_stderr(io.StringIO()):  # it logs every processor and thread
        library._unsafe_reset_threadpool(threads)
    return {}


_ALL = (
    Format("onnx", "OnnxConfig", ("onnx", "onnxscript", "onnxruntime"), _tidy_onnx, _onnx_runtime),
    # Plain, so that `torch.export.load` works where transformers is not installed.
    Format("torch-export", "DynamoConfig", tidy=_tidy_torch, plain_outputs=True),
    Format("openvino", "OpenVINOConfig", ("openvino",), _tidy_openvino, _openvino_runtime),
    Format("executorch", "ExecutorchConfig", ("executorch",), runtime=_executorch_runtime, max_batch=32),
)
FORMATS = {entry.name: entry for entry in _ALL}

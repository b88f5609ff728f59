"""Integer weights of compressed and dense models, through torchao and `from_pretrained` of transformers."""

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from accelerate import Accelerator
from transformers import PreTrainedModel, TorchAoConfig
from transformers.utils.import_utils import TORCHAO_MIN_VERSION, is_torchao_available

from ..architectures.running import attention_implementations
from ..errors import QuantizationError, one_line
from ..evaluation.costs import Costs, count_costs
from ..model.assembly import is_factored
from ..model.companions import give_companions
from ..model.loading import check_model, load_model
from ..model.towers import compressed_part
from ..publish.cards import write_card
from ..publish.saved import files_at_hand, used_companions
from ..report.report import REPORT_FILE, CompressionReport
from ..runtime.weights import folder_digest, model_digest

SCHEMES = {
    "int8_weight_only": "Int8WeightOnlyConfig",
    "int8_dynamic": "Int8DynamicActivationInt8WeightConfig",
}
"""What to call a scheme, and its class in `torchao.quantization`."""


@dataclass(frozen=True)
class QuantizationRecord:
    """The changes that quantization makes to the report and the card of a compressed model.

    Attributes:
        scheme: one of `SCHEMES`.
        costs: costs of the quantized model. Measurements of the model before quantization are dropped.
        weights: digest of the quantized weights.
        changed: whether the model was changed between its compression and its quantization, for instance by training.
    """

    scheme: str
    costs: Costs
    weights: str
    changed: bool = False

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Renew the report in `folder`, and the card made of it."""
        before = CompressionReport.load(folder)
        known = replace(before, evaluation=None, latency=[])
        # As many multiplications as before, of images of the size that was calibrated with.
        costs = replace(self.costs, macs=known.compressed.macs)
        report = replace(known, compressed=costs, quantization=self.scheme)
        report = report.beside(self.weights) if self.changed else replace(report, weights=self.weights).beside(None)
        report.save(folder)
        write_card(folder, report)


def quantize(
    model: str | Path | PreTrainedModel, scheme: str = "int8_weight_only", accelerator: Accelerator | None = None
) -> PreTrainedModel:
    """Store the weights of the linear layers as 8-bit integers, with one scale for each output feature.

    Args:
        model: compressed or dense; a folder, a Hub id or a loaded model, which is left as it was.
        scheme: `int8_weight_only` multiplies in the model's dtype. `int8_dynamic` also rounds the inputs of each layer,
            with one scale for each token, and multiplies integers.
        accelerator: places a model that this function loads on its device.

    Returns:
        a model of the same class, in evaluation mode. `save_pretrained` also writes what lies beside `model`: image
        processor, tokenizer, licence, and of a compressed model recipe, plan and report. `from_pretrained` loads it
        wherever torchao is installed.

    Raises:
        QuantizationError: the scheme is unknown, torchao is missing, or the folder is quantized already.
        UnsupportedModelError: the model cannot be loaded; or it is quantized already, or has adapters.
    """
    quantization_config = _quantization_config(scheme)
    if isinstance(model, str | Path):
        return _load_quantized(model, scheme, quantization_config, accelerator)
    check_model(model)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        quantized = _load_quantized(folder, scheme, quantization_config, accelerator)
    if not is_factored(model):
        give_companions(quantized, used_companions(model))
    quantized.set_attn_implementation(attention_implementations(model))
    quantized.name_or_path = quantized.config.name_or_path = model.config.name_or_path
    return cast(Any, quantized).to(model.device)


def _quantization_config(scheme: str) -> TorchAoConfig:
    scheme = scheme.replace("-", "_")  # as the command line writes them
    if scheme not in SCHEMES:
        raise QuantizationError(f"The scheme {scheme!r} is unknown. Choose one of {', '.join(SCHEMES)}.")
    if not is_torchao_available():
        raise QuantizationError(f"Quantization needs torchao {TORCHAO_MIN_VERSION} or newer: `pip install torchao`.")
    try:
        return TorchAoConfig(getattr(importlib.import_module("torchao.quantization"), SCHEMES[scheme])())
    except (ImportError, OSError, AttributeError) as error:  # made for another torch, or without this scheme
        raise QuantizationError(
            f"The installed torchao does not work here ({one_line(error)}): `pip install --upgrade torchao`, in the "
            "version that is made for the installed torch."
        ) from error


def _load_quantized(
    name: str | Path, scheme: str, quantization_config: TorchAoConfig, accelerator: Accelerator | None
) -> PreTrainedModel:
    """The folder or Hub repository `name`, quantized while it is loaded."""
    model = load_model(name, accelerator, quantization_config)
    if not is_factored(model):
        give_companions(model, used_companions(model))
        return model
    files = files_at_hand(model)
    cast(Any, model).companions = [*files]
    for content in (saved.files[REPORT_FILE] for saved in files if REPORT_FILE in saved.files):
        before = CompressionReport.parse(content)
        now = folder_digest(name) if Path(name).is_dir() else before.later_weights
        costs = count_costs(compressed_part(model, model).model)  # what the report's other figures are of
        changed = before.beside(now).later_weights is not None
        cast(Any, model).companions.append(QuantizationRecord(scheme, costs, model_digest(model), changed))
    return model

"""`vitcompress profile`, and the flag that takes its file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import CompressionConfig
from ..runtime.text import printable
from .checks import MODEL, check_renewal
from .options import Quiet, silence_libraries
from .recipe import with_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..profiling.profile import LatencyProfile

ProfileFile = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        help="Latency profile of this model and device, written by `vitcompress profile`, for --speedup and "
        "--max-latency-ms; measured again where it is not given.",
    ),
]


@with_settings("latency_batch_size", "target", "target_modules", "skip_modules", "attention", "mlp", "rank_multiple")
def profile_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Dense model: a Hub id or a folder.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="JSON file for the profile.")],
    config: CompressionConfig,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier profile in OUTPUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure how long what MODEL runs takes on this device, for budgets of time; a minute or less.

    Example: vitcompress profile my-vit my-vit.profile.json
    """
    from ..compressor import ViTCompressor
    from ..planning.profiles import profile_of
    from ..profiling.profile import is_profile
    from ..report.tables import show, table
    from ..runtime.distributed import local_work

    if quiet:
        silence_libraries()
    compressor = ViTCompressor(config, progress=not quiet)
    with local_work(compressor.accelerator, "The start"):
        check_renewal(output, {MODEL: model}, overwrite, "latency profile", is_profile)
        subject = compressor.open(model)
    profile = profile_of(subject, compressor.run)
    if not compressor.accelerator.is_main_process:
        return
    profile.save(output)
    found = profile.conditions
    title = f"{type(subject.model).__name__}, batch {found.batch_size}, {found.precision}"
    rows = _rows(subject.model, config, profile)
    show(table(("what", "ms", "ms at half the MACs"), rows, title=f"{title}, {found.device}"))
    print(f"saved to {printable(str(output))}")


def _rows(model: "PreTrainedModel", config: CompressionConfig, profile: "LatencyProfile") -> list[tuple[str, ...]]:
    """The whole model and each kind of layer once, whole and factored at half its multiplications."""
    from ..architectures.layers import find_layers
    from ..planning.profiles import tokens_of
    from ..profiling.operations import Product

    layers = find_layers(model, config.target_modules, config.skip_modules)
    tokens = tokens_of(model, layers, profile.conditions.image_shape)
    roles: dict[Product, list[str]] = {}
    for layer in layers:
        product = Product(tokens[layer.input_name], layer.in_features, layer.out_features)
        roles.setdefault(product, []).append(layer.role)
    rows: list[tuple[str, ...]] = [("the dense model", f"{1000 * profile.dense:.3f}", "")]
    for product, own in roles.items():
        kept, inputs, outputs = product
        rank = max(1, inputs * outputs // (2 * (inputs + outputs)))
        pair = sum(profile.seconds(half) for half in (Product(kept, inputs, rank), Product(kept, rank, outputs)))
        name = f"{', '.join(dict.fromkeys(own))}: {inputs} → {outputs}, {kept} tokens"
        rows.append((name, f"{1000 * profile.seconds(product):.3f}", f"{1000 * pair:.3f} (rank {rank})"))
    return rows

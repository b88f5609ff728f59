"""The terminal: `vitcompress compress | inspect | plan | evaluate`.

The flags of a recipe are made from the fields and the documentation of `CompressionConfig`; there is no second list.
"""

import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from .config import BUDGETS, PRESETS, CompressionConfig, load_settings
from .errors import ConfigError, DistributedError, VitCompressError

if TYPE_CHECKING:
    from .compressor import ViTCompressor

app = typer.Typer(
    help="Compress Vision Transformers of transformers, and get transformers models back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # tables would cut off the names of long flags
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Dense model: a Hub id or a folder.")]
Data = Annotated[
    str | None,
    typer.Option("--data", help="Calibration images: a folder, a parquet file or a Hub data set. Labels are not used."),
]
StatisticsFile = Annotated[
    Path | None,
    typer.Option(
        "--statistics",
        help="File for what calibration measures. Continued or used again where it exists, so that another budget "
        "takes seconds and an interrupted run loses nothing.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for every field of `CompressionConfig`, and pass it the config they make.

    Flags win over `--config`, which wins over `--preset`.
    """
    hints = get_type_hints(CompressionConfig)
    documentation = _field_documentation()
    options: list[inspect.Parameter] = [
        _option("config_file", Path | None, "--config", "YAML or JSON file of settings; flags win over it.", "Recipe"),
        _option("preset", str | None, "--preset", f"Named recipe: {', '.join(PRESETS)}.", "Recipe"),
    ]
    for field in fields(CompressionConfig):
        name = "--" + field.name.replace("_", "-")
        names = f"{name}/--no-{name[2:]}" if hints[field.name] is bool else name
        help_text = documentation[field.name]
        if field.default not in (None, inspect.Parameter.empty) and isinstance(field.default, str | int | float):
            help_text += f" Default: {field.default}."
        options.append(_option(field.name, hints[field.name] | None, names, help_text, "Recipe"))

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        flags = {field.name: arguments.pop(field.name) for field in fields(CompressionConfig)}
        file, preset = arguments.pop("config_file"), arguments.pop("preset")
        settings = {} if file is None else load_settings(file)
        if preset is not None:
            settings["preset"] = preset
        if any(flags[name] is not None for name in BUDGETS):
            settings = {name: value for name, value in settings.items() if name not in BUDGETS}
        given = {name: value for name, value in flags.items() if value is not None and value != []}
        command(config=CompressionConfig.from_dict({**settings, **given}), **arguments)

    own = [p for p in inspect.signature(command).parameters.values() if p.name != "config"]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*own, *options]]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _option(name: str, kind: Any, flag: str, help_text: str, panel: str) -> inspect.Parameter:
    annotation = Annotated[kind, typer.Option(flag, help=help_text, rich_help_panel=panel, show_default=False)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _field_documentation() -> dict[str, str]:
    """Field name → its paragraph in the docstring of `CompressionConfig`."""
    text = inspect.cleandoc(CompressionConfig.__doc__ or "").split("Attributes:\n")[1]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, flags=re.MULTILINE)
    return {name: re.sub(r"\s+", " ", body).replace("`", "") for name, body in entries}


@app.command()
@with_recipe
def compress(
    model: Model,
    config: CompressionConfig,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the compressed model.")],
    data: Data = None,
    statistics: StatisticsFile = None,
    plan: Annotated[Path | None, typer.Option(help="Use this plan (JSON, maybe edited) instead of planning.")] = None,
    validation: Annotated[str | None, typer.Option(help="Images to search --max-accuracy-drop on.")] = None,
    test: Annotated[str | None, typer.Option(help="Images to judge the result on, against MODEL.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it exists.")] = False,
    quiet: Quiet = False,
) -> None:
    """Compress MODEL to a budget and save it as an ordinary transformers model.

    Example: vitcompress compress facebook/deit-base-patch16-224 --data photos/ --keep-ratio 0.4 --output deit-40
    """
    from rich.console import Console

    from .distribution import local_work
    from .evaluation import evaluate_model
    from .files import atomic_path, check_new_folder
    from .planning import CompressionPlan

    compressor = _compressor(config, quiet)
    accelerator = compressor.accelerator
    # Kept beside the output until that is complete, so that the same command goes on after an interruption.
    folder_name = Path(os.path.abspath(output))
    checkpoint = statistics or folder_name.with_name(f".{folder_name.name}.calibration.safetensors")
    with local_work(accelerator, "The start"):
        check_new_folder(output, overwrite)
        given_plan = None if plan is None else CompressionPlan.load(plan)
        dense = compressor.load(model)
        known = _known_statistics(statistics) if data is None else None
    small = compressor.compress(
        dense, data, validation=validation, statistics=known, plan=given_plan, checkpoint=checkpoint
    )
    assert compressor.report is not None
    if test is not None:
        with local_work(accelerator, "Opening the test images"):
            images = compressor.open_images(test, dense)
        compressor.report.evaluation = evaluate_model(
            small,
            images,
            compressor.image_processor,
            dense,
            precision=config.precision,
            progress=not quiet,
            accelerator=accelerator,
        )
    with local_work(accelerator, "Saving"):
        if accelerator.is_main_process:
            with atomic_path(output, folder=True) as folder:
                small.save_pretrained(folder)
            for file in compressor.checkpoints if statistics else [*compressor.checkpoints, checkpoint]:
                file.unlink(missing_ok=True)
            Console().print(compressor.report.render())
            Console().print(f"saved to {output}")


@app.command("inspect")
@with_recipe
def inspect_model(
    model: Model,
    config: CompressionConfig,
    data: Data = None,
    statistics: StatisticsFile = None,
    figure: Annotated[
        Path | None, typer.Option(help="PNG of loss over budgets and of what is left of each part.")
    ] = Path("inspection.png"),
    quiet: Quiet = False,
) -> None:
    """Show the loss to expect over budgets and by part, from one calibration, without compressing.

    Example: vitcompress inspect my-vit --data photos/ --statistics my-vit.safetensors
    """
    from rich.console import Console

    from .distribution import local_work
    from .plots import compression_figure, save_figure
    from .report import table

    compressor = _compressor(config, quiet)
    with local_work(compressor.accelerator, "The start"):
        dense = compressor.load(model)
        known = _known_statistics(statistics) if data is None else None
    known = known or compressor.calibrate(dense, data, statistics)
    plan = compressor.plan(dense, known)
    if not compressor.accelerator.is_main_process:
        return
    prepared = compressor.prepare(dense, known)
    parts, curve = prepared.part_reports(plan), prepared.budget_curve(config)
    console = Console()
    rows = [(f"{ratio:.2f}", f"{loss:.4f}") for ratio, loss in curve]
    console.print(table(("keep ratio", "predicted KL"), rows, title="over budgets"))
    by_part = [
        (
            part.name,
            part.kept,
            f"{part.parameters / part.dense_parameters:.0%}",
            "" if part.predicted_loss is None else f"{part.predicted_loss:.2e}",
        )
        for part in parts
    ]
    title = f"{type(dense).__name__} at keep ratio {plan.keep_ratio:.3f}"
    console.print(table(("part", "what is left", "kept", "predicted KL"), by_part, title=title))
    if figure is not None:
        point = None if plan.predicted_loss is None else (plan.keep_ratio or 0.0, plan.predicted_loss)
        save_figure(compression_figure(title, parts, curve, point), figure)
        console.print(f"figure in {figure}")


@app.command("plan")
@with_recipe
def plan_budget(
    model: Model,
    config: CompressionConfig,
    statistics: Annotated[Path, typer.Option("--statistics", help="File written by compress or inspect.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file; by default it is printed.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Images to compensate candidates on, where asked.")] = None,
    validation: Annotated[str | None, typer.Option(help="Images to search --max-accuracy-drop on.")] = None,
    quiet: Quiet = False,
) -> None:
    """Make a plan from saved statistics: JSON that can be edited and given to compress --plan.

    Example: vitcompress plan my-vit --statistics my-vit.safetensors --keep-ratio 0.3 --output plan.json
    """
    from .distribution import local_work

    compressor = _compressor(config, quiet)
    with local_work(compressor.accelerator, "The start"):
        dense, known = compressor.load(model), _known_statistics(statistics)
    plan = compressor.plan(dense, known, validation, data)
    if not compressor.accelerator.is_main_process:
        return
    if output is None:
        print(plan.to_json(), end="")
    else:
        plan.save(output)
        print(f"predicted KL {plan.predicted_loss}, keep ratio {plan.keep_ratio:.4f}, saved to {output}")


@app.command("evaluate")
def evaluate_checkpoint(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model to judge: a Hub id or a folder.")],
    data: Annotated[str, typer.Option("--data", help="Test images: a folder, a parquet file or a Hub data set.")],
    against: Annotated[str | None, typer.Option(help="Dense model to compare with.")] = None,
    latency: Annotated[bool, typer.Option("--latency", help="Time both models, alternately.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch, also for --latency.")] = 32,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or auto.")] = "float32",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
    quiet: Quiet = False,
) -> None:
    """Judge a model: accuracy with its interval, and against a dense model agreement, KL, size and speed.

    Example: vitcompress evaluate deit-40 --data test/ --against facebook/deit-base-patch16-224 --latency
    """
    from rich.console import Console

    from .comparison import compare_checkpoints
    from .distribution import new_accelerator

    if quiet:
        _silence_libraries()
    rendered, figures = compare_checkpoints(model, data, against, latency, batch_size, precision, not quiet)
    if not new_accelerator().is_main_process:
        return
    Console().print(rendered)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(figures), indent=2) + "\n", encoding="utf-8")


def _compressor(config: CompressionConfig, quiet: bool) -> "ViTCompressor":
    from .compressor import ViTCompressor

    if quiet:
        _silence_libraries()
    return ViTCompressor(config, progress=not quiet)


def _silence_libraries() -> None:
    """The bars of the libraries that load models and images; for the rest of the process, which ends with us."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()


def _known_statistics(path: Path | None) -> Any:
    from .statistics import Statistics

    if path is None:
        raise ConfigError("Give calibration images (--data), or --statistics with a file of an earlier calibration.")
    return Statistics.load(path)


def main() -> None:
    """Entry point: errors of the package end in one line on stderr and exit status 1."""
    try:
        app()
    except VitCompressError as error:
        # Every process started by `accelerate launch` comes here; what all of them see is said by the main one, and
        # what one of them sees has been told to it. Only that a process has gone is for each of the others to say.
        is_main = os.environ.get("RANK", "0") == "0"
        if is_main or (isinstance(error, DistributedError) and not error.reported):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:  # how typer ends on Ctrl-C
            print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()

"""`vitcompress compress | inspect | plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import CompressionConfig
from ..errors import ConfigError
from ..runtime.text import printable
from .checks import MODEL, check_inspection, check_renewal, check_use_of
from .data_options import options_beside, with_data_options
from .ending import goes_on_from
from .help import IMAGES_PANEL
from .judging import judge, judging_images, saved_unjudged
from .options import Quiet, say_stale_programs, silence_libraries
from .profiling import ProfileFile
from .recipe import with_recipe

if TYPE_CHECKING:
    from ..architectures.subject import Subject
    from ..compressor import ViTCompressor
    from ..images.images import ImageSource
    from ..images.options import DataOptions
    from ..planning.plan import CompressionPlan

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Dense model: a Hub id or a folder.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Calibration images: a folder, a parquet file or a Hub data set. Labels are not used.",
        rich_help_panel=IMAGES_PANEL,
    ),
]
Validation = Annotated[
    str | None, typer.Option(help="Images to search --max-accuracy-drop on.", rich_help_panel=IMAGES_PANEL)
]
IMAGES = "the images (--data)"
"""What errors call them."""
StatisticsFile = Annotated[
    Path | None,
    typer.Option(
        "--statistics",
        help="File for what calibration measures. Continued or used again where it exists, so that another budget "
        "takes seconds and an interrupted run loses nothing.",
    ),
]


@with_recipe
@with_data_options("train, or the first")
def compress(
    context: typer.Context,
    model: Model,
    config: CompressionConfig,
    options: "DataOptions",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the compressed model.")],
    data: Data = None,
    statistics: StatisticsFile = None,
    profile: ProfileFile = None,
    plan: Annotated[Path | None, typer.Option(help="Use this plan (JSON, maybe edited) instead of planning.")] = None,
    validation: Validation = None,
    test: Annotated[
        str | None, typer.Option(help="Images to judge the result on, against MODEL.", rich_help_panel=IMAGES_PANEL)
    ] = None,
    latency: Annotated[bool, typer.Option("--latency", help="Time both models, alternately.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in OUTPUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Compress MODEL to a budget and save it as an ordinary transformers model.

    Example: vitcompress compress facebook/deit-base-patch16-224 --data photos/ --keep-ratio 0.4 --output deit-40
    """
    from ..images.options import TESTING, VALIDATION
    from ..planning.plan import CompressionPlan
    from ..report.tables import show
    from ..runtime.checkpoints import remove_checkpoints
    from ..runtime.distributed import local_work
    from ..runtime.files import real_path
    from ..runtime.outputs import reserved, work_path
    from ..statistics.statistics import Statistics

    check_use_of(validation, config)
    # Kept beside the output until that is complete, so that the same command goes on after an interruption.
    beside = work_path(output, ".calibration.safetensors")
    checkpoint = statistics or beside
    goes_on_from(checkpoint)
    compressor = _compressor(config, quiet, profile)
    accelerator = compressor.accelerator
    inputs = {
        MODEL: model,
        IMAGES: data,
        "the statistics (--statistics)": statistics,
        "the profile (--profile)": profile,
        "the plan (--plan)": plan,
        "the validation images (--validation)": validation,
        "the test images (--test)": test,
    }
    with local_work(accelerator, "The start"):
        given_plan = None if plan is None else CompressionPlan.load(plan)
        if statistics is not None:
            _check_statistics(statistics, model, data)
        if accelerator.is_main_process:
            kept = reserved(output, "overwrite" if overwrite else "new", inputs)
            place = context.with_resource(kept)
        images = _opened(compressor, data, options, compressor.run.images_wanted)
        held_out = _opened(compressor, validation, options_beside(options, validation == data, VALIDATION))
        test_images = _opened(compressor, test, options_beside(options, test == data, TESTING))
        subject = compressor.open(model)
        test_images = judging_images(test_images, subject)
        known = _known_statistics(statistics) if data is None else None
    small = compressor.compress(
        subject, images, validation=held_out, statistics=known, plan=given_plan, checkpoint=checkpoint
    )
    assert compressor.report is not None
    shape = (known or compressor.statistics or Statistics()).image_shape
    failure = judge(compressor, small, subject, test_images, shape, latency)
    with local_work(accelerator, "Saving"):
        if accelerator.is_main_process:
            with place.replaced() as folder:
                small.save_pretrained(folder)
            goes_on_from(None)
            for file in compressor.checkpoints:
                file.unlink(missing_ok=True)
            if statistics is None or real_path(statistics) != beside:
                remove_checkpoints(beside)
            show(compressor.report.render())
            print(f"saved to {printable(str(output))}")
            say_stale_programs(place.path)
        if failure is not None:
            raise saved_unjudged(output, failure) from failure


@with_recipe
@with_data_options("train, or the first")
def inspect_model(
    model: Model,
    config: CompressionConfig,
    options: "DataOptions",
    data: Data = None,
    statistics: StatisticsFile = None,
    profile: ProfileFile = None,
    figure: Annotated[
        Path | None, typer.Option(help="PNG of loss over budgets and of what is left of each part.")
    ] = Path("inspection.png"),
    quiet: Quiet = False,
) -> None:
    """Show the loss to expect over budgets and by part, from one calibration, without compressing.

    With --profile, or a budget of time, losses over latencies as well.

    Example: vitcompress inspect my-vit --data photos/ --statistics my-vit.safetensors
    """
    from ..planning.curves import latency_curve, point_of
    from ..planning.foresight import within_reach
    from ..planning.profiles import check_profile, profile_of
    from ..report.figures import check_figure, compression_figure, is_our_figure, save_figure
    from ..report.report import group_reports
    from ..report.tables import PartsTable, show, table
    from ..runtime.distributed import local_work
    from ..runtime.files import check_file
    from ..runtime.text import loss_text

    check_inspection(config)
    goes_on_from(statistics)
    compressor = _compressor(config, quiet, profile)
    with local_work(compressor.accelerator, "The start"):
        if statistics is not None:
            _check_statistics(statistics, model, data)
        if figure is not None:
            check_figure(figure)
            inputs = {
                MODEL: model,
                IMAGES: data,
                "the statistics (--statistics)": statistics,
                "the profile (--profile)": profile,
            }
            check_file(figure, inputs, beside=(MODEL,), renews=is_our_figure)
        images = _opened(compressor, data, options, compressor.run.images_wanted)
        subject = compressor.open(model)
        known = _known_statistics(statistics) if data is None else None
        if compressor.profile is not None:
            check_profile(subject, config, compressor.profile)
        config = within_reach(subject, config)
    compressor = _compressor(config, quiet, profile)
    known = known or compressor.calibrate(subject, images, statistics)
    plan = compressor.plan(subject, known)
    planner = compressor.planner(subject, known)
    clocked = compressor.profile and profile_of(subject, compressor.run, compressor.profile, planner.image_shape)
    if not compressor.accelerator.is_main_process:
        return
    parts, curve = group_reports(planner, plan), planner.budget_curve(config)
    timed = [] if clocked is None else latency_curve(planner, config, clocked, plan)
    rows = [(f"{ratio:.2f}", loss_text(loss)) for ratio, loss in curve]
    show(table(("keep ratio", "predicted KL"), rows, title="over budgets"))
    if clocked is not None:
        over_time = [(f"{one.speedup:.2f}", f"{one.milliseconds:.3g}", loss_text(one.loss)) for one in timed]
        title = f"over latencies, batch {clocked.conditions.batch_size} (dense {1000 * clocked.dense:.3g} ms)"
        show(table(("predicted speed-up", "ms", "predicted KL"), over_time, title=title))
    title = _title(subject, plan)
    show(PartsTable(parts, title))
    _tell_latency(plan)
    if figure is not None:
        point = None if plan.predicted_loss is None else (plan.keep_ratio or 0.0, plan.predicted_loss)
        over_time_too = [(one.milliseconds, one.loss) for one in timed], point_of(plan, timed)
        save_figure(compression_figure(title, parts, curve, point, (), *over_time_too), figure)
        print(f"figure in {printable(str(figure))}")


@with_recipe
@with_data_options("train, or the first")
def plan_budget(
    model: Model,
    config: CompressionConfig,
    options: "DataOptions",
    statistics: Annotated[Path, typer.Option("--statistics", help="File written by compress or inspect.")],
    profile: ProfileFile = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file; by default it is printed.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Images to compensate candidates on, where asked.", rich_help_panel=IMAGES_PANEL),
    ] = None,
    validation: Validation = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier plan in OUTPUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Make a plan from saved statistics: JSON that can be edited and given to compress --plan.

    Example: vitcompress plan my-vit --statistics my-vit.safetensors --keep-ratio 0.3 --output plan.json
    """
    from ..images.options import VALIDATION
    from ..planning.plan import is_plan
    from ..planning.profiles import check_profile
    from ..report.report import group_reports
    from ..report.tables import PartsTable, show
    from ..runtime.distributed import local_work
    from ..runtime.text import loss_text

    check_use_of(validation, config)
    compressor = _compressor(config, quiet, profile)
    with local_work(compressor.accelerator, "The start"):
        if output is not None:
            inputs = {
                MODEL: model,
                IMAGES: data,
                "the statistics (--statistics)": statistics,
                "the profile (--profile)": profile,
                "the validation images (--validation)": validation,
            }
            check_renewal(output, inputs, overwrite, "plan", is_plan)
        images = _opened(compressor, data, options, compressor.run.images_wanted)
        held_out = _opened(compressor, validation, options_beside(options, validation == data, VALIDATION))
        subject, known = compressor.open(model), _known_statistics(statistics)
        if compressor.profile is not None:
            check_profile(subject, config, compressor.profile)
    plan = compressor.plan(subject, known, held_out, images)
    if not compressor.accelerator.is_main_process:
        return
    if output is None:
        print(plan.to_json(), end="")
    else:
        plan.save(output)
        parts = group_reports(compressor.planner(subject, known), plan)
        show(PartsTable(parts, _title(subject, plan)))
        if plan.predicted_loss is not None:
            print(f"predicted KL {loss_text(plan.predicted_loss, plan.predicted_interval)}")
        if plan.search is not None:
            print(f"{plan.search.name}: {plan.search.amount}")
        _tell_latency(plan)
        print(f"saved to {printable(str(output))}")


def _compressor(config: CompressionConfig, quiet: bool, profile: Path | None) -> "ViTCompressor":
    from ..compressor import ViTCompressor
    from ..profiling.profile import LatencyProfile

    if quiet:
        silence_libraries()
    known = None if profile is None else LatencyProfile.load(profile)
    return ViTCompressor(config, progress=not quiet, profile=known)


def _tell_latency(plan: "CompressionPlan") -> None:
    """What became of a budget of time."""
    if plan.latency is not None:
        print(f"{plan.latency.name}: {plan.latency.amount} ({plan.latency.origin})")


def _title(subject: "Subject", plan: "CompressionPlan") -> str:
    """Which model, the budgets that were asked for, and what is left."""
    asked = (
        f"{name.replace('_', ' ')} {f'{value:,}' if isinstance(value, int) else f'{value:.4g}'}"
        for name, value in plan.budget.items()
    )
    return f"{type(subject.model).__name__} for {', '.join(asked)}: {plan.keep_ratio:.1%} of the parameters kept"


def _opened(
    compressor: "ViTCompressor", data: str | None, options: "DataOptions", limit: int | None = None
) -> "ImageSource | None":
    """The images of a flag, which is looked at before the model is loaded."""
    return None if data is None else compressor.open_images(data, limit=limit, options=options)


def _check_statistics(file: Path, model: str, data: str | None) -> None:
    """That calibration can write its file; one that is there is read first, which refuses anything else."""
    from ..runtime.files import check_file

    check_file(file, {MODEL: model, IMAGES: data}, beside=(MODEL,), renews=lambda _: True)


def _known_statistics(path: Path | None) -> Any:
    from ..statistics.statistics import Statistics

    if path is None:
        raise ConfigError("Give calibration images (--data), or --statistics with a file of an earlier calibration.")
    return Statistics.load(path)

"""Learned importance scores: how they spread while they are learned, and what pruning by them costs.

Scores are learned from calibration images for `--minutes`; then the model is pruned at two keep ratios by these scores,
by magnitude and by this package's own criterion, feed-forward layers only and without any repair or training, so that
the difference is which neurons go. The test images are for the figures. Writes gates.json, .md and .png to
benchmarks/results/.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, environment, markdown_table, parser, write_json
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.evaluation.evaluation import judge, model_outputs
from hf_vitcompress.importance.learning import learn_gates
from hf_vitcompress.importance.report import HALF, NEAR_ZERO, GateLayer, GatePoint, GateReport
from hf_vitcompress.report.figures import save_figure

KEEP_RATIOS = (0.8, 0.7)
# How neurons are chosen, and whether the others are solved again for it.
WAYS: dict[str, dict[str, Any]] = {
    "learned scores": {"criterion": "gates"},
    "magnitude": {"criterion": "magnitude"},
    "Fisher": {"criterion": "fisher", "metric": "fisher"},
    "learned scores, repaired": {"criterion": "gates", "metric": "fisher", "repair": True, "correct_bias": True},
    "Fisher, repaired": {"criterion": "fisher", "metric": "fisher", "repair": True, "correct_bias": True},
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--l1", type=float)
    arguments = options.parse_args()

    given = {} if arguments.l1 is None else {"gate_l1": arguments.l1}
    config = CompressionConfig.preset(
        "vtp",
        attention="none",
        compensation="none",
        measuring_images=0,
        rank_multiple=1,
        gate_duration=f"{arguments.minutes} minutes",
        seed=arguments.seed,
        **given,
    )
    probe = ViTCompressor(config, progress=False)
    subject = probe.open(arguments.model)
    images = probe.open_images(arguments.calibration, subject)
    learned = learn_gates(subject, images.sample(config.num_images, config.seed), probe.run)
    content: dict[str, Any] = {
        "model": Path(arguments.model).name,
        "calibration": Path(arguments.calibration).name,
        "test": Path(arguments.test).name,
        "seed": arguments.seed,
        "minutes": arguments.minutes,
        "environment": environment(),
        "gates": asdict(learned.report),
        "scores": {name: [round(value, 4) for value in own.tolist()] for name, own in learned.scores.items()},
        "results": [],
    }
    write(content)
    test = list(probe.open_images(arguments.test, subject).batches(subject.processor, 64))
    reference, labels = model_outputs(subject, test, "bfloat16")
    content["test_images"] = sum(len(batch.pixel_values) for batch in test)
    statistics: dict[str, Any] = {}
    for name, settings in WAYS.items():
        for keep_ratio in KEEP_RATIOS:
            values = {**config.to_dict(), **settings, "keep_ratio": keep_ratio}
            compressor = ViTCompressor(CompressionConfig.from_dict(values), progress=False, importance=learned.scores)
            metric = compressor.config.metric
            if metric not in statistics:
                statistics[metric] = compressor.calibrate(subject, arguments.calibration)
            small = compressor.compress(subject, statistics=statistics[metric])
            outputs, _ = model_outputs(subject.like(small), test, "bfloat16")
            assert compressor.report is not None
            content["results"].append(
                {
                    "name": name,
                    "keep_ratio": compressor.report.keep_ratio,
                    **asdict(judge(outputs, reference, labels, classes=True)),
                }
            )
            print(row(content["results"][-1]), flush=True)
            write(content)


def row(result: dict[str, Any]) -> list[str]:
    drop, agreement, kl = (result[k] for k in ("top1_drop", "agreement", "kl"))
    return [
        result["name"],
        f"{result['keep_ratio']:.3f}",
        f"{kl['value']:.4f} ({kl['low']:.4f} to {kl['high']:.4f})",
        f"{agreement['value']:.2%}",
        f"{100 * drop['value']:.2f} ({100 * drop['low']:.2f} to {100 * drop['high']:.2f})",
    ]


def report_of(content: dict[str, Any]) -> GateReport:
    saved = content["gates"]
    points = [GatePoint(**point) for point in saved["points"]]
    return GateReport(**{**saved, "points": points, "layers": [GateLayer(**layer) for layer in saved["layers"]]})


def markdown(content: dict[str, Any]) -> str:
    report = report_of(content)
    last = report.points[-1]
    text = (
        f"# Learned importance scores\n\n{content['model']}; scores of the neurons of every feed-forward layer, "
        f"learned for {report.seconds / 60:.1f} min ({last.step} steps) from {report.images} images of "
        f"{content['calibration']} (seed {content['seed']}, {content['environment']['threads']} threads), l1 "
        f"{report.l1:g}, learning rate {report.learning_rate:g}. At the end {last.near_zero:.1%} of the scores are "
        f"below 0.1 and {last.below_half:.1%} below 0.5, at a KL of {last.loss:.4f} from the dense model on these "
        "images.\n\n"
        "![Sparsity over seconds, by layer, and all scores](gates.png)\n\n"
    )
    by_layer = [
        [layer.name, f"{layer.mean:.3f}", f"{layer.near_zero:.1%}", f"{layer.below_half:.1%}"]
        for layer in report.layers
    ]
    text += markdown_table(("layer", "mean score", "below 0.1", "below 0.5"), by_layer)
    if content["results"]:
        header = ("neurons chosen by", "kept", "KL to dense", "agreement", "top-1 drop, points")
        text += (
            "\nFeed-forward layers pruned alike in every block and nothing trained; "
            f"{content['test_images']} images of {content['test']}, bfloat16 autocast; "
            "intervals are 95 %, of the drop paired.\n\n"
            + markdown_table(header, [row(result) for result in content["results"]])
        )
    return text


def figure(content: dict[str, Any]) -> Figure:
    report = report_of(content)
    picture = Figure(figsize=(15, 4.5), layout="constrained")
    course, layers, sizes = picture.subplots(1, 3)
    sparsity_over_seconds(course, report.points)
    sparsity_by_layer(layers, report.layers)
    spread(sizes, torch.tensor([value for own in content["scores"].values() for value in own]))
    picture.suptitle(f"{content['model']}: scores after {report.seconds / 60:.1f} min")
    return picture


def sparsity_over_seconds(axes: Axes, points: Sequence[GatePoint]) -> None:
    """Shares of small scores over the seconds of learning; on a second axis the loss beside the penalty."""
    seconds = [point.seconds for point in points]
    axes.plot(seconds, [point.below_half for point in points], marker=".", label=f"scores below {HALF}")
    axes.plot(seconds, [point.near_zero for point in points], marker=".", label=f"scores below {NEAR_ZERO}")
    axes.set(xlabel="seconds of learning", ylabel="share of all scores", ylim=(0, 1), title="sparsity")
    axes.grid(alpha=0.3)
    losses = axes.twinx()
    losses.plot(seconds, [point.loss for point in points], color="C3", linewidth=1, label="loss (right)")
    losses.set_ylabel("divergence from the dense model (nats)")
    losses.set_ylim(bottom=0)
    lines = [*axes.get_lines(), *losses.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], frameon=False)


def sparsity_by_layer(axes: Axes, layers: Sequence[GateLayer]) -> None:
    """Shares of small scores in each layer, in the model's order."""
    places = range(len(layers))
    axes.bar(places, [layer.below_half for layer in layers], color="C0", label=f"below {HALF}")
    axes.bar(places, [layer.near_zero for layer in layers], color="C1", label=f"below {NEAR_ZERO}")
    axes.set_xticks(places, [short(layer.name) for layer in layers], rotation=90, fontsize=7)
    axes.set(ylabel="share of the layer's scores", ylim=(0, 1), title="by layer")
    axes.legend(framealpha=0.8)


def spread(axes: Axes, scores: Tensor) -> None:
    """Histogram of the sizes of scores (n,)."""
    axes.hist(scores.abs().numpy(), bins=50, range=(0, max(1.2, float(scores.abs().max()))))
    axes.set(xlabel="size of the score", ylabel="features", yscale="log", title="scores")


def short(name: str) -> str:
    """`3 fc2` for `vit.layers.3.mlp.fc2`."""
    parts = name.split(".")
    return " ".join([next((part for part in parts if part.isdigit()), ""), parts[-1]]).strip()


def write(content: dict[str, Any]) -> None:
    write_json("gates.json", content)
    (RESULTS / "gates.md").write_text(markdown(content), encoding="utf-8")
    save_figure(figure(content), RESULTS / "gates.png")


if __name__ == "__main__":
    main()

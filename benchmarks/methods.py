"""Pruning alone, low rank alone, the hybrid of Kumar (arXiv 2203.13444), and the planner's own choice, side by side.

At equal parameters (keep ratios 0.5 and 0.56): closed form alone, and after the same minutes of distillation. At equal
latency (0.6 of the dense model's, measured, batch 32, float32): closed form alone. All methods plan from one
calibration. Writes methods.json and .md to benchmarks/results after every run, and goes on from there. Timings want a
machine that does nothing else.
"""

import argparse
import json
from dataclasses import asdict
from typing import Any

from common import RESULTS, markdown_table, measured_on, parser, write_json
from torch import Tensor

from hf_vitcompress import CompressionConfig, Statistics, ViTCompressor
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.evaluation.evaluation import judge, model_outputs
from hf_vitcompress.evaluation.latency import measure_latency
from hf_vitcompress.images.images import Batch

METHODS: dict[str, dict[str, Any]] = {
    "pruning alone": {"attention": "prune", "mlp": "prune"},
    "hybrid": {"attention": "low_rank", "mlp": "prune"},
    "low rank alone": {"attention": "low_rank", "mlp": "low_rank"},
    "auto (default)": {},
}
MINUTES = 5.0
KEEP_RATIOS = (0.5, 0.56)
LATENCY = 0.6
AROUND = (0.45, 0.65)
"""Keep ratios whose latency is measured first."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=MINUTES, help="of distillation; 0 for none")
    options.add_argument("--statistics", help="of an earlier calibration")
    options.add_argument("--at-latency", nargs="*", type=float, help="keep ratios of that latency, by method, if known")
    arguments = options.parse_args()

    compressor = ViTCompressor(CompressionConfig(seed=arguments.seed, measuring_images=0), progress=False)
    subject = compressor.open(arguments.model)
    statistics = (
        Statistics.load(arguments.statistics)
        if arguments.statistics
        else compressor.calibrate(subject, arguments.calibration)
    )
    batches = list(compressor.open_images(arguments.test, subject).batches(subject.processor, 64))
    reference, labels = model_outputs(subject, batches, "bfloat16")
    content: dict[str, Any] = {
        **measured_on(arguments, batches),
        "calibration_images": statistics.images,
        "minutes": MINUTES,
        "results": earlier_results(),
    }
    done = {(result["setting"], result["method"]) for result in content["results"]}
    settings: list[tuple[str, float | None]] = [(f"keep ratio {ratio}", ratio) for ratio in KEEP_RATIOS]
    settings.append((f"latency {LATENCY}", None))
    for setting, name in [(setting, name) for setting in settings for name in METHODS]:
        if (setting[0], name) in done:
            continue
        content["results"].append(run(setting, name, subject, statistics, batches, (reference, labels), arguments))
        print(row(content["results"][-1]), flush=True)
        write_json("methods.json", content)
        (RESULTS / "methods.md").write_text(markdown(content), encoding="utf-8")


def earlier_results() -> list[dict[str, Any]]:
    path = RESULTS / "methods.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []


def run(
    setting: tuple[str, float | None],
    name: str,
    subject: Subject,
    statistics: Statistics,
    batches: list[Batch],
    truth: tuple[Tensor, Tensor | None],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """One method at one keep ratio, or at `LATENCY`."""
    label, given = setting
    if given is not None:
        ratio = given
    elif arguments.at_latency:
        ratio = dict(zip(METHODS, arguments.at_latency, strict=True))[name]
    else:
        ratio = at_latency(subject, statistics, METHODS[name], arguments.seed)
    config = CompressionConfig(
        keep_ratio=ratio,
        seed=arguments.seed,
        compensation="distill",
        compensation_duration=f"{arguments.minutes} minutes" if arguments.minutes else None,
        **METHODS[name],
    )
    compressor = ViTCompressor(config, progress=False)
    plan = compressor.plan(subject, statistics)
    small = compressor.build(subject, statistics, plan)
    report = compressor.report
    assert report is not None
    result = {
        "setting": label,
        "method": name,
        "keep_ratio": ratio,
        "plan": plan.layers,
        "costs": asdict(report.compressed),
        "dense_costs": asdict(report.dense),
        "latency": [asdict(measure_latency(subject.model, small, size)) for size in (32, 1)],
        "closed_form": judged(subject.like(small), batches, truth),
    }
    if given is not None and arguments.minutes:
        compressor.compensate(small, subject, statistics, plan, arguments.calibration)
        assert report.compensation is not None
        result["compensation"] = asdict(report.compensation)
        result["compensated"] = judged(subject.like(small), batches, truth)
    return result


def at_latency(subject: Subject, statistics: Statistics, settings: dict[str, Any], seed: int) -> float:
    """The keep ratio at which a method's model takes `LATENCY` of the dense model's time, on the line of two others."""
    measured = []
    for ratio in AROUND:
        config = CompressionConfig(keep_ratio=ratio, seed=seed, **settings)
        small = ViTCompressor(config, progress=False).compress(subject, statistics=statistics)
        measured.append(measure_latency(subject.model, small).ratio)
    slope = (AROUND[1] - AROUND[0]) / (measured[1] - measured[0])
    found = round(AROUND[0] + slope * (LATENCY - measured[0]), 3)
    print(settings, dict(zip(AROUND, measured, strict=True)), found, flush=True)
    return found


def judged(subject: Subject, batches: list[Batch], truth: tuple[Tensor, Tensor | None]) -> dict[str, Any]:
    reference, labels = truth
    return asdict(judge(model_outputs(subject, batches, "bfloat16")[0], reference, labels, classes=True))


def error_increase(evaluation: dict[str, Any]) -> float:
    """Of the top-1 error, relative to the dense model's."""
    before, after = 1 - evaluation["reference_top1"]["value"], 1 - evaluation["top1"]["value"]
    return after / before - 1


def row(result: dict[str, Any]) -> list[str]:
    cells = [
        result["setting"],
        result["method"],
        f"{result['costs']['parameters'] / result['dense_costs']['parameters']:.3f}",
        f"{result['costs']['macs'] / result['dense_costs']['macs']:.3f}",
        " / ".join(f"{latency['ratio']:.2f}" for latency in result["latency"]),
    ]
    for stage in ("closed_form", "compensated"):
        evaluation = result.get(stage)
        if evaluation is None:
            cells += ["not measured"] * 4
            continue
        kl = evaluation["kl"]
        cells += [
            f"{kl['value']:.4f} ({kl['low']:.4f} to {kl['high']:.4f})",
            f"{evaluation['agreement']['value']:.2%}",
            f"{evaluation['top1']['value']:.2%}",
            f"{error_increase(evaluation):+.0%}",
        ]
    return cells


def markdown(content: dict[str, Any]) -> str:
    first = content["results"][0]
    after = f", {content['minutes']:g} min"
    figures = ("KL", "agreement", "top-1", "error")
    header = ("at", "method", "parameters", "MACs", "latency, batch 32 / 1", *figures, *(f + after for f in figures))
    return (
        f"# Methods\n\n{content['model']}; statistics from {content['calibration_images']} images of "
        f"{content['calibration']}, seed {content['seed']}; figures on {content['test_images']} images of "
        f"{content['test']}, bfloat16 autocast for dense and compressed alike; dense top-1 "
        f"{first['closed_form']['reference_top1']['value']:.2%}. Parameters, MACs and latency (float32, "
        f"{content['environment']['threads']} threads) as shares of the dense model's; intervals are 95 %; `error` is "
        "the relative increase of the top-1 error.\n\n"
        + markdown_table(header, [row(result) for result in content["results"]])
    )


if __name__ == "__main__":
    main()

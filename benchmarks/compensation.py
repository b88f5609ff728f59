"""Accuracy over seconds of compensation: residual tensors, distillation with two optimizers, and several keep ratios.

Everything that learns or stops sees calibration images only; the test images are for the figures. Writes
compensation.json, .md and .png to benchmarks/results, after every run what is there so far. Timings want a machine
that does nothing else.
"""

import time
from dataclasses import asdict
from typing import Any

from common import RESULTS, markdown_table, measured_on, parser, write_json
from matplotlib.figure import Figure

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.evaluation.evaluation import judge, model_outputs
from hf_vitcompress.report.figures import save_figure

# Name, preset, keep ratio, settings, whether it is a line of the figure. Minutes are of the compensation.
CURVE = "3 minutes"
RUNS: list[tuple[str, str, float, dict[str, Any], bool]] = [
    ("residual tensors", "low_rank", 0.4, {"compensation": "residual"}, True),
    (
        "AdamW, KL of logits only",
        "low_rank",
        0.4,
        {
            "compensation": "distill",
            "optimizer": "adamw",
            "feature_weight": 0.0,
            "augmentation": False,
            "learning_rate": 1.5e-5,
            "compensation_duration": CURVE,
        },
        True,
    ),
    ("AdamW", "low_rank", 0.4, {"compensation": "distill", "optimizer": "adamw", "compensation_duration": CURVE}, True),
    ("preconditioned", "low_rank", 0.4, {"compensation": "distill", "compensation_duration": CURVE}, True),
    ("preconditioned, 8 min", "low_rank", 0.4, {"compensation": "distill", "compensation_duration": "8 minutes"}, True),
    (
        "preconditioned, 2.3 min",
        "low_rank",
        0.41,
        {"compensation": "distill", "compensation_duration": "2.3 minutes"},
        False,
    ),
    (
        "preconditioned, 7 min",
        "low_rank",
        0.31,
        {"compensation": "distill", "compensation_duration": "7 minutes"},
        False,
    ),
    (
        "preconditioned, 3 min",
        "low_rank",
        0.5,
        {"compensation": "distill", "compensation_duration": "3 minutes"},
        False,
    ),
    ("Azizi et al. 2024", "azizi2024", 0.4, {}, False),
    ("as long as Azizi et al.", "low_rank", 0.4, {"compensation": "distill"}, False),
    ("residual, then preconditioned", "low_rank", 0.4, {"compensation": "both", "compensation_duration": CURVE}, True),
]


def main() -> None:
    arguments = parser(__doc__).parse_args()

    probe = ViTCompressor(progress=False)
    subject = probe.open(arguments.model)
    test = probe.open_images(arguments.test, subject)
    batches = list(test.batches(subject.processor, 64))
    reference, labels = model_outputs(subject, batches, "bfloat16")
    content: dict[str, Any] = {
        **measured_on(arguments, batches),
        "results": [],
    }
    statistics: dict[str, Any] = {}
    seconds_of_azizi = 0.0
    for name, preset, keep_ratio, settings, line in RUNS:
        if name.startswith("as long"):
            settings = {**settings, "compensation_duration": f"{seconds_of_azizi / 60} minutes"}
        config = CompressionConfig.preset(preset, keep_ratio=keep_ratio, seed=arguments.seed, **settings)
        compressor = ViTCompressor(config, progress=False)
        if preset not in statistics:
            statistics[preset] = compressor.calibrate(subject, arguments.calibration)
        start = time.perf_counter()
        small = compressor.compress(subject, arguments.calibration, statistics=statistics[preset])
        report = compressor.report
        assert report is not None
        assert report.compensation is not None
        if preset == "azizi2024":
            seconds_of_azizi = report.seconds["compensate"]
        outputs, _ = model_outputs(subject.like(small), batches, "bfloat16")
        content["results"].append(
            {
                "name": name,
                "settings": settings,
                "line": line,
                "keep_ratio": report.keep_ratio,
                "seconds": report.seconds["compensate"],
                "seconds_with_plan_and_build": time.perf_counter() - start,
                "compensation": asdict(report.compensation),
                **asdict(judge(outputs, reference, labels, classes=True)),
            }
        )
        print(row(content["results"][-1]), flush=True)
        write_json("compensation.json", content)
        (RESULTS / "compensation.md").write_text(markdown(content), encoding="utf-8")
        save_figure(figure(content), RESULTS / "compensation.png")


def row(result: dict[str, Any]) -> list[str]:
    drop, agreement, kl = (result[k] for k in ("top1_drop", "agreement", "kl"))
    points = result["compensation"]["points"]
    return [
        result["name"],
        f"{result['keep_ratio']:.3f}",
        f"{result['seconds'] / 60:.1f}",
        f"{points[-1]['images']:,}",
        f"{points[0]['loss']:.4f} → {min(p['loss'] for p in points):.4f}",
        f"{kl['value']:.4f} ({kl['low']:.4f} to {kl['high']:.4f})",
        f"{agreement['value']:.2%}",
        f"{result['top1']['value']:.2%}",
        f"{100 * drop['value']:.2f} ({100 * drop['low']:.2f} to {100 * drop['high']:.2f})",
    ]


def markdown(content: dict[str, Any]) -> str:
    first = content["results"][0]
    header = (
        "compensation",
        "kept",
        "minutes",
        "images seen",
        "KL held out",
        "KL to dense",
        "agreement",
        "top-1",
        "top-1 drop, points",
    )
    held_out = first["compensation"]["held_out_images"]
    return (
        f"# Compensation\n\n{content['model']}; learnt from {first['compensation']['images']} images of "
        f"{content['calibration']} (seed {content['seed']}), stopped by {held_out} others of it; figures on "
        f"{content['test_images']} images of {content['test']}, bfloat16 autocast for dense and compressed alike; "
        f"dense top-1 {first['reference_top1']['value']:.2%}. Intervals are 95 %, of the drop paired. Minutes are of "
        f"the compensation alone; {content['environment']['threads']} threads.\n\n"
        + markdown_table(header, [row(result) for result in content["results"]])
        + "\n![Held-out KL over seconds](compensation.png)\n"
    )


def figure(content: dict[str, Any]) -> Figure:
    picture = Figure(figsize=(8, 4.5), layout="constrained")
    axes = picture.subplots()
    for result in content["results"]:
        if result["line"]:
            points = result["compensation"]["points"]
            seconds, losses = [p["seconds"] for p in points], [p["loss"] for p in points]
            axes.plot(seconds, losses, marker=".", label=result["name"])
    axes.set(yscale="log", xlabel="seconds of compensation", ylabel="KL to the dense model, held-out images (nats)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    axes.set_title(f"{content['model']} at keep ratio 0.4")
    return picture


if __name__ == "__main__":
    main()

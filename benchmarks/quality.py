"""Accuracy after compression, closed form only, for presets over several keep ratios.

Calibration images serve for everything that is fitted; test images only for the figures. Writes quality.json, .md and
.png to benchmarks/results.
"""

import json
from dataclasses import asdict
from typing import Any

from common import RESULTS, markdown_table, measured_on, parser, write_json
from matplotlib.figure import Figure

from hf_vitcompress import CompressionConfig, Statistics, ViTCompressor
from hf_vitcompress.evaluation.evaluation import judge, model_outputs
from hf_vitcompress.report.figures import save_figure

PRESETS = ("default", "low_rank", "svd", "fwsvd", "svd_llm", "azizi2024")
"""Those without training."""
RATIOS = (0.7, 0.5, 0.4, 0.3)
# The default also at the ratios of an earlier trial it is compared with.
DEFAULT_RATIOS = (0.7, 0.51, 0.5, 0.41, 0.4, 0.31, 0.3)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=1024, help="calibration images")
    options.add_argument("--measuring-images", type=int, default=256, help="of these, for correcting predicted losses")
    options.add_argument("--presets", nargs="*", default=PRESETS, help="the others stay as they are in quality.json")
    options.add_argument("--statistics", help="of an earlier calibration, for a single preset")
    options.add_argument("--precision", default="float32", help="of the evaluation")
    arguments = options.parse_args()

    probe = ViTCompressor()
    subject = probe.open(arguments.model)
    test = probe.open_images(arguments.test, subject)
    batches = list(test.batches(subject.processor, 64))
    reference, labels = model_outputs(subject, batches, arguments.precision)
    results = [result for result in earlier_results() if result["preset"] not in arguments.presets]
    for preset in arguments.presets:
        config = CompressionConfig.preset(
            preset,
            compensation="none",
            num_images=arguments.images,
            measuring_images=arguments.measuring_images,
            seed=arguments.seed,
        )
        if arguments.statistics:
            statistics = Statistics.load(arguments.statistics)
        else:
            statistics = ViTCompressor(config, progress=False).calibrate(subject, arguments.calibration)
        for ratio in DEFAULT_RATIOS if preset == "default" else RATIOS:
            compressor = ViTCompressor(config.with_budget(keep_ratio=ratio), progress=False)
            small = compressor.compress(subject, statistics=statistics)
            outputs, _ = model_outputs(subject.like(small), batches, arguments.precision)
            results.append(
                {
                    "preset": preset,
                    "keep_ratio_asked": ratio,
                    "keep_ratio": compressor.report.keep_ratio,
                    "parameters": compressor.report.compressed.parameters,
                    "macs": compressor.report.compressed.macs,
                    "predicted_kl": compressor.report.predicted_loss,
                    "weights": statistics.corrections[config.method].weights,
                    **asdict(judge(outputs, reference, labels, classes=True)),
                }
            )
            print(row(results[-1]), flush=True)
    results.sort(key=lambda result: PRESETS.index(result["preset"]))
    content = {
        **measured_on(arguments, batches),
        "calibration_images": arguments.images,
        "precision": arguments.precision,
        "results": results,
    }
    write_json("quality.json", content)
    (RESULTS / "quality.md").write_text(markdown(content), encoding="utf-8")
    save_figure(figure(content), RESULTS / "quality.png")


def earlier_results() -> list[dict[str, Any]]:
    path = RESULTS / "quality.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []


def row(result: dict[str, Any]) -> list[str]:
    drop, agreement, kl, predicted = (result[k] for k in ("top1_drop", "agreement", "kl", "predicted_kl"))
    return [
        result["preset"],
        f"{result['keep_ratio']:.3f}",
        f"{kl['value']:.4f} ({kl['low']:.4f} to {kl['high']:.4f})",
        "" if predicted is None else f"{predicted:.4f}",
        f"{agreement['value']:.2%}",
        f"{result['top1']['value']:.2%}",
        f"{100 * drop['value']:.2f} ({100 * drop['low']:.2f} to {100 * drop['high']:.2f})",
    ]


def markdown(content: dict[str, Any]) -> str:
    dense = content["results"][0]["reference_top1"]["value"]
    header = ("preset", "kept", "KL to dense", "KL predicted", "agreement", "top-1", "top-1 drop, points")
    return (
        f"# Quality by keep ratio\n\n{content['model']}, closed form only. Statistics from "
        f"{content['calibration_images']} images of {content['calibration']} (seed {content['seed']}); figures on "
        f"{content['test_images']} images of {content['test']}, {content['precision']}; dense top-1 {dense:.2%}. "
        "Intervals are 95 %, of the drop paired.\n\n"
        + markdown_table(header, [row(result) for result in content["results"]])
        + "\n![KL over keep ratio](quality.png)\n"
    )


def figure(content: dict[str, Any]) -> Figure:
    picture = Figure(figsize=(10, 4), layout="constrained")
    left, right = picture.subplots(1, 2)
    for preset in dict.fromkeys(r["preset"] for r in content["results"]):
        rows = [r for r in content["results"] if r["preset"] == preset]
        ratios = [r["keep_ratio"] for r in rows]
        left.errorbar(
            ratios,
            [r["kl"]["value"] for r in rows],
            yerr=[[r["kl"][end] - r["kl"]["value"] for r in rows] for end in ("value", "high")],
            marker=".",
            label=preset,
        )
        right.plot(ratios, [100 * r["agreement"]["value"] for r in rows], marker=".", label=preset)
    left.set(yscale="log", xlabel="keep ratio (whole model)", ylabel="KL to the dense model (nats)")
    right.set(xlabel="keep ratio (whole model)", ylabel="agreement with the dense model (%)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend(frameon=False)
    picture.suptitle(f"{content['model']}, closed form only, {content['test_images']} test images")
    return picture


if __name__ == "__main__":
    main()

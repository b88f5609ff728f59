"""Plans for time beside plans for parameters and for MACs that run as fast.

At each measured speed-up, for a batch of 1 and of 32 images: the plan for that speed-up, with merged tokens and
without, and the plans for MACs and for parameters of the same measured speed, which are found by timing. Their closed
form is judged on test images against the dense model. Then the same programs in other runtimes that are installed, and
a model of the size of DeiT-B with random weights, timed alone.

Writes latency_budgets.json, .md and .png to benchmarks/results after every plan, and goes on from there. Timings want a
machine that does nothing else.
"""

import argparse
import importlib.util
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, markdown_table, measured_on, parser, write_json
from matplotlib.figure import Figure
from transformers import DeiTConfig, DeiTForImageClassification

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.deploy.export import export_model
from hf_vitcompress.evaluation.evaluation import judge, model_outputs
from hf_vitcompress.planning.building import build_model
from hf_vitcompress.planning.latency import timed_plan
from hf_vitcompress.planning.plan import CompressionPlan
from hf_vitcompress.planning.planner import Planner
from hf_vitcompress.report.figures import save_figure

NAME = "latency_budgets"
SPEEDUPS, BATCHES = (1.5, 2.0, 3.0), (1, 32)
CALIBRATION_IMAGES = 1024
KINDS = ("speed-up", "speed-up, no tokens", "MACs, no tokens", "parameters")
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""Formats of programs, and what runs them."""

SEARCH_STEPS, CLOSE = 6, 0.02
"""Of a budget that is counted: how often it is timed, and how near its speed-up has to be, as a share."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=1000, help="to test on")
    options.add_argument("--threads", type=int, default=1, help="that the latencies are for")
    options.add_argument("--deit", action="store_true", help="also the DeiT-B-sized model (several minutes)")
    options.add_argument("--runtimes", action="store_true", help="also ONNX Runtime and OpenVINO, where installed")
    arguments = options.parse_args()
    path = RESULTS / f"{NAME}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"results": []}
    bench = Bench(arguments, known)
    bench.plans()
    if arguments.runtimes:
        bench.in_runtimes()
    if arguments.deit:
        bench.deit()


class Bench:
    """The model, its statistics, and what was found so far."""

    def __init__(self, arguments: argparse.Namespace, known: dict[str, Any]) -> None:
        self.arguments, self.known = arguments, known
        self.all_threads = torch.get_num_threads()
        compressor = self.compressor(1, speedup=2.0)
        self.subject = compressor.open(arguments.model)
        images = compressor.open_images(arguments.test, self.subject).sample(arguments.images, arguments.seed)
        self.batches = list(images.batches(self.subject.processor, 64))
        self.reference, self.labels = model_outputs(self.subject, self.batches)
        self.statistics = compressor.calibrate(self.subject, arguments.calibration)
        self.planner: Planner = compressor.planner(self.subject, self.statistics)
        self.known |= measured_on(arguments, self.batches) | {"latency_threads": arguments.threads}

    def compressor(self, batch_size: int, **budget: Any) -> ViTCompressor:
        config = CompressionConfig(
            num_images=CALIBRATION_IMAGES, latency_batch_size=batch_size, seed=self.arguments.seed, **budget
        )
        return ViTCompressor(config, progress=False)

    def plans(self) -> None:
        """All kinds at all speed-ups that are not known yet."""
        for batch_size in BATCHES:
            for speedup in SPEEDUPS:
                for kind in KINDS:
                    key = {"kind": kind, "batch_size": batch_size, "asked": speedup, "threads": self.arguments.threads}
                    if not any(key.items() <= result.items() for result in self.known["results"]):
                        self.known["results"].append(key | self.measured(kind, batch_size, speedup))
                        self.write()

    def measured(self, kind: str, batch_size: int, speedup: float) -> dict[str, Any]:
        torch.set_num_threads(self.arguments.threads)
        plan = self.plan(kind, batch_size, speedup)
        timed = timed_plan(self.planner, plan, self.compressor(batch_size, speedup=speedup).run)
        torch.set_num_threads(self.all_threads)
        small = build_model(self.subject.model, plan, self.planner.groups)
        judged = judge(
            model_outputs(self.subject.like(small), self.batches)[0], self.reference, self.labels, classes=True
        )
        found = {
            "predicted": None if plan.latency is None else 1 / plan.latency.predicted,
            "measured_when_planned": None if plan.latency is None else 1 / plan.latency.measured.ratio,
            "measured": 1 / timed.ratio,
            "latency": asdict(timed),
            "keep_ratio": plan.keep_ratio,
            "tokens": plan.tokens,
            "predicted_loss": plan.predicted_loss,
            "layers": plan.layers,
            **asdict(judged),
        }
        print(kind, batch_size, speedup, *row({"kind": kind, **found})[3:], flush=True)
        return found

    def plan(self, kind: str, batch_size: int, speedup: float) -> CompressionPlan:
        if kind.startswith("speed-up"):
            tokens = "none" if "no tokens" in kind else "auto"
            compressor = self.compressor(batch_size, speedup=speedup, tokens=tokens)
            return compressor.plan(self.subject, self.statistics)
        return self.as_fast(kind, batch_size, speedup)

    def as_fast(self, kind: str, batch_size: int, speedup: float) -> CompressionPlan:
        """The plan of a counted budget that reaches a measured speed-up, by the secant method on the latency."""
        share = 1 / speedup
        tried: dict[float, tuple[float, CompressionPlan]] = {}
        for _ in range(SEARCH_STEPS):
            plan = self.planner.plan(self.counted(kind, share), exact=False)
            latency = timed_plan(self.planner, plan, self.compressor(batch_size, speedup=speedup).run)
            tried[share] = latency.ratio, plan
            if abs(latency.ratio * speedup - 1) <= CLOSE:
                break
            share = next_share({1.0: 1.0, **{own: ratio for own, (ratio, _) in tried.items()}}, 1 / speedup)
        return min(tried.values(), key=lambda own: abs(own[0] * speedup - 1))[1]

    def counted(self, kind: str, share: float) -> CompressionConfig:
        if kind == "parameters":
            return self.compressor(1, keep_ratio=share).config
        return self.compressor(1, max_macs=int(share * self.planner.costs.macs), tokens="none").config

    def in_runtimes(self) -> None:
        """The plans of the middle speed-up as programs, each against the dense model's in the same runtime."""
        found = []
        with tempfile.TemporaryDirectory() as temporary:
            for result in self.known["results"]:
                if result["asked"] != SPEEDUPS[1] or result["threads"] != self.arguments.threads:
                    continue
                plan = CompressionPlan(result["layers"], tokens=result["tokens"])
                small = build_model(self.subject.model, plan, self.planner.groups)
                for to in filter(is_installed, RUNTIMES):
                    folder = Path(temporary) / f"{to}-{len(found)}"
                    program = export_model(small, to, folder, against=self.subject.model)
                    found.append(
                        {
                            "kind": result["kind"],
                            "batch_size": result["batch_size"],
                            "runtime": to,
                            "torch": result["measured"],
                            "latency": [asdict(latency) for latency in program.latency],
                        }
                    )
        self.known["runtimes"] = found
        self.write()

    def deit(self) -> None:
        """Latency alone: a plan for a speed-up needs statistics, and random weights have some."""
        config = DeiTConfig(num_labels=1000, _attn_implementation="sdpa")
        self.known["deit_base"] = []
        model = DeiTForImageClassification(config).eval()
        for batch_size in BATCHES:
            torch.set_num_threads(self.arguments.threads)
            own = self.compressor(batch_size, speedup=2.0)
            images = torch.randn(64, 3, 224, 224)
            statistics = own.calibrate(Subject.alone(model), [{"pixel_values": part} for part in images.split(16)])
            plan = own.plan(Subject.alone(model), statistics)
            assert plan.latency is not None
            self.known["deit_base"].append({"batch_size": batch_size, **asdict(plan.latency)})
            torch.set_num_threads(self.all_threads)
            self.write()

    def write(self) -> None:
        write_json(f"{NAME}.json", self.known)
        (RESULTS / f"{NAME}.md").write_text(markdown(self.known), encoding="utf-8")
        save_figure(figure(self.known["results"]), RESULTS / f"{NAME}.png")


def is_installed(to: str) -> bool:
    return importlib.util.find_spec(RUNTIMES[to]) is not None


def next_share(known: dict[float, float], wanted: float) -> float:
    """Of a counted budget: on the line through the two nearest latencies that were measured."""
    (a, x), (b, y) = sorted(known.items(), key=lambda own: abs(own[1] - wanted))[:2]
    share = a + (wanted - x) * (b - a) / (y - x) if abs(y - x) > 1e-3 else a * wanted / x
    return min(1.0, max(0.05, share))


HEADER = (
    "plan for",
    "batch",
    "asked",
    "predicted",
    "measured",
    "parameters",
    "tokens merged",
    "KL",
    "agreement",
    "drop",
)


def row(result: dict[str, Any]) -> list[str]:
    kl, agreement, drop = result["kl"], result["agreement"], result["top1_drop"]
    predicted = result["predicted"]
    return [
        result["kind"],
        str(result.get("batch_size", "")),
        str(result.get("asked", "")),
        "" if predicted is None else f"{predicted:.2f}",
        f"{result['measured']:.2f}",
        f"{result['keep_ratio']:.3f}",
        str(sum(result["tokens"].values())),
        f"{kl['value']:.4f} ({kl['low']:.4f} to {kl['high']:.4f})",
        f"{agreement['value']:.2%}",
        f"{drop['value'] * 100:.1f} ({drop['low'] * 100:.1f} to {drop['high'] * 100:.1f})",
    ]


def markdown(content: dict[str, Any]) -> str:
    environment = content["environment"]
    table = markdown_table(HEADER, [row(result) for result in content["results"]])
    parts = [
        f"# Budgets of time\n\n{content['model']}, closed form alone, calibrated on {CALIBRATION_IMAGES} images of "
        f"{content['calibration']}, seed {content['seed']}; {content['test_images']} images of {content['test']}. "
        f"Latencies in float32 with {content['latency_threads']} thread(s) of {environment['cpu']}, torch "
        f"{environment['torch']}, dense and compressed alternately. KL and drop (points), with 95 % intervals, are "
        "from the dense model; speed-ups are dense ÷ compressed. Plans for MACs and parameters are those whose "
        f"measured speed-up is the asked one.\n\n{table}\n"
    ]
    if content.get("runtimes"):
        rows = [
            [
                own["kind"],
                str(own["batch_size"]),
                own["runtime"],
                f"{own['torch']:.2f}",
                *(f"{1 / latency['ratio']:.2f}" for latency in own["latency"]),
            ]
            for own in content["runtimes"]
        ]
        batches = [f"batch {latency['batch_size']}" for latency in content["runtimes"][0]["latency"]]
        header = ("plan for", "planned for batch", "runtime", "speed-up in torch", *batches)
        parts.append(f"## Other runtimes\n\n{markdown_table(header, rows)}\n")
    if content.get("deit_base"):
        rows = [
            [str(own["batch_size"]), *(f"{1 / value:.2f}" for value in (own["asked"], own["predicted"])), measured(own)]
            for own in content["deit_base"]
        ]
        table = markdown_table(("batch", "asked", "predicted", "measured"), rows)
        parts.append(f"## A model of the size of DeiT-B, random weights\n\n{table}\n")
    return "\n".join(parts)


def measured(own: dict[str, Any]) -> str:
    latency = own["measured"]
    return f"{1 / latency['ratio']:.2f} ({latency['dense'] * 1000:.0f} to {latency['compressed'] * 1000:.0f} ms)"


def figure(results: list[dict[str, Any]]) -> Figure:
    """KL over measured speed-up, a panel for each batch size."""
    drawn = Figure(figsize=(10, 4), layout="constrained")
    for axes, batch_size in zip(drawn.subplots(1, len(BATCHES), sharey=True), BATCHES, strict=True):
        for kind in KINDS:
            own = [one for one in results if one["kind"] == kind and one["batch_size"] == batch_size]
            points = sorted((one["measured"], one["kl"]["value"]) for one in own)
            if points:
                axes.plot(*zip(*points, strict=True), "o-", label=kind)
        axes.set(
            title=f"batch {batch_size}", xlabel="measured speed-up", ylabel="KL from the dense model", yscale="log"
        )
        axes.legend(frameon=False)
    return drawn


if __name__ == "__main__":
    main()

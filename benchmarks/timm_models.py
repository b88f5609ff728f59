"""Models of timm: a trained ViT carried over to timm's layout, and families of timm trained here for minutes.

The first part holds timm's layout against that of transformers: the same weights, statistics of the same images, the
same plans. Queries, keys and values have a layer each, as the package makes them of timm's fused one, with a projection
that queries and keys share (`joint`) or without (`low_rank`), or stay one layer (`fused`).

Writes timm_models.json and .md to benchmarks/results after every run, and goes on from there. Needs timm.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import timm
import torch
from common import RESULTS, markdown_table, measured_on, parser, write_json
from torch import Tensor, nn
from torch.nn import functional

from hf_vitcompress import CompressionConfig, ViTCompressor, convert_to_timm
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.evaluation.evaluation import judge, model_outputs
from hf_vitcompress.images.images import Batch
from hf_vitcompress.modeling_timm import FUSED

KEEP_RATIOS, CALIBRATION_IMAGES = (0.7, 0.5, 0.4), 512
LAYOUTS: dict[str, str] = {"transformers": "joint", "timm": "joint", "timm split": "low_rank", "timm fused": "low_rank"}
"""How the carried-over model is laid out → the attention setting of the recipe."""
SIZE, PATCH, CLASSES, BATCH = 32, 4, 10, 64
TRAINED: dict[str, dict[str, Any]] = {
    "eva02_tiny_patch14_224": {"patch_size": PATCH, "depth": 6},
    "swin_tiny_patch4_window7_224": {"patch_size": 2, "window_size": 4, "embed_dim": 48, "depths": (2, 4, 2)},
}
"""Architectures that are trained here, and what makes them small."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=6.0, help="of training, each")
    options.add_argument("--images", type=int, default=1000, help="to test on")
    arguments = options.parse_args()
    path = RESULTS / "timm_models.json"
    known = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []
    compressor = ViTCompressor(CompressionConfig(seed=arguments.seed), progress=False)
    vit = compressor.open(arguments.model)
    batches = test_batches(vit, arguments)
    content = {**measured_on(arguments, batches), "timm": timm.__version__, "minutes": arguments.minutes}
    for name in [*LAYOUTS, *TRAINED]:
        if name in {result["model"] for result in known}:
            continue
        known += carried_over(name, vit, batches, arguments) if name in LAYOUTS else trained(name, vit, arguments)
        write_json("timm_models.json", {**content, "results": known})
        (RESULTS / "timm_models.md").write_text(markdown({**content, "results": known}), encoding="utf-8")


def test_batches(subject: Subject, arguments: argparse.Namespace) -> list[Batch]:
    images = ViTCompressor(progress=False).open_images(arguments.test, subject)
    return list(images.sample(arguments.images, arguments.seed).batches(subject.processor, BATCH))


def carried_over(name: str, vit: Subject, batches: list[Batch], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of the ViT in one layout."""
    with fused(name == "timm fused"):
        dense = vit
        if name != "transformers":
            dense = ViTCompressor(progress=False).open(convert_to_timm(vit.model))
            dense = Subject.alone(dense.model, vit.processor)
        return results(name, dense, batches, arguments, attention=LAYOUTS[name])


@contextmanager
def fused(wanted: bool) -> Iterator[None]:
    """Within the block, the fused layers of timm stay as they are, if that is wanted."""
    known = dict(FUSED)
    if wanted:
        FUSED.clear()
    try:
        yield
    finally:
        FUSED.update(known)


def trained(name: str, vit: Subject, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of an architecture of timm that is trained on the calibration images first."""
    torch.manual_seed(arguments.seed)
    module = timm.create_model(name, img_size=SIZE, num_classes=CLASSES, **TRAINED[name])
    # The processor's size in the config is that of the architecture; these images are made ready here.
    images = ViTCompressor(progress=False).open_images(arguments.calibration, vit)
    pixels, labels = small_pixels(list(images.batches(vit.processor, BATCH)))
    seconds = train(module, pixels, labels, arguments.minutes * 60)
    batches = [small(batch) for batch in test_batches(vit, arguments)]
    subject = ViTCompressor(progress=False).open(module.eval())
    found = results(name, subject, batches, arguments, ready=pixels)
    return [{**result, "seconds_of_training": seconds} for result in found]


def small(batch: Batch) -> Batch:
    """The same images at the size of the models that are trained here."""
    pixels = functional.interpolate(batch.pixel_values, (SIZE, SIZE), mode="bilinear", antialias=True)
    return Batch(pixels, batch.labels)


def small_pixels(batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """Images (n, 3, SIZE, SIZE) and labels (n,)."""
    made = [small(batch) for batch in batches]
    return torch.cat([batch.pixel_values for batch in made]), torch.cat(
        [b.labels for b in made if b.labels is not None]
    )


def train(module: nn.Module, pixels: Tensor, labels: Tensor, seconds: float) -> float:
    """AdamW with a cosine over that time, images mirrored and shifted at random; seconds that it took."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.05)
    module.train()
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + torch.cos(torch.tensor(torch.pi * spent / seconds)).item()) / 2
        rows = torch.randint(len(pixels), (BATCH,))
        shift = [int(n) for n in torch.randint(-2, 3, (2,))]
        batch = torch.roll(pixels[rows], shift, (2, 3))
        batch = batch.flip(3) if torch.rand((), dtype=torch.float32) < 0.5 else batch
        functional.cross_entropy(module(batch), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


def results(
    name: str,
    dense: Subject,
    batches: list[Batch],
    arguments: argparse.Namespace,
    attention: str = "joint",
    ready: Tensor | None = None,
) -> list[dict[str, Any]]:
    """At every keep ratio, closed form alone."""
    reference, labels = model_outputs(dense, batches)
    config = CompressionConfig(  # in float32, where rounding makes no difference between layouts
        num_images=CALIBRATION_IMAGES,
        seed=arguments.seed,
        attention=attention,
        measuring_images=0,
        precision="float32",  # type: ignore[arg-type]
    )
    images = arguments.calibration if ready is None else [{"pixel_values": pixels} for pixels in ready]
    statistics = ViTCompressor(config, dense.processor, progress=False).calibrate(dense, images)
    found = []
    for ratio in KEEP_RATIOS:
        own = ViTCompressor(config.with_budget(keep_ratio=ratio), dense.processor, progress=False)
        compressed = own.compress(dense, statistics=statistics)
        outputs = model_outputs(dense.like(compressed), batches)[0]
        assert own.report is not None
        kept = own.report.compressed.parameters / own.report.dense.parameters
        judged = judge(outputs, reference, labels, classes=True)
        found.append({"model": name, "attention": attention, "keep_ratio": ratio, "kept": kept, **asdict(judged)})
        print(row(found[-1]), flush=True)
    return found


def row(result: dict[str, Any]) -> list[str]:
    kl, drop = result["kl"], result["top1_drop"]
    return [
        result["model"],
        str(result["keep_ratio"]),
        f"{result['kept']:.4f}",
        f"{kl['value']:.4f} ({kl['low']:.4f} to {kl['high']:.4f})",
        f"{result['top1']['value']:.2%}",
        f"{drop['value'] * 100:.1f} ({drop['low'] * 100:.1f} to {drop['high'] * 100:.1f})",
    ]


def markdown(content: dict[str, Any]) -> str:
    header = ("model", "keep ratio", "parameters", "KL", "top-1", "drop, points")
    table = markdown_table(header, [row(result) for result in content["results"]])
    return (
        f"# Models of timm\n\n{content['model']} as a model of transformers and in timm's layout (timm "
        f"{content['timm']}), and architectures of timm trained here for {content['minutes']} minutes each on "
        f"images of {content['calibration']} at {SIZE} × {SIZE} pixels. Closed form alone, calibrated on "
        f"{CALIBRATION_IMAGES} images, seed {content['seed']}, float32, on {content['test_images']} images of "
        f"{content['test']}; KL and drop, with 95 % intervals, are from the dense model of the row.\n\n{table}\n"
    )


if __name__ == "__main__":
    main()

"""A trained ViT carried over to timm's layout, and other families of timm that were trained from its weights.

The first holds timm's layout against that of transformers: the same weights, statistics of the same images, the
same plans. Queries, keys and values have a layer each, as the package makes them of timm's fused one, with a projection
that queries and keys share (`joint`) or without (`low_rank`), or stay one layer (`fused`). The second holds what makes
the families differ, see timm_training.py; a family takes some 20 minutes on one core.

Writes timm_models.json and .md to benchmarks/results after every run, and goes on from there. Needs the environment of
`make test-torchvision`, which has timm.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import timm
from common import RESULTS, markdown_table, measured_on, parser, write_json
from timm_training import FAMILIES, trained

from hf_vitcompress import CompressionConfig, ViTCompressor, convert_to_timm
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.evaluation.evaluation import judge, model_outputs
from hf_vitcompress.images.images import Batch
from hf_vitcompress.modeling_timm import FUSED

KEEP_RATIOS, CALIBRATION_IMAGES = (0.7, 0.5, 0.4), 512
LAYOUTS: dict[str, str] = {"transformers": "joint", "timm": "joint", "timm split": "low_rank", "timm fused": "low_rank"}
"""How the carried-over model is laid out → the attention setting of the recipe."""
BATCH = 64
TRAINING_HEADER = (
    "family",
    "timm's name",
    "beyond a plain ViT",
    "parameters",
    "top-1 before training",
    "after",
    "training",
)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=1000, help="to test on")
    arguments = options.parse_args()
    path = RESULTS / "timm_models.json"
    compressor = ViTCompressor(CompressionConfig(seed=arguments.seed), progress=False)
    vit = compressor.open(arguments.model)
    batches = test_batches(vit, arguments)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content = {**measured_on(arguments, batches), "timm": timm.__version__, "trained": {}, "results": [], **known}
    done = {result["model"] for result in content["results"]}
    for name in (*LAYOUTS, *FAMILIES):
        if name in LAYOUTS and name not in done:
            content["results"] += carried_over(name, vit, batches, arguments)
        elif name not in done:
            content["trained"][name], found = trained_family(name, vit, batches, arguments)
            content["results"] += found
        write_json("timm_models.json", content)
        (RESULTS / "timm_models.md").write_text(markdown(content), encoding="utf-8")


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


def trained_family(
    name: str, vit: Subject, batches: list[Batch], arguments: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How a family was trained, and its results. The images of the calibration are not among those of the training."""
    images = ViTCompressor(progress=False).open_images(arguments.calibration, vit).sample(None, arguments.seed)
    images = images.select(range(CALIBRATION_IMAGES, len(images)))
    subject, training = trained(FAMILIES[name], vit, images, batches, arguments.seed)
    print(name, training, flush=True)
    return training, results(name, subject, batches, arguments, attention="joint")


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


def results(
    name: str,
    dense: Subject,
    batches: list[Batch],
    arguments: argparse.Namespace,
    attention: str,
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
    statistics = ViTCompressor(config, dense.processor, progress=False).calibrate(dense, arguments.calibration)
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
        f"{result['agreement']['value']:.1%}",
        f"{result['top1']['value']:.2%}",
        f"{drop['value'] * 100:.1f} ({drop['low'] * 100:.1f} to {drop['high'] * 100:.1f})",
    ]


def training_row(name: str, training: dict[str, Any], result: dict[str, Any]) -> list[str]:
    return [
        name,
        f"`{training['architecture']}`",
        FAMILIES[name].differs,
        f"{training['parameters'] / 1e6:.1f} M",
        f"{training['top1_before']:.1%}",
        f"{result['reference_top1']['value']:.1%}",
        f"{training['epochs']} × {training['images']} images, {training['seconds'] / 60:.0f} min",
    ]


def markdown(content: dict[str, Any]) -> str:
    header = ("model", "keep ratio", "parameters", "KL", "agreement", "top-1", "drop, points")
    layouts = [row(result) for result in content["results"] if result["model"] in LAYOUTS]
    families = [result for result in content["results"] if result["model"] in FAMILIES]
    # Any result of a family knows the dense model.
    dense = {result["model"]: result for result in families}
    trainings = [training_row(name, training, dense[name]) for name, training in content["trained"].items()]
    return (
        f"# Models of timm\n\n{content['model']} as a model of transformers and in timm's layout (timm "
        f"{content['timm']}): with a projection that queries and keys share (`timm`, the default), without it (`timm "
        f"split`), and with queries, keys and values in one layer (`timm fused`). Closed form alone, calibrated on "
        f"{CALIBRATION_IMAGES} images of {content['calibration']}, seed {content['seed']}, float32, on "
        f"{content['test_images']} images of {content['test']}; KL and drop, with 95 % intervals, are from the dense "
        f"model.\n\n{markdown_table(header, layouts)}\n"
        f"## Other families\n\nEach was built at the sizes of {content['model']}, took what it has a place for of its "
        f"weights, and was trained on those images of {content['calibration']} that calibration does not see. These "
        f"are not the published weights. Top-1 is of the dense model, on the test images.\n\n"
        f"{markdown_table(TRAINING_HEADER, trainings)}\n"
        f"Compressed as above; queries and keys share a projection:\n\n"
        f"{markdown_table(header, [row(result) for result in families])}"
    )


if __name__ == "__main__":
    main()

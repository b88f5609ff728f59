"""Train the tiny digit classifier of the quickstart, and write it together with its calibration and test images.

Run `python examples/digits/train.py`; it needs datasets, pillow and scikit-learn beside torch and transformers, and
one to two minutes on one CPU core.
"""

import argparse
import json
import math
from pathlib import Path

import datasets
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

NAMES = [str(digit) for digit in range(10)]
SPLIT_SEED = 0  # the split stays the same whatever --seed is
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
BATCH_SIZE = 50


def load_splits() -> dict[str, datasets.Dataset]:
    """The digits as 8x8 grey images, in three stratified splits of 1,000, 297 and 500."""
    digits = load_digits()
    images, labels = np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target
    rest, test = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=SPLIT_SEED)
    train, calibration = train_test_split(rest, test_size=297, stratify=labels[rest], random_state=SPLIT_SEED)
    return {
        name: datasets.Dataset.from_dict({"image": list(images[rows]), "label": labels[rows].tolist()}, FEATURES)
        for name, rows in (("train", train), ("calibration", calibration), ("test", test))
    }


def to_tensors(split: datasets.Dataset, processor: ViTImageProcessorPil) -> tuple[torch.Tensor, torch.Tensor]:
    """The pixel values and labels of a whole split."""
    pixel_values = processor(split["image"][:], return_tensors="pt")["pixel_values"]
    return pixel_values, torch.tensor(split["label"][:])


def augment(pixels: torch.Tensor, shift: float = 2.0, degrees: float = 10.0, scale: float = 0.1) -> torch.Tensor:
    """Shift, turn and scale every image a little at random; what comes in from outside is black, -1."""
    count, side = len(pixels), pixels.shape[-1]
    angle = math.radians(degrees) * (2 * torch.rand(count) - 1)
    zoom = 1 + scale * (2 * torch.rand(count) - 1)
    matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2) * zoom.view(-1, 1, 1)
    offset = (2 * torch.rand(count, 2, 1) - 1) * (2 * shift / side)
    grid = functional.affine_grid(torch.cat([matrix, offset], 2), list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels + 1, grid, align_corners=False) - 1


def train(pixels: torch.Tensor, labels: torch.Tensor, epochs: int) -> ViTForImageClassification:
    """Train a four-layer ViT from scratch: AdamW, a short warm-up, then a cosine to zero."""
    config = ViTConfig(
        image_size=16, patch_size=4, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256
    )
    config.id2label, config.label2id = dict(enumerate(NAMES)), {name: i for i, name in enumerate(NAMES)}
    model = ViTForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * math.ceil(len(pixels) / BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(pixels)).split(BATCH_SIZE):
            logits = model(pixel_values=augment(pixels[rows])).logits
            loss = functional.cross_entropy(logits, labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(rows)
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1}/{epochs}: loss {total / len(pixels):.4f}", flush=True)
    return model.eval()


def save(model: ViTForImageClassification, processor: ViTImageProcessorPil, folder: Path) -> None:
    """Save the weights as float16 to halve the file; the config says float32, so that they load as float32."""
    model.half().save_pretrained(folder)
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)


@torch.no_grad()
def count_correct(folder: Path, split: datasets.Dataset) -> int:
    """How many images of a split the saved model gets right."""
    model = ViTForImageClassification.from_pretrained(folder).eval()
    pixels, labels = to_tensors(split, ViTImageProcessorPil.from_pretrained(folder))
    return int((model(pixel_values=pixels).logits.argmax(-1) == labels).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the augmentation")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    splits = load_splits()
    args.output.mkdir(parents=True, exist_ok=True)
    for name in ("calibration", "test"):
        splits[name].to_parquet(args.output / f"{name}.parquet")
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, do_convert_rgb=True)
    save(train(*to_tensors(splits["train"], processor), args.epochs), processor, args.output / "model")
    correct, n = count_correct(args.output / "model", splits["test"]), len(splits["test"])
    result = {"accuracy": correct / n, "correct": correct, "n": n, "seed": args.seed, "epochs": args.epochs}
    (args.output / "accuracy.json").write_text(json.dumps(result, indent=2) + "\n")
    print(result)


if __name__ == "__main__":
    main()

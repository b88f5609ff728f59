"""Fine-tune a Vision Transformer, compress it during the training, and let it recover.

    python examples/finetune_and_compress.py --train examples/digits/calibration.parquet \
        --test examples/digits/test.parquet --keep-ratio 0.3 --rank-multiple 2 --output recovered-digits

takes a few seconds on one CPU core. With other models and data:

    python examples/finetune_and_compress.py --model google/vit-base-patch16-224-in21k --train photos/ --output small/
    torchrun --nproc-per-node 2 examples/finetune_and_compress.py --train ethz/food101 --output small/
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoImageProcessor, AutoModelForImageClassification, EvalPrediction, Trainer, TrainingArguments

from hf_vitcompress import CompressionConfig
from hf_vitcompress.callbacks import CompressionCallback, CompressionMetricsCallback

DIGITS = Path(__file__).parent / "digits"


def load_images(name: str) -> datasets.DatasetDict:
    """The splits of a folder of images (sub-folders are classes), a parquet file or a Hub data set."""
    if Path(name).is_dir():
        return datasets.load_dataset("imagefolder", data_dir=name)
    if Path(name).suffix == ".parquet":
        return datasets.load_dataset("parquet", data_files=name)
    return datasets.load_dataset(name)


def load_splits(train: str, test: str | None) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training images and test images; without test images, a fifth of the training images is held out."""
    splits = load_images(train)
    if test is not None:
        others = load_images(test)
        return splits["train"], others["test" if "test" in others else next(iter(others))]
    held_out = next((splits[name] for name in ("test", "validation") if name in splits), None)
    if held_out is None:
        splits = splits["train"].train_test_split(0.2, seed=0)
        held_out = splits["test"]
    return splits["train"], held_out


def columns_of(dataset: datasets.Dataset) -> tuple[str, str]:
    """Names of the columns of images and of class labels."""
    kinds = (datasets.Image, datasets.ClassLabel)
    found = [next((n for n, f in dataset.features.items() if isinstance(f, kind)), None) for kind in kinds]
    if None in found:
        raise SystemExit(f"error: images and class labels are needed; the columns are {dataset.features}.")
    return found[0], found[1]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(numpy.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DIGITS / "model"), help="Hub id or folder of a ViT or DeiT")
    parser.add_argument("--train", required=True, help="folder of images, parquet file or Hub data set")
    parser.add_argument("--test", help="test images, likewise (default: the test split of --train, or a fifth of it)")
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    parser.add_argument(
        "--rank-multiple", type=int, default=8, help="ranks are multiples of it; use 2 for models narrower than 200"
    )
    parser.add_argument("--dense-epochs", type=float, default=1.0, help="epochs before the compression")
    parser.add_argument("--recovery-epochs", type=float, default=2.0, help="epochs after it")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--output", type=Path, required=True, help="folder for the compressed model")
    return parser.parse_args()


def main() -> None:
    options = parse()
    train, test = load_splits(options.train, options.test)
    image, label = columns_of(train)
    names = train.features[label].names
    processor = AutoImageProcessor.from_pretrained(options.model)
    model = AutoModelForImageClassification.from_pretrained(
        options.model,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        ignore_mismatched_sizes=True,
    )

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = [row[image].convert("RGB") for row in rows]
        labels = torch.tensor([row[label] for row in rows])
        return {**processor(images=images, return_tensors="pt"), "labels": labels}

    epochs = options.dense_epochs + options.recovery_epochs
    compression = CompressionCallback(
        CompressionConfig(keep_ratio=options.keep_ratio, rank_multiple=options.rank_multiple),
        at_step=options.dense_epochs / epochs,
        output_dir=options.output,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            remove_unused_columns=False,
            label_names=["labels"],
            save_strategy="no",
            logging_steps=20,
            report_to="none",
        )
        trainer = Trainer(
            model,
            arguments,
            data_collator=collate,
            train_dataset=train,
            eval_dataset=test,
            compute_metrics=accuracy,
            processing_class=processor,
        )
        compression.attach(trainer)
        CompressionMetricsCallback().attach(trainer)
        trainer.train()
        recovered = trainer.evaluate()
    if not trainer.is_world_process_zero():
        return
    console = Console()
    if compression.report is not None:
        console.print(compression.report.render())
    table = Table("", "dense", "compressed", "recovered")
    found = (compression.dense_metrics["eval_dense_accuracy"], compression.compressed_metrics["eval_accuracy"])
    table.add_row("accuracy", *(f"{value:.2%}" for value in (*found, recovered["eval_accuracy"])))
    console.print(table)
    console.print(f"saved to {options.output}")


if __name__ == "__main__":
    main()

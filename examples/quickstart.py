"""Compress, save, reload and evaluate the digits model that this repository carries, and print the before/after table.

The same from the terminal, from this folder:

    vitcompress compress digits/model --data digits/calibration.parquet --test digits/test.parquet \
        --keep-ratio 0.5 --rank-multiple 2 --output compressed-digits
"""

import argparse
import tempfile
from pathlib import Path

import datasets
import transformers
from rich.console import Console
from transformers import AutoModelForImageClassification, pipeline

from hf_vitcompress import CompressionConfig, ViTCompressor, evaluate_model

DIGITS = Path(__file__).parent / "digits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for the compressed model (default: a temporary one)")
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    arguments = parser.parse_args()
    datasets.disable_progress_bars()  # the libraries' own; the bars that are left are the compressor's
    transformers.logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as temporary:
        output = arguments.output or Path(temporary) / "compressed-digits"

        # Ranks in steps of 2 instead of 8: the layers of this model are only 64 wide.
        compressor = ViTCompressor(CompressionConfig(keep_ratio=arguments.keep_ratio, rank_multiple=2))
        dense = compressor.open(DIGITS / "model")
        small = compressor.compress(dense, DIGITS / "calibration.parquet")
        small.save_pretrained(output)

        reloaded = AutoModelForImageClassification.from_pretrained(output)
        test = compressor.open_images(DIGITS / "test.parquet", dense)
        report = compressor.report
        report.evaluation = evaluate_model(reloaded, test, dense.processor, against=dense.model)

        console = Console()
        console.print(report.render())
        classify = pipeline("image-classification", model=str(output))
        image = test.select([0])
        answer = classify(image.decoded(0))[0]
        console.print(f"pipeline() on the saved folder: a {answer['label']} (truth: {image.labels[0]})")


if __name__ == "__main__":
    main()

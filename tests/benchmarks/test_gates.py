"""The benchmark of learned importance scores: its figures show the numbers that it wrote."""

import json

import gates
import pytest
import torch
from common import RESULTS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_vitcompress.importance.report import GateLayer, GatePoint

POINTS = [GatePoint(1, 2.0, 12, 0.0, 1.0, 0.0, 0.0), GatePoint(2, 5.0, 24, 0.3, 0.6, 0.1, 0.4)]
LAYERS = [
    GateLayer("vit.layers.0.mlp.fc2", 24, 0.6, 0.1, 0.4),
    GateLayer("vit.layers.0.attention.o_proj", 4, 0.9, 0.0, 0.25),
]


@pytest.fixture
def axes() -> Axes:
    return Figure().subplots()


def test_sparsity_is_drawn_over_seconds(axes: Axes) -> None:
    gates.sparsity_over_seconds(axes, POINTS)
    below_half, near_zero = axes.get_lines()
    for line, values in ((below_half, [0.0, 0.4]), (near_zero, [0.0, 0.1])):
        assert list(line.get_xdata()) == [2.0, 5.0]
        assert list(line.get_ydata()) == values
    _, losses = axes.figure.axes
    assert list(losses.get_lines()[0].get_ydata()) == [0.0, 0.3]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "scores below 0.5",
        "scores below 0.1",
        "loss (right)",
    ]


def test_sparsity_is_drawn_by_layer(axes: Axes) -> None:
    gates.sparsity_by_layer(axes, LAYERS)
    assert [bar.get_height() for bar in axes.patches] == [0.4, 0.25, 0.1, 0.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0 fc2", "0 o_proj"]


def test_the_histogram_is_of_sizes(axes: Axes) -> None:
    gates.spread(axes, torch.tensor([-1.0, 1.0, 0.5, 2.0]))
    heights = [bar.get_height() for bar in axes.patches]
    assert sum(heights) == 4
    assert max(heights) == 2
    assert axes.patches[-1].get_x() + axes.patches[-1].get_width() == pytest.approx(2.0)


def test_what_was_written_is_what_the_numbers_say() -> None:
    content = json.loads((RESULTS / "gates.json").read_text(encoding="utf-8"))
    assert gates.markdown(content) == (RESULTS / "gates.md").read_text(encoding="utf-8")
    assert len(gates.figure(content).axes) == 4

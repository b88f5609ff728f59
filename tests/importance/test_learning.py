"""How importance scores are learned."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from transformers import ViTModel

from hf_vitcompress import CompressionConfig
from hf_vitcompress.durations import Duration
from hf_vitcompress.errors import CompensationError, DataError
from hf_vitcompress.gate_plots import sparsity_by_layer, sparsity_over_seconds, spread
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.importance.gates import gates_of
from hf_vitcompress.importance.learning import GateLearner, gate_checkpoint, learn_gates
from hf_vitcompress.runtime.checkpoints import Checkpoint
from support.gated import CONFIG, ELSEWHERE, FC2, PIXELS, SMALL, TWO_EPOCHS, images, learned, small
from support.students import lively

FOUR_EPOCHS = Duration(4.0, "epochs")


def test_a_useless_neuron_gets_the_lowest_score() -> None:
    model = small()
    layer = model.get_submodule(FC2)
    layer.weight.data[:, 5] = 0
    layer.weight.data[:, 7] *= 8
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values, report = learned(model, FOUR_EPOCHS, gate_l1=0.01, gate_learning_rate=0.1)
    assert int(values[FC2].argmin()) == 5
    assert values[FC2][7] > values[FC2].median()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert report.points[0].mean > report.points[-1].mean


def test_a_larger_penalty_leaves_fewer() -> None:
    means = [learned(gate_l1=l1, gate_learning_rate=0.1)[1].points[-1].mean for l1 in (0.01, 1.0, 100.0)]
    assert means[0] > means[1] > means[2]


def test_without_classes_and_with_labels() -> None:
    values, report = learn_gates(lively(ViTModel, SMALL), images(), CONFIG, TWO_EPOCHS, progress=False)
    assert set(values) == {"layers.0.mlp.fc2", "layers.0.attention.o_proj"}
    assert report.points[-1].loss > 0
    labelled = ImageSource(list(PIXELS), [i % 5 for i in range(48)], "the images")
    config = CompressionConfig.from_dict({**CONFIG.to_dict(), "label_weight": 1.0})
    taught = learn_gates(small(), labelled, config, TWO_EPOCHS, progress=False)[1]
    assert taught.points[0].loss > learned()[1].points[0].loss + 0.5  # the cross entropy


def test_the_course_is_reported(tmp_path: Path) -> None:
    values, report = learned(gate_learning_rate=0.2)
    assert [point.step for point in report.points] == list(range(1, 9))
    assert [point.images for point in report.points] == list(range(12, 97, 12))
    assert report.points[0].loss == pytest.approx(0, abs=1e-6)  # all scores are 1 and the two models are one
    every = torch.cat(list(values.values()))
    assert report.near_zero == pytest.approx(float((every < 0.1).float().mean()))
    assert [layer.name for layer in report.layers] == list(values)
    by_layer = {layer.name: layer for layer in report.layers}
    assert by_layer[FC2].mean == pytest.approx(float(values[FC2].abs().mean()))
    assert by_layer[FC2].count == 24
    axes = Figure().subplots(1, 3)
    sparsity_over_seconds(axes[0], report.points)
    sparsity_by_layer(axes[1], report.layers)
    spread(axes[2], every)
    assert list(axes[0].get_lines()[0].get_ydata()) == [point.below_half for point in report.points]


def test_minutes_bound_the_time() -> None:
    report = learned(duration=Duration(0.005, "minutes"))[1]
    assert report.seconds < 3
    assert report.points[-1].step >= 1


class Killed(Exception):  # noqa: N818 (no error of the package's)
    pass


def test_an_interrupted_learning_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = gate_checkpoint(tmp_path / "stats", small(), images(), CONFIG, TWO_EPOCHS, Accelerator())
    expected, report = learned()
    monkeypatch.setattr("hf_vitcompress.training.loop.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("hf_vitcompress.training.loop.CHECK_EVERY", 3)
    original = GateLearner.gradients

    def dying(self: GateLearner, step: int) -> float:
        if step == 5:
            raise Killed
        return original(self, step)

    monkeypatch.setattr(GateLearner, "gradients", dying)
    model = small()
    with pytest.raises(Killed):
        learn_gates(model, images(), CONFIG, TWO_EPOCHS, None, kept, progress=False)
    assert not gates_of(model)
    monkeypatch.setattr(GateLearner, "gradients", original)
    values, resumed = learn_gates(small(), images(), CONFIG, TWO_EPOCHS, None, kept, progress=False)
    assert all(torch.equal(values[name], expected[name]) for name in expected)
    assert [point.loss for point in resumed.points] == [point.loss for point in report.points]
    again, _ = learn_gates(small(), images(), CONFIG, TWO_EPOCHS, None, kept, progress=False)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_what_cannot_be_learned_from_is_named() -> None:
    model = small()
    model.classifier.weight.data.fill_(torch.nan)
    with pytest.raises(CompensationError, match="Lower gate_learning_rate"):
        learned(model)
    assert not gates_of(model)
    broken = ImageSource(["nothing.png"] * 12, None, "the images")
    with pytest.raises(DataError, match="None of the 12 images"):
        learn_gates(small(), broken, CONFIG, TWO_EPOCHS, object(), progress=False)


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_scores_of_other_architectures_are_learned(kind: str) -> None:
    model_class, config, fc2, out = ELSEWHERE[kind]
    model = lively(model_class, config)
    model.get_submodule(fc2).weight.data[:, 5] = 0
    values, _ = learned(model, FOUR_EPOCHS, gate_l1=0.01, gate_learning_rate=0.1)
    assert set(values) == {fc2, out}
    assert values[fc2][5] == pytest.approx(float(values[fc2].min()), abs=0.01)
    assert values[fc2].max() > values[fc2].min() + 0.1


def test_no_path_keeps_no_checkpoint() -> None:
    kept = gate_checkpoint(None, small(), images(), CONFIG, TWO_EPOCHS, Accelerator())
    assert isinstance(kept, Checkpoint)
    assert kept.path is None

"""How importance scores are learned."""

from pathlib import Path

import pytest
import torch
from transformers import ViTModel

from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.errors import CompensationError, DataError
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.importance.gates import gates_of
from hf_vitcompress.importance.learning import GateLearner, gate_checkpoint
from hf_vitcompress.runtime.checkpoints import Checkpoint
from support.gated import CONFIG, ELSEWHERE, FC2, PIXELS, SMALL, images, learned, small
from support.stages import quiet
from support.students import lively

FOUR_EPOCHS = "4 epochs"


def test_a_useless_neuron_gets_the_lowest_score() -> None:
    model = small()
    layer = model.get_submodule(FC2)
    layer.weight.data[:, 5] = 0
    layer.weight.data[:, 7] *= 8
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values, report = learned(model, FOUR_EPOCHS, gate_l1=0.01, learning_rate=0.1)
    assert int(values[FC2].argmin()) == 5
    assert values[FC2][7] > values[FC2].median()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert report.points[0].mean > report.points[-1].mean


def test_a_larger_penalty_leaves_fewer() -> None:
    means = [learned(gate_l1=l1, learning_rate=0.1)[1].points[-1].mean for l1 in (0.01, 1.0, 100.0)]
    assert means[0] > means[1] > means[2]


def test_without_classes_and_with_labels() -> None:
    values, report = learned(lively(ViTModel, SMALL))
    assert set(values) == {"layers.0.mlp.fc2", "layers.0.attention.o_proj"}
    assert report.points[-1].loss > 0
    labelled = ImageSource(list(PIXELS), [i % 5 for i in range(48)], "the images")
    taught = learned(source=labelled, label_weight=1.0)[1]
    assert taught.points[0].loss > learned()[1].points[0].loss + 0.5  # the cross entropy


def test_the_course_is_reported() -> None:
    values, report = learned(learning_rate=0.2)
    assert [point.step for point in report.points] == list(range(1, 9))
    assert [point.images for point in report.points] == list(range(12, 97, 12))
    assert report.points[0].loss == pytest.approx(0, abs=1e-6)  # all scores are 1 and the two models are one
    every = torch.cat(list(values.values()))
    assert report.near_zero == pytest.approx(float((every < 0.1).float().mean()))
    assert [layer.name for layer in report.layers] == list(values)
    by_layer = {layer.name: layer for layer in report.layers}
    assert by_layer[FC2].mean == pytest.approx(float(values[FC2].abs().mean()))
    assert by_layer[FC2].count == 24


def test_minutes_bound_the_time() -> None:
    report = learned(duration="0.005 minutes")[1]
    assert report.seconds < 3
    assert report.points[-1].step >= 1


class Killed(Exception):  # noqa: N818 (no error of the package's)
    pass


def test_an_interrupted_learning_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = gate_checkpoint(tmp_path / "stats", Subject.alone(small()), images(), quiet(CONFIG))
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
        learned(model, checkpoint=kept)
    assert not gates_of(model)
    monkeypatch.setattr(GateLearner, "gradients", original)
    values, resumed = learned(checkpoint=kept)
    assert all(torch.equal(values[name], expected[name]) for name in expected)
    assert [point.loss for point in resumed.points] == [point.loss for point in report.points]
    again, _ = learned(checkpoint=kept)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_what_cannot_be_learned_from_is_named() -> None:
    model = small()
    model.classifier.weight.data.fill_(torch.nan)
    with pytest.raises(
        CompensationError, match=r"The loss became nan after 0 steps of learning scores\. Use precision"
    ):
        learned(model)
    assert not gates_of(model)
    broken = ImageSource(["nothing.png"] * 12, None, "the images")
    with pytest.raises(DataError, match="None of the 12 images"):
        learned(source=broken)


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_scores_of_other_architectures_are_learned(kind: str) -> None:
    model_class, config, fc2, out = ELSEWHERE[kind]
    model = lively(model_class, config)
    model.get_submodule(fc2).weight.data[:, 5] = 0
    values, _ = learned(model, FOUR_EPOCHS, gate_l1=0.01, learning_rate=0.1)
    assert set(values) == {fc2, out}
    assert values[fc2][5] == pytest.approx(float(values[fc2].min()), abs=0.01)
    assert values[fc2].max() > values[fc2].min() + 0.1


def test_no_path_keeps_no_checkpoint() -> None:
    kept = gate_checkpoint(None, Subject.alone(small()), images(), quiet(CONFIG))
    assert isinstance(kept, Checkpoint)
    assert kept.path is None

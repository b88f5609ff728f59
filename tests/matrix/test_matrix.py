"""The contract of every family: heads × ways to compress them, from a checkpoint with old keys to training.

A new family is in it as soon as `zoo.HEADS` has tiny models of its heads.
"""

import copy
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from hf_vitcompress import CompressionConfig, ViTCompressor, to_dense
from hf_vitcompress.architectures.families import FAMILIES
from hf_vitcompress.architectures.inputs import model_inputs
from hf_vitcompress.architectures.layers import find_layers, linear_layer, may_prune_heads
from hf_vitcompress.architectures.outputs import Term, divergence, outputs_of
from hf_vitcompress.architectures.registration import MODEL_TYPES
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.configuration_factored import OWN_TYPES, heads_of
from hf_vitcompress.errors import ConfigError
from hf_vitcompress.layers_factored import Constant, Removed
from hf_vitcompress.model.loading import load_model
from hf_vitcompress.model.shapes import infer_layers, shapes_of
from hf_vitcompress.modeling_factored import compressed_modules
from hf_vitcompress.planning.building import build_model
from hf_vitcompress.planning.plan import CompressionPlan
from support.ways import compressor_for
from support.zoo import HEADS, IMAGES, Head
from support_table import attention_of

WAYS: dict[str, dict[str, Any]] = {
    "low rank": {"attention": "low_rank", "mlp": "low_rank"},
    "pruned": {"attention": "prune", "mlp": "prune"},
    "both": {},
}
REPORTED = "both"
"""The way that goes through the whole compressor; counting the costs for a report takes as long as the rest."""
JUDGED = 4


def dense_from_old_keys(head: Head, folder: Path) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model, and what is loaded when it was saved with the key layout that transformers 4 had."""
    model = head.dense()
    model.save_pretrained(folder, save_original_format=True)
    if head.old_prefix:
        path = folder / "model.safetensors"
        tensors = {head.old_prefix + name: tensor for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    return model, load_model(folder, Accelerator(cpu=True))


@dataclass
class Case:
    """A head, compressed in one way."""

    head: Head
    original: PreTrainedModel
    dense: PreTrainedModel
    before: dict[str, Tensor]
    small: PreTrainedModel
    plan: CompressionPlan
    kept_parameters: int
    folder: Path

    @cached_property
    def loaded(self) -> PreTrainedModel:
        """From its folder; a copy is for those who change it."""
        return load_model(self.folder, Accelerator(cpu=True))

    def reads(self, name: str) -> bool:
        """Whether the head reads the block of that module: some segmentation heads leave the last one alone."""
        return any(name.startswith(f"{block}.") for block in self.read_blocks)

    @cached_property
    def read_blocks(self) -> set[str]:
        backward(self.dense, self.head)
        layers = find_layers(self.dense)
        found = {layer.block_name for layer in layers if linear_layer(self.dense, layer.name).weight.grad is not None}
        self.dense.zero_grad()
        return found

    def outputs(self, model: PreTrainedModel) -> list[Term]:
        with torch.no_grad():
            return outputs_of(Subject.alone(model), self.head.pixels(JUDGED, seed=5))


def backward(model: PreTrainedModel, head: Head) -> None:
    terms = outputs_of(Subject.alone(model), head.pixels(JUDGED))
    torch.stack([term.values.square().sum() for term in terms]).sum().backward()


def make(head: Head, way: str, root: Path) -> Case:
    original, dense = dense_from_old_keys(head, root / "dense")
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    compressor = compressor_for(dense, WAYS[way])
    if way == REPORTED:
        small = compressor.compress(dense, head.pixels())
        plan = small.companions[0].plan
    else:
        planner = compressor.planner(dense, compressor.calibrate(dense, head.pixels()))
        plan = planner.plan(compressor.config)
        small = build_model(dense, plan, planner.groups)
    small.companions = []  # the report and its figure are others' concern
    small.save_pretrained(root / "small")
    assert plan.keep_ratio is not None
    return Case(
        head, original, dense, before, small, plan, round(plan.keep_ratio * dense.num_parameters()), root / "small"
    )


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    head, way = request.param
    with warnings.catch_warnings():
        # These widths are not what anybody calibrates.
        warnings.filterwarnings("ignore", message=".*calibration tokens reached.*")
        yield make(head, way, tmp_path_factory.mktemp("case"))


def same(ours: list[Term], theirs: list[Term], tolerance: float = 1e-5) -> bool:
    """To rounding, because a convolution's depends on where its tensors lie."""
    return all(
        torch.allclose(one.values, other.values, rtol=tolerance, atol=tolerance)
        for one, other in zip(ours, theirs, strict=True)
    )


def cases() -> list[tuple[Head, str]]:
    """The first head of each form of a family goes every way, the others one each, in turn: blocks are the same."""
    found, seen = [], set()
    turns = itertools.cycle(WAYS)
    for head in HEADS:
        first = (head.family, head.variant, *head.images) not in seen
        seen.add((head.family, head.variant, *head.images))
        found += [(head, way) for way in (WAYS if first else (next(turns),))]
    return found


CASES = cases()


def with_weights(model: PreTrainedModel) -> list[str]:
    """The compressed modules that were not removed."""
    names = compressed_modules(model)
    return [name for name in names if not isinstance(model.get_submodule(name), Removed | Constant)]


@pytest.mark.parametrize("case", CASES, indirect=True, ids=[f"{head}-{way}" for head, way in CASES], scope="module")
class TestEveryHead:
    """What a compressed model of any head of any family is and does."""

    def test_a_checkpoint_with_the_keys_of_transformers_4_is_the_same_model(self, case: Case) -> None:
        assert type(case.dense) is type(case.original)
        assert same(case.outputs(case.dense), case.outputs(case.original))

    def test_the_dense_model_is_as_it_was(self, case: Case) -> None:
        after = case.dense.state_dict()
        assert after.keys() == case.before.keys()
        assert all(torch.equal(after[name], case.before[name]) for name in after)
        assert not case.dense.training

    def test_every_block_has_its_layers_and_the_plan_changes_some(self, case: Case) -> None:
        layers = find_layers(case.dense)
        assert {layer.block for layer in layers} == set(range(max(layer.block for layer in layers) + 1))
        assert case.plan.layers

    def test_it_has_as_many_parameters_as_the_plan_says_and_fewer_than_before(self, case: Case) -> None:
        assert case.small.num_parameters() == case.kept_parameters < case.dense.num_parameters()

    def test_it_answers_much_as_the_dense_model_does(self, case: Case) -> None:
        dense, small = case.outputs(case.dense), case.outputs(case.small)
        shuffled = [Term(term.values.roll(1, 0), term.weight) for term in dense]
        assert all(torch.isfinite(term.values).all() for term in small)
        assert 0 < divergence(dense, small).mean() < divergence(dense, shuffled).mean()

    def test_an_auto_class_loads_it_whole(self, case: Case) -> None:
        assert type(case.loaded) is type(case.small)
        assert type(case.loaded).__name__ == f"Factored{case.head.name}"
        assert same(case.outputs(case.loaded), case.outputs(case.small))
        for auto_name, classes in heads_of(case.head.family).items():
            if case.head.model_class in classes:
                # AutoBackbone's own method wants a Hub id; a folder it cannot read, dense or not.
                method = _BaseAutoModelClass.from_pretrained.__func__
                auto, info = method(getattr(modeling_auto, auto_name), case.folder, output_loading_info=True)
                assert type(auto) is type(case.small)
                assert not any(info.values())

    def test_its_layout_can_be_read_off_its_tensors(self, case: Case) -> None:
        assert infer_layers(shapes_of(case.small.state_dict()), case.dense) == case.plan.layers

    def test_gradients_reach_every_factor(self, case: Case) -> None:
        backward(case.small, case.head)
        for name in with_weights(case.small):
            weights = [p for n, p in case.small.get_submodule(name).named_parameters() if n.endswith("weight")]
            assert weights
            if case.reads(name):
                assert all(w.grad is not None and torch.isfinite(w.grad).all() and w.grad.any() for w in weights), name
        case.small.zero_grad()

    def test_a_trainer_trains_it(self, case: Case, tmp_path: Path) -> None:
        model = copy.deepcopy(case.loaded)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        trained_two_steps(model, case, tmp_path)
        after = dict(model.named_parameters())
        assert all(torch.isfinite(parameter).all() for parameter in after.values())
        for name in filter(case.reads, with_weights(model)):
            weights = [n for n in after if n.startswith(f"{name}.") and n.endswith("weight")]
            assert weights
            assert not all(torch.equal(after[n], before[n]) for n in weights), name

    def test_multiplied_out_it_is_the_dense_class_and_computes_the_same(self, case: Case) -> None:
        wide = to_dense(case.small)
        assert type(wide) is case.head.model_class
        assert wide.num_parameters() == case.dense.num_parameters()
        assert same(case.outputs(wide), case.outputs(case.small), tolerance=2e-3)

    def test_in_bfloat16_it_computes_nearly_the_same(self, case: Case) -> None:
        half = copy.deepcopy(case.loaded).to(torch.bfloat16)
        exact, rounded = case.outputs(case.small), case.outputs(half)
        assert half.dtype == torch.bfloat16
        assert (
            divergence(exact, rounded).mean()
            < 0.1 * divergence(exact, [Term(term.values.roll(1, 0), term.weight) for term in exact]).mean() + 1e-3
        )


class OwnLoss(Trainer):
    """Minimises the head's own loss where it has one, else the distance from what the dense model says."""

    case: Case

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        case = self.case
        pixels = case.head.pixels()[inputs["index"]]
        if case.head.targets is None:
            with torch.no_grad():
                taught = outputs_of(Subject.alone(case.dense), pixels)
            return divergence(taught, outputs_of(Subject.alone(model), pixels), dtype=torch.float32).sum()
        chosen = case.head.targets(IMAGES)
        labels = chosen[inputs["index"]] if isinstance(chosen, Tensor) else [chosen[i] for i in inputs["index"]]
        return model(**model_inputs(model, pixels), labels=labels).loss


def trained_two_steps(model: PreTrainedModel, case: Case, folder: Path) -> None:
    settings = TrainingArguments(
        str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        warmup_steps=0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        lr_scheduler_type="constant",
    )
    trainer = OwnLoss(model, settings, train_dataset=[{"index": i} for i in range(8)])
    trainer.case = case
    trainer.train()


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_heads_that_cannot_be_cut_are_refused_and_others_are_not(head: Head) -> None:
    model = head.dense()
    attention = attention_of(find_layers(model))
    if attention is not None and may_prune_heads(model, attention):
        return
    compressor = ViTCompressor(CompressionConfig(attention="prune", measuring_images=0), progress=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*calibration tokens reached.*")
        with pytest.raises(ConfigError, match=type(model.get_submodule(attention)).__name__):
            compressor.compress(model, head.pixels())


def test_every_family_and_every_head_of_it_is_in_the_matrix() -> None:
    tested = {head.model_class for head in HEADS}
    takes_text = {"CLIPModel", "SiglipModel", "Siglip2Model", "LlavaModel", "LlavaForConditionalGeneration"}
    for model_type in {*FAMILIES, *MODEL_TYPES} - {*OWN_TYPES}:  # timm's have tests of their own, in with_timm
        heads = {dense for classes in heads_of(model_type).values() for dense in classes}
        assert {dense.__name__ for dense in heads - tested} <= takes_text, model_type

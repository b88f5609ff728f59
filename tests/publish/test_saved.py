"""What lies beside a model goes along through training, quantization, the dense form and a program."""

import copy
import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from transformers import AutoModelForImageClassification, PreTrainedModel, Trainer

from hf_vitcompress import CompressionReport, quantize, to_dense
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.publish import saved
from hf_vitcompress.publish.names import code_of, files_along, goes_along, published_files
from hf_vitcompress.publish.push import push_folder
from hf_vitcompress.publish.saved import HubFiles, companions_for, save_beside_program
from support.factored import Labelled, training_arguments
from support.fake_hub import FakeHub, running_hub  # noqa: F401  (the fixture "hub")
from support.published import PUBLISHED, Made, card_of, contents
from support.pushing import PIXELS

TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "qformer_tokenizer/vocab.txt"}


def load(folder: Path | str) -> PreTrainedModel:
    return AutoModelForImageClassification.from_pretrained(folder)


@pytest.fixture
def rich(folder: Path) -> Path:
    """A compressed model with a tokenizer, a licence and somebody's own files beside it."""
    for name in (*TOKENIZER, "LICENSE", ".env", "token.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def trained(rich: Path, tmp_path: Path) -> Path:
    """What a Trainer that knows nothing of this package saves of it."""
    model = load(rich)
    trainer = Trainer(model, training_arguments(tmp_path / "runs"), train_dataset=Labelled4())
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    return tmp_path / "trained"


class Labelled4(Labelled):
    """Images of the four classes of the model."""

    def __init__(self) -> None:
        super().__init__(PIXELS)


ALONG = {*PUBLISHED, *TOKENIZER, "LICENSE"}


def test_a_training_keeps_what_is_known_of_the_model(trained: Path) -> None:
    assert contents(trained).keys() == {*ALONG, "training_args.bin"}
    assert contents(trained.parent / "runs" / "checkpoint-2").keys() >= ALONG
    report, text = CompressionReport.load(trained), (trained / "compression_report.md").read_text()
    assert report.later_weights is not None
    assert report.judgement is None
    assert text.startswith("The weights were changed after the compression")
    assert "--update-card" in text
    card = (trained / "README.md").read_text()
    assert "Afterwards the weights were changed" in card
    assert "--update-card` has judged them" in card
    assert "model-index" not in card


def test_a_trained_model_is_loaded_saved_and_pushed_with_it(trained: Path, tmp_path: Path, hub: FakeHub) -> None:
    load(trained).save_pretrained(tmp_path / "again")
    push_folder(tmp_path / "again", "me/x")
    assert hub.files("me/x").keys() - {".gitattributes"} == ALONG
    assert "Afterwards the weights were changed" in card_of(hub.files("me/x")).text
    load("me/x").save_pretrained(tmp_path / "from-hub")
    again = {name: content for name, content in contents(tmp_path / "from-hub").items() if name != "README.md"}
    assert again == {name: hub.files("me/x")[name] for name in again}
    assert again.keys() == ALONG - {"README.md"}


def test_figures_that_were_measured_anew_are_shown(trained: Path) -> None:
    report = CompressionReport.load(trained)
    assert report.evaluation is not None
    report.evaluation = replace(report.evaluation, weights=report.later_weights)
    assert report.judgement is report.evaluation
    assert report.beside(report.weights).later_weights is None


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_merged_adapters_keep_it(rich: Path, tmp_path: Path) -> None:
    from support.adapters import require_peft

    peft = require_peft()
    adapted = peft.get_peft_model(load(rich), peft.LoraConfig(target_modules="all-linear"))
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert contents(tmp_path / "merged").keys() == ALONG


def test_the_dense_form_has_what_it_is_used_with_and_no_report(rich: Path, tmp_path: Path) -> None:
    dense = to_dense(load(rich))
    for name, model in {
        "itself": dense,
        "copied": copy.deepcopy(dense),
        "pickled": pickle.loads(pickle.dumps(dense)),
    }.items():
        model.save_pretrained(tmp_path / name)
        expected = {"config.json", "model.safetensors", "preprocessor_config.json", "LICENSE", *TOKENIZER}
        assert contents(tmp_path / name).keys() == expected, name
    assert [type(item) for item in companions_for(Subject.alone(dense))] == [type(dense.companions[0])]


def test_quantized_models_keep_it_dense_or_compressed(rich: Path, trained: Path, tmp_path: Path) -> None:
    quantize(rich).save_pretrained(tmp_path / "int8")
    assert contents(tmp_path / "int8").keys() == ALONG
    assert CompressionReport.load(tmp_path / "int8").later_weights is None
    quantize(trained).save_pretrained(tmp_path / "trained-int8")
    assert CompressionReport.load(tmp_path / "trained-int8").later_weights is not None
    quantize(to_dense(load(rich))).save_pretrained(tmp_path / "dense-int8")
    assert contents(tmp_path / "dense-int8").keys() >= {"LICENSE", *TOKENIZER}


@pytest.mark.parametrize("record", [True, False])
def test_a_program_gets_what_it_is_used_with(rich: Path, record: bool, tmp_path: Path) -> None:
    save_beside_program(tmp_path, load(rich), record)
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    used = {"preprocessor_config.json", "LICENSE", *(name for name in TOKENIZER if "/" not in name)}
    about = {name for name in PUBLISHED if name.startswith("compression_")}
    assert names == used | (about if record else set())


def test_a_given_image_processor_goes_before_that_of_the_folder(made: Made, tmp_path: Path) -> None:
    given = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.1] * 3)
    dense = load(made.dense)
    for companion in companions_for(Subject.alone(dense, given), given):
        companion.save_pretrained(tmp_path)
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path).image_mean == (0.1, 0.1, 0.1)


def test_a_hub_that_does_not_answer_costs_the_report_and_not_the_weights(
    hub: FakeHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add_repo("me/x", contents(folder))
    model = load("me/x")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no way")

    monkeypatch.setattr(saved, "persistently", unreachable)
    for _ in range(2):
        model.save_pretrained(tmp_path / "copy")
    assert [line for line in caplog.messages if "do not go along: no way." in line] == caplog.messages[-1:]
    assert (tmp_path / "copy" / "model.safetensors").is_file()


def test_a_copy_of_files_on_the_hub_has_no_token() -> None:
    files = HubFiles("me/x", token="hf_secret")
    assert b"hf_secret" not in pickle.dumps(files)
    assert copy.deepcopy(files).token is None


# ---- names


def names_in_transformers() -> Iterator[str]:
    """What its tokenizers save their vocabularies to."""
    folder = Path(transformers.__file__).parent
    for path in [*folder.glob("models/*/tokenization*.py"), *folder.glob("tokenization*.py")]:
        for block in re.findall(r"(?i)vocab_files_names\s*=\s*\{(.*?)\}", path.read_text("utf-8"), re.DOTALL):
            yield from re.findall(r':\s*"([^"]+)"', block)


def test_every_file_of_every_tokenizer_goes_along() -> None:
    names = set(names_in_transformers())
    assert len(names) > 20
    assert [name for name in sorted(names) if not goes_along(name)] == []


@pytest.mark.parametrize(
    "name",
    [
        "special_tokens_map.json",
        "added_tokens.json",
        "video_preprocessor_config.json",
        "generation_config.json",
        "audio_tokenizer_config.json",
        "chat_template.json",
        "additional_chat_templates/tool_use.jinja",
        "qformer_tokenizer/tokenizer.json",
        "qwen.tiktoken",
        "tokenizer.model.v3",
    ],
)
def test_other_files_of_processors_go_along(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    assert name in files_along(folder)
    assert name in published_files(folder)


CODE = {
    "preprocessor_config.json": b'{"auto_map": {"AutoImageProcessor": "image_processing_my.My"}}',
    "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": [null, "tokenization_my.My"]}}',
    "processor_config.json": b'{"image_processor": {"auto_map": {"AutoImageProcessor": "nested.My"}}}',
    "image_processing_my.py": b"from .helpers import scale\nimport torch\n",
    "helpers.py": b"from .image_processing_my import My",
    "tokenization_my.py": b"",
    "nested.py": b"",
    "secrets.py": b"TOKEN = 1",
    "train.py": b"from .helpers import scale",
}


def test_code_that_a_config_names_goes_along_and_no_other(folder: Path) -> None:
    named = {"image_processing_my.py", "helpers.py", "tokenization_my.py", "nested.py"}
    assert code_of(CODE.keys(), CODE.__getitem__) == named
    for name, content in CODE.items():
        (folder / name).write_bytes(content)
    assert {name for name in published_files(folder) if name in CODE and name.endswith(".py")} == named


@pytest.mark.parametrize("config", [b"{", b"[]", b"3", b'{"auto_map": 3}', b'{"auto_map": {"A": "../../etc.B"}}'])
def test_a_config_that_names_no_code_of_the_folder_adds_none(config: bytes) -> None:
    files = {"preprocessor_config.json": config, "x.py": b""}
    assert code_of(files.keys(), files.__getitem__) == set()

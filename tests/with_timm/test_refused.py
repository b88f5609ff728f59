"""Models of timm that are refused before any image is read."""

from typing import Any

import pytest
from transformers import TimmBackbone, TimmBackboneConfig, TimmWrapperConfig, TimmWrapperModel

timm = pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` has it")

import hf_vitcompress.timm  # noqa: E402, F401
from hf_vitcompress.errors import UnsupportedModelError  # noqa: E402
from hf_vitcompress.model.subject import open_subject  # noqa: E402
from support.timm_compressed import ARGUMENTS, VIT, compressed  # noqa: E402

FEATURES: dict[str, Any] = {**ARGUMENTS[VIT], "features_only": True, "out_indices": [0, 1]}


@pytest.mark.parametrize("kind", ["module", "wrapper", "backbone"])
def test_a_feature_extractor_is_refused_with_what_works(kind: str) -> None:
    if kind == "module":
        model: Any = timm.create_model(VIT, **FEATURES)
    elif kind == "wrapper":
        model = TimmWrapperModel(TimmWrapperConfig(architecture=VIT, model_args=FEATURES, num_labels=0))
    else:
        model = TimmBackbone(TimmBackboneConfig(backbone=VIT, out_indices=[0, 1]), **ARGUMENTS[VIT])
    with pytest.raises(UnsupportedModelError, match=r"feature extractor of timm.*local-dir:FOLDER"):
        open_subject(model)


def test_a_module_of_timm_that_is_compressed_is_refused(tmp_path) -> None:
    compressed(VIT).save_pretrained(tmp_path)
    small = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    with pytest.raises(UnsupportedModelError, match="compressed already"):
        open_subject(small)

"""PEFT, where transformers takes it."""

from types import ModuleType

import pytest
import transformers
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION


def require_peft() -> ModuleType:
    """PEFT. What asks for it, a test or a whole module, is skipped where transformers cannot use it."""
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'hf-vitcompress[adapters]'")
    if Version(peft.__version__) < Version(MIN_PEFT_VERSION):
        reason = f"transformers {transformers.__version__} refuses peft {peft.__version__}; it takes {MIN_PEFT_VERSION}"
        pytest.skip(f"{reason} and newer", allow_module_level=True)
    return peft

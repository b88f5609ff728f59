"""What the stages of a compression are handed, without progress bars."""

from accelerate import Accelerator

from hf_vitcompress import CompressionConfig
from hf_vitcompress.runtime.distributed import new_accelerator
from hf_vitcompress.runtime.run import Run


def quiet(config: CompressionConfig, accelerator: Accelerator | None = None) -> Run:
    """A run of that recipe, by default on this process alone."""
    return Run(config, accelerator or new_accelerator(), progress=False)

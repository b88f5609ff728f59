"""Compressed models in timm: after `import hf_vitcompress.timm`, `timm.create_model` opens their folders.

`python -m hf_vitcompress.timm SCRIPT [ARGUMENTS]` runs a script after that import, such as timm's `train.py` and
`validate.py`.
"""

from ..model.timm import check_timm

check_timm()

from . import entry_point  # noqa: E402, F401: importing it registers it

"""Which rules there are for which class of timm, in the order in which they are tried."""

from collections.abc import Callable
from typing import Any

from torch import nn

from .families.beit import BEIT
from .families.dinov2 import DINOV2, DINOV2_WITH_REGISTERS, DINOV3
from .families.swin import SWIN, SWIN_V2, read_swin
from .families.towers import CLIP, SIGLIP
from .families.vit import DEIT, IJEPA, VIT
from .reading import read_vit
from .rule import Rule

Reader = Callable[[nn.Module], Any]

RULES: dict[str, tuple[Reader, tuple[Rule[Any], ...]]] = {
    "VisionTransformer": (read_vit, (CLIP, SIGLIP, DINOV2_WITH_REGISTERS, DINOV2, VIT, BEIT, IJEPA)),
    "VisionTransformerDistilled": (read_vit, (DEIT,)),
    "Beit": (read_vit, (BEIT,)),
    "Eva": (read_vit, (DINOV3, BEIT)),
    "SwinTransformer": (read_swin, (SWIN,)),
    "SwinTransformerV2": (read_swin, (SWIN_V2,)),
}
"""By timm's class: how its models are read, and the rules of the families that may hold."""

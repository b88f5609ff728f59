"""Random changes of images that a dense teacher answers for as well, in tensors and without another library."""

import torch
from torch import Tensor


def augment(pixel_values: Tensor, draws: Tensor, mirror: bool) -> Tensor:
    """Mirror half of the images left and right.

    Args:
        pixel_values: (n, channels, height, width); inputs of another form, such as patches, stay as they are.
        draws: (n,) uniform in [0, 1); images whose draw is below a half are mirrored.
        mirror: whether to mirror at all.
    """
    if pixel_values.dim() != 4 or not mirror:
        return pixel_values
    mirrored = (draws < 0.5).to(pixel_values.device)
    return torch.where(mirrored[:, None, None, None], pixel_values.flip(-1), pixel_values)

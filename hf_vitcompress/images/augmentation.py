"""Random changes of images that a dense teacher answers for as well, in tensors and without another library."""

import torch
from torch import Tensor
from torch.nn import functional


def augment(pixel_values: Tensor, draws: Tensor, mirror: bool, crop: float) -> Tensor:
    """Mirror half of the images, and shift them.

    Args:
        pixel_values: (n, channels, height, width); what has another form, such as patches, stays as it is.
        draws: (n, 3) uniform in [0, 1): what happens to each image; the same draws, the same images.
        mirror: whether to mirror left and right where the first draw is below a half.
        crop: largest shift as a share of height and width; what moves in at the edge is reflected.
    """
    if pixel_values.dim() != 4:
        return pixel_values
    if mirror:
        mirrored = (draws[:, 0] < 0.5).to(pixel_values.device)
        pixel_values = torch.where(mirrored[:, None, None, None], pixel_values.flip(-1), pixel_values)
    height, width = pixel_values.shape[-2:]
    pad_y, pad_x = (min(round(crop * size), size - 1) for size in (height, width))
    if not (pad_x or pad_y):
        return pixel_values
    padded = functional.pad(pixel_values, (pad_x, pad_x, pad_y, pad_y), mode="reflect")
    tops = (draws[:, 1] * (2 * pad_y + 1)).long().tolist()
    lefts = (draws[:, 2] * (2 * pad_x + 1)).long().tolist()
    windows = zip(padded, tops, lefts, strict=True)
    return torch.stack([image[:, top : top + height, left : left + width] for image, top, left in windows])

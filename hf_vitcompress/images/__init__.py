"""Images from wherever people have them, as batches of tensors."""

from .images import Batch, ImageSource, decode_image
from .sources import open_images

__all__ = ["Batch", "ImageSource", "decode_image", "open_images"]

"""Images from wherever people have them, as batches of tensors."""

from .decoding import decode_image
from .images import Batch, ImageSource
from .options import DataOptions
from .sources import open_images

__all__ = ["Batch", "DataOptions", "ImageSource", "decode_image", "open_images"]

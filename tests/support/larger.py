"""Models of which a part is compressed."""

import transformers
from transformers import BertConfig, PreTrainedModel, VisionEncoderDecoderConfig, ViTConfig

from support.models import seeded
from support.zoo import TEXT, VISION


def captioner() -> PreTrainedModel:
    decoder = BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), decoder)
    return seeded(transformers.VisionEncoderDecoderModel, config)


TOWERS = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16}

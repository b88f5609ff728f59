"""The moments that layers are solved from: of which tokens. `test_residual` holds them against full forward passes."""

import pytest
import torch
from torch import Tensor

from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.compensation.cross_moments import CrossMoments, collect_cross_moments
from hf_vitcompress.images.images import ImageSource
from support.streams import NAFLEX, SWIN, padded_images, streams_of
from support.zoo import Head


def moments_of(head: Head, images: ImageSource, role: str) -> CrossMoments:
    """Of the first layer of that role in the first block, where the compressed model is another one."""
    models = head.dense(), head.dense(seed=1)
    layer = next(layer for layer in find_layers(models[0]) if layer.role == role)
    with torch.no_grad():
        streams = streams_of(models, images)
        streams.start(0)
        dense, student = (model.get_submodule(streams.blocks[0]) for model in models)
        return collect_cross_moments(layer, layer.name, models, (dense, student), streams.streams, streams.accelerator)


def tensors(moments: CrossMoments) -> list[Tensor]:
    return list(vars(moments).values())


@pytest.mark.parametrize("role", ["q", "o", "fc1", "fc2"])
def test_what_stands_at_padding_does_not_matter(role: str) -> None:
    images, mask = padded_images(NAFLEX, 30)
    others = [torch.where(own[:, None] > 0, image, 9.0) for image, own in zip(images.images, mask, strict=True)]
    found = moments_of(NAFLEX, images, role)
    same = moments_of(NAFLEX, ImageSource(others, None, "others", inputs=images.inputs), role)
    for ours, theirs in zip(tensors(found), tensors(same), strict=True):
        torch.testing.assert_close(ours, theirs)
    unmasked = moments_of(NAFLEX, ImageSource(others, None, "others"), role)
    assert not torch.allclose(unmasked.covariance, found.covariance, rtol=0.1)


@pytest.mark.parametrize("role", ["q", "o", "fc1"])
def test_windows_are_tokens_like_others(role: str) -> None:
    models = SWIN.dense(), SWIN.dense(seed=1)
    layer = next(layer for layer in find_layers(models[0]) if layer.role == role)
    seen = []
    for model in models:
        model.get_submodule(layer.name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.no_grad():
            model(SWIN.pixels(20))
        seen[-1] = seen[-1].reshape(-1, layer.in_features).double()
    x, x_hat = (tokens - tokens.mean(0) for tokens in seen)
    found = moments_of(SWIN, ImageSource(list(SWIN.pixels(20)), None, "the images"), role)
    torch.testing.assert_close(found.covariance, x_hat.T @ x_hat / len(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.cross, x.T @ x_hat / len(x), rtol=1e-4, atol=1e-5)

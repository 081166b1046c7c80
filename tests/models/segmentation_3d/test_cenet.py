"""CE-Net's blocks: shapes, receptive fields and planes, against the paper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.segmentation_3d.cenet import CENet, CENetShape, SliceWise
from models.segmentation_3d.context import (
    DenseAtrousConvolution,
    Dimensions,
    ResidualMultiKernelPooling,
    enlarged,
)

both_dimensions = pytest.mark.parametrize("dimensions", [2, 3])


def features(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@both_dimensions
def test_atrous_convolution_keeps_the_shape(dimensions: Dimensions) -> None:
    block = DenseAtrousConvolution(4, dimensions)
    shape = (2, 4, 7, 9, 8)[: 2 + dimensions]
    assert block(features(*shape)).shape == shape


@both_dimensions
def test_the_four_branches_see_3_7_9_and_19_pixels(dimensions: Dimensions) -> None:
    block = DenseAtrousConvolution(2, dimensions)
    with torch.no_grad():  # positive everywhere, so that no activation hides what is seen
        for weight in block.parameters():
            weight.abs_().add_(0.01)
    side, middle = 23, 11
    seen = []
    for n in range(4):
        image = features(1, 2, *[side] * dimensions).requires_grad_()
        branch = block.branches(image)[n]
        (gradient,) = torch.autograd.grad(branch[(0, 0) + (middle,) * dimensions], image)
        reached = gradient.abs().sum(dim=(0, 1)).nonzero()
        seen.append(int(reached.max() - reached.min()) + 1)
    assert seen == [3, 7, 9, 19]


def test_atrous_convolution_adds_its_branches_to_its_input() -> None:
    block, image = DenseAtrousConvolution(3), features(1, 3, 8, 9)
    torch.testing.assert_close(block(image), image + sum(block.branches(image)))


@both_dimensions
def test_pooling_puts_four_channels_before_its_input(dimensions: Dimensions) -> None:
    block = ResidualMultiKernelPooling(5, dimensions)
    image = features(2, 5, *(12, 14, 6)[:dimensions])
    gathered = block(image)
    assert gathered.shape == (2, 9, *image.shape[2:])
    torch.testing.assert_close(gathered[:, 4:], image)


def test_pooling_gathers_the_largest_values_of_windows_2_3_5_and_6_wide() -> None:
    block, image = ResidualMultiKernelPooling(5), features(2, 5, 30, 30)
    for n, kernel in enumerate((2, 3, 5, 6)):
        pooled = block.squeeze(F.max_pool2d(image, kernel))
        expected = F.interpolate(pooled, size=(30, 30), mode="bilinear", align_corners=False)
        torch.testing.assert_close(block(image)[:, n : n + 1], expected)


@both_dimensions
def test_a_map_narrower_than_a_window_is_pooled_whole(dimensions: Dimensions) -> None:
    block, image = ResidualMultiKernelPooling(2, dimensions), features(1, 2, *[2] * dimensions)
    largest = block.squeeze(image.amax(dim=tuple(range(2, 2 + dimensions)), keepdim=True))
    torch.testing.assert_close(block(image)[:, :4], largest.expand(-1, 4, *[2] * dimensions))


@pytest.mark.parametrize(
    ("before", "after"), [((3, 2), (7, 6)), ((1, 4), (5, 4)), ((5, 6), (3, 13))]
)
def test_enlarging_is_torchs_linear_resize(before: tuple[int, int], after: tuple[int, int]) -> None:
    image = features(2, 3, *before)
    expected = F.interpolate(image, size=after, mode="bilinear", align_corners=False)
    torch.testing.assert_close(enlarged(image, after), expected)
    volume = features(2, 3, *before, 4)
    expected = F.interpolate(volume, size=(*after, 9), mode="trilinear", align_corners=False)
    torch.testing.assert_close(enlarged(volume, (*after, 9)), expected)


def test_the_published_network_meets_its_context_at_a_32nd_of_the_plane() -> None:
    network = CENet(in_channels=3, classes=1, shape=CENetShape(width=8)).eval()
    shapes = []
    network.context.register_forward_hook(lambda _, image, result: shapes.append(result.shape))
    with torch.no_grad():
        assert network(features(1, 3, 192, 256)).shape == (1, 1, 192, 256)
    assert shapes == [(1, 8 * 8 + 4, 6, 8)]


def test_the_light_network_meets_its_context_at_an_eighth_of_the_plane() -> None:
    network = CENet(shape=CENetShape(width=8, shrinking_stem=False)).eval()
    shapes = []
    network.context.register_forward_hook(lambda _, image, result: shapes.append(result.shape))
    with torch.no_grad():
        assert network(features(1, 1, 48, 64)).shape == (1, 2, 48, 64)
    assert shapes == [(1, 8 * 8 + 4, 6, 8)]


def test_slices_are_the_planes_across_the_last_axis_each_on_its_own() -> None:
    network = CENet(shape=CENetShape(width=8, shrinking_stem=False)).eval()
    volume = features(2, 1, 16, 24, 5)
    with torch.no_grad():
        logits = SliceWise(network)(volume)
        assert logits.shape == (2, 2, 16, 24, 5)
        for n in range(2):
            for k in range(5):
                alone = network(volume[n : n + 1, :, :, :, k])
                torch.testing.assert_close(logits[n, :, :, :, k], alone[0], atol=1e-5, rtol=1e-4)

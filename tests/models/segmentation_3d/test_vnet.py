"""V-Net's stages, against the table of its paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.segmentation_3d.network import build
from models.segmentation_3d.vnet import VNet


def test_the_published_widths_and_depths_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        network = VNet(in_channels=1, classes=2)
    downs = [_convolutions(stage) for stage in network.down_stages]
    ups = [_convolutions(stage) for stage in reversed(network.up_stages)]
    assert downs == [(2, 32), (3, 64), (3, 128), (3, 256)]
    assert ups == [(3, 256), (3, 128), (2, 64), (1, 32)]
    kernels = {each.kernel_size for each in network.modules() if isinstance(each, nn.Conv3d)}
    assert kernels == {(5, 5, 5), (2, 2, 2), (1, 1, 1)}


def test_its_coarsest_map_is_a_sixteenth_of_the_volume() -> None:
    network = VNet(width=2, kernel_size=3).eval()
    shapes = []
    network.down_stages[-1].register_forward_hook(
        lambda _, maps, result: shapes.append(result.shape)
    )
    with torch.no_grad():
        network(torch.zeros(1, 1, 32, 48, 64))
    assert shapes == [(1, 32, 2, 3, 4)]


@pytest.mark.parametrize("side", [33, 40, 47])
def test_sides_that_do_not_divide_by_16_are_filled_up_and_cut_off(side: int) -> None:
    network = build("vnet", in_channels=1, classes=2, width=2).eval()
    shapes = []
    network.body.register_forward_pre_hook(lambda _, images: shapes.append(images[0].shape))
    with torch.no_grad():
        assert network(torch.zeros(1, 1, side, 48, 64)).shape == (1, 2, side, 48, 64)
    assert shapes == [(1, 1, 48, 48, 64)]


def _convolutions(stage: nn.Module) -> tuple[int, int]:
    """How many 5x5x5 convolutions, of how many channels."""
    found = [each for each in stage.modules() if isinstance(each, nn.Conv3d)]
    return len(found), found[0].out_channels

"""Depthwise convolutions keep float32 inside of bf16 trainings, all others do not."""

from __future__ import annotations

import torch
from torch import nn

from training.core.depthwise import DepthwiseInF32


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.Conv2d(8, 4, 1)
    )


def gradients(inside: bool) -> tuple[list[torch.Tensor], list[torch.dtype]]:
    """Of all weights after one bf16 step, and the types that the convolutions gave."""
    layers, given = network(), []
    for layer in layers:
        layer.register_forward_hook(lambda _, __, answer: given.append(answer.dtype))
    image = torch.rand(2, 1, 12, 16, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        if inside:
            with DepthwiseInF32():
                answer = layers(image)
        else:
            answer = layers(image)
    answer.float().square().mean().backward()
    found = [each.grad for each in layers.parameters() if each.grad is not None]
    return found, given


def test_the_answer_and_the_gradient_stay_those_of_the_network() -> None:
    (plain, types), (inside, types_inside) = gradients(False), gradients(True)
    assert types == types_inside == [torch.bfloat16] * 3  # what follows still runs in bf16
    assert len(plain) == len(inside) == 6
    for one, other in zip(plain, inside, strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.01)


def test_only_depthwise_convolutions_are_computed_in_float32() -> None:
    layers = network()
    image = torch.rand(1, 1, 12, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), DepthwiseInF32():
        first = layers[0](image)
        depthwise = layers[1](first)
        last = layers[2](depthwise)
    with torch.no_grad():
        assert torch.equal(depthwise, layers[1](first.float()).bfloat16())
        assert not torch.equal(last, layers[2](depthwise.float()).bfloat16())

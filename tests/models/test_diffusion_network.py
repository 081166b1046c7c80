from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from models.diffusion_sampler.network import (
    Activation,
    DenoisingUNet,
    Down,
    NetworkConfig,
    Norm,
    step_embedding,
)

SMALL = NetworkConfig(image_size=16, classes=3, width=8, stages=(1, 2), blocks=1)


def batch(config: NetworkConfig, side: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    image = torch.randn(2, config.channels, side, side, generator=draws)
    return image, torch.tensor([3, 900]), torch.tensor([0, config.classes])


def awake(config: NetworkConfig) -> nn.Module:
    """A network whose last layer is not the zeros that it begins with."""
    torch.manual_seed(0)
    network = DenoisingUNet(config)
    nn.init.normal_(network.leave[-1].weight, std=0.1)  # type: ignore[arg-type]
    return network.eval()


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("down", list(Down))
@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize(("channels", "patch", "attention"), [(1, 2, False), (3, 1, True)])
def test_every_choice_gives_an_output_of_the_shape_of_the_image_and_learns(
    activation: Activation, down: Down, norm: Norm, channels: int, patch: int, attention: bool
) -> None:
    config = dataclasses.replace(
        SMALL, channels=channels, patch=patch, attention=attention,
        activation=activation, down=down, norm=norm,
    )  # fmt: skip
    image, step, label = batch(config)
    network = awake(config)
    output = network(image, step, label)
    assert output.shape == image.shape
    output.square().mean().backward()
    assert all(each.grad is not None for each in network.parameters())


@pytest.mark.parametrize(
    ("side", "stages"), [(28, (1, 2)), (32, (1, 2, 3)), (64, (1, 2, 3)), (128, (1, 2, 3))]
)
def test_images_of_the_usual_sizes_come_back_in_their_size(
    side: int, stages: tuple[int, ...]
) -> None:
    config = dataclasses.replace(SMALL, image_size=side, stages=stages)
    image, step, label = batch(config, side)
    assert side % config.multiple == 0
    assert awake(config)(image, step, label).shape == image.shape


def test_an_image_does_not_depend_on_the_other_of_its_batch() -> None:
    network, inputs = awake(SMALL), batch(SMALL)
    alone = network(*(each[1:] for each in inputs))
    torch.testing.assert_close(network(*inputs)[1:], alone, rtol=1e-4, atol=1e-5)


def test_a_network_without_classes_ignores_the_label() -> None:
    network = awake(dataclasses.replace(SMALL, classes=0))
    image, step, label = batch(SMALL)
    torch.testing.assert_close(network(image, step, label), network(image, step, label + 1))


def test_a_new_network_says_zero_so_that_training_starts_from_the_mean() -> None:
    assert not DenoisingUNet(SMALL)(*batch(SMALL)).any()


def test_group_norm_serves_another_size_and_layer_norm_refuses_it() -> None:
    larger = batch(SMALL, side=32)
    assert awake(SMALL)(*larger).shape == larger[0].shape
    with pytest.raises(RuntimeError, match="shape"):
        awake(dataclasses.replace(SMALL, norm=Norm.LAYER))(*larger)


def test_step_and_class_change_the_answer() -> None:
    network = awake(SMALL)
    image, step, label = batch(SMALL)
    answer = network(image, step, label)
    assert not torch.allclose(network(image, step + 40, label), answer, atol=1e-4)
    assert not torch.allclose(network(image, step, (label + 1) % 4), answer, atol=1e-4)


def test_the_embedding_is_the_published_sinusoid() -> None:
    embedded = step_embedding(torch.tensor([0, 7]), 4)
    slow = 7 / math.sqrt(10_000)
    expected = [[0, 0, 1, 1], [math.sin(7), math.sin(slow), math.cos(7), math.cos(slow)]]
    torch.testing.assert_close(embedded, torch.tensor(expected))


@pytest.mark.cpu
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch in torch
def test_the_exported_network_answers_as_eager_does(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, attention=True)
    network, inputs = awake(config), batch(config)
    batched = {0: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        network, inputs, dynamo=True, dynamic_shapes=(batched, batched, batched),
        input_names=["image", "step", "label"], output_names=["output"], verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    one = [each[:1] for each in inputs]
    for tensors in (inputs, one):
        names = ("image", "step", "label")
        fed = {name: each.numpy() for name, each in zip(names, tensors, strict=True)}
        expected = network(*tensors).detach().numpy()
        np.testing.assert_allclose(session.run(None, fed)[0], expected, atol=1e-5)

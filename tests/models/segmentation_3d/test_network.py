"""Every network of the room: any sides, gradients everywhere, and the same answer as artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from medserve.errors import ConfigError
from medserve.inference.engines import load_engine
from medserve.spec import EngineName, Precision
from models.segmentation_3d.network import NetworkName, NetworkSize, VolumeNetwork, build
from training.core.export import export_network

TOLERANCE = {  # on logits
    EngineName.TORCHSCRIPT: 1e-4,
    EngineName.ONNXRUNTIME: 1e-4,
    # Untrained norms enlarge the other order of its sums where V-Net's filling is constant.
    EngineName.OPENVINO: 1e-3,
}
LARGEST_LIGHT = 5_000_000  # parameters
WINDOW = (40, 56, 40)  # the room's, which V-Net must fill up
NARROW = 8  # channels: the graph of the light ones in a fraction of the time

every_network = pytest.mark.parametrize("name", list(NetworkName))


def narrow(name: NetworkName, *, classes: int = 3, dropout: float = 0.0) -> VolumeNetwork:
    torch.manual_seed(0)
    return build(name, in_channels=1, classes=classes, dropout=dropout, width=NARROW)


def image(*sides: int, channels: int = 1, batch: int = 1) -> Tensor:
    return torch.rand(batch, channels, *sides, generator=torch.Generator().manual_seed(1))


@pytest.mark.cpu
@every_network
def test_a_training_may_ask_for_the_memory_format_of_volumes(name: NetworkName) -> None:
    network = narrow(name).to(memory_format=torch.channels_last_3d)
    network(image(32, 32, 32)).mean().backward()
    assert all(each.grad is not None for each in network.parameters())


@pytest.mark.cpu
@every_network
def test_gradients_reach_every_weight_from_the_smallest_volume(name: NetworkName) -> None:
    network = narrow(name)
    i, j, k = network.smallest
    network(image(i, j, k, batch=2)).square().mean().backward()
    missing = [key for key, each in network.named_parameters() if each.grad is None]
    assert missing == []
    assert all(torch.isfinite(each.grad).all() for each in network.parameters())  # type: ignore[arg-type]


@every_network
def test_logits_have_the_sides_of_any_image(name: NetworkName) -> None:
    network = narrow(name).eval()
    with torch.no_grad():
        assert network(image(35, 21, 18)).shape == (1, 3, 35, 21, 18)


@every_network
def test_logits_do_not_depend_on_the_other_volumes_of_a_batch(name: NetworkName) -> None:
    network = narrow(name).eval()
    both = image(32, 32, 16, batch=2)
    with torch.no_grad():
        torch.testing.assert_close(network(both)[1:], network(both[1:]), atol=1e-5, rtol=1e-4)


@every_network
def test_several_modalities_are_read(name: NetworkName) -> None:
    network = build(name, in_channels=2, classes=4, width=8).eval()
    with torch.no_grad():
        assert network(image(32, 32, 32, channels=2)).shape == (1, 4, 32, 32, 32)


@every_network
def test_the_light_one_has_at_most_five_million_parameters(name: NetworkName) -> None:
    with torch.device("meta"):
        network = build(name, in_channels=1, classes=3)
    assert sum(each.numel() for each in network.parameters()) <= LARGEST_LIGHT


@pytest.mark.parametrize(
    ("name", "millions"),
    # As counted by others: torchvision's ResNet-34 (21.3) with CE-Net's extractor and decoder in
    # the authors' code (29.0); MONAI's SegResNet of 32 filters (18.8 with its own upsampling).
    [(NetworkName.CENET, 29.0), (NetworkName.SEGRESNET, 19.0), (NetworkName.VNET, 65.2)],
)
def test_the_published_one_has_the_size_of_its_paper(name: NetworkName, millions: float) -> None:
    with torch.device("meta"):
        network = build(name, in_channels=1, classes=3, size=NetworkSize.PUBLISHED)
    count = sum(each.numel() for each in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.3)


@pytest.mark.cpu
@every_network
def test_dropout_acts_in_training_and_not_in_use(name: NetworkName) -> None:
    network = narrow(name, dropout=0.5)
    example = image(32, 32, 32, batch=2)
    with torch.no_grad():
        network.train()
        # Dropout alone may differ between two passes of the same weights.
        first, second = network(example), network(example)
        assert (first - second).abs().max() > 1e-3
        network.eval()
        torch.testing.assert_close(network(example), network(example), rtol=0.0, atol=0.0)


@every_network
def test_the_head_is_the_only_layer_that_knows_the_classes(name: NetworkName) -> None:
    three, seven = narrow(name, classes=3), narrow(name, classes=7)
    weights = seven.state_dict()
    differing = [
        key for key, each in three.state_dict().items() if each.shape != weights[key].shape
    ]
    assert differing
    assert all(key.startswith(three.head_path + ".") for key in differing)
    assert isinstance(three.head, nn.Module)


@pytest.mark.cpu
@every_network
def test_gradients_in_bf16_are_finite_whatever_the_memory_held(name: NetworkName) -> None:
    network = narrow(name).to(memory_format=torch.channels_last_3d)
    for _ in range(2):
        # What a narrow map's gradient would read instead of numbers, see `smallest`.
        [torch.full((2**n,), float("nan"), dtype=torch.bfloat16) for n in range(6, 20)]
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(image(16, 16, 16, batch=2))
        logits.float().square().mean().backward()
    assert all(torch.isfinite(each.grad).all() for each in network.parameters())  # type: ignore[arg-type]


@every_network
def test_padding_is_zeros_behind_the_last_voxel(name: NetworkName) -> None:
    network = narrow(name).eval()
    odd = image(30, 31, 32)
    padded = torch.nn.functional.pad(odd, (0, 0, 0, 1, 0, 2))
    with torch.no_grad():
        torch.testing.assert_close(network(odd), network(padded)[:, :, :30, :31])


# What the room ships, and what a training may choose instead.
SHIPPED = NetworkName.UNET
EXPORTS = [
    pytest.param(name, marks=() if name is SHIPPED else pytest.mark.training)
    for name in NetworkName
]


@pytest.fixture(scope="module", params=EXPORTS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[VolumeNetwork, Path]:
    """A network and the folder of its artifacts."""
    network = narrow(request.param).eval()
    folder = tmp_path_factory.mktemp(request.param)
    # How near the answers must come is for the test to say, engine by engine.
    export_network(network, folder, image(*WINDOW, batch=2), ["logits"], tolerance=1.0)
    return network, folder


@pytest.mark.cpu
@pytest.mark.parametrize("engine_name", list(EngineName))
def test_an_artifact_answers_as_the_network(
    exported: tuple[VolumeNetwork, Path], engine_name: EngineName
) -> None:
    network, folder = exported
    engine = load_engine(engine_name, folder, precision=Precision.F32, threads=1)
    for batch in (image(*WINDOW), image(*WINDOW, batch=3)):  # N is free
        with torch.no_grad():
            expected = network(batch).numpy()
        difference = np.abs(engine.run(batch.numpy())["logits"] - expected).max()
        # Untrained DynUNet answers with logits far beyond those of a trained network.
        assert difference <= TOLERANCE[engine_name] * max(1.0, np.abs(expected).max())


@pytest.mark.cpu
def test_the_exported_graph_resizes_nothing_by_interpolation(
    exported: tuple[VolumeNetwork, Path],
) -> None:
    graph = onnx.load(exported[1] / "model.onnx").graph
    assert {node.op_type for node in graph.node} & {"Resize", "Loop", "If"} == set()


def test_an_unknown_network_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match="unet, vnet, cenet, cenet3d, segresnet, dynunet"):
        build("resunet", in_channels=1, classes=2)


@pytest.mark.parametrize(
    ("name", "options"),
    [("unet", {"dropout": 1.0}), ("unet", {"width": -1}), ("segresnet", {"width": 12})],
)
def test_settings_that_cannot_work_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"expected a (dropout|width)"):
        build(name, in_channels=1, classes=2, **options)  # type: ignore[arg-type]

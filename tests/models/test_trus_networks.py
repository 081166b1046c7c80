from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from medserve.errors import ConfigError
from models.encoders import load_encoder
from models.trus_prostate.network import NetworkName, NetworkSize, build
from training.core.ensemble import Ensemble
from training.core.export import export_network


def noise(items: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(items, 1, height, width, generator=torch.Generator().manual_seed(1))


def part(network: nn.Module, name: str = "encoder") -> nn.Module:
    found = getattr(network, name)
    assert isinstance(found, nn.Module)
    return found


def parameters(network: nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


@pytest.mark.parametrize("name", list(NetworkName))
def test_a_network_answers_at_the_size_of_the_frame_and_learns_everywhere(
    name: NetworkName,
) -> None:
    network = build(name)
    logits = network(noise())
    assert logits.shape == (2, 1, 64, 96)
    logits.square().mean().backward()
    without = [
        key
        for key, each in network.named_parameters()
        if each.grad is None or not each.grad.isfinite().all()
    ]
    assert without == []


@pytest.mark.cpu
@pytest.mark.parametrize(
    "name",
    [  # what rooms ship, and what a training may choose instead
        NetworkName.FPN,
        NetworkName.UNET,
        pytest.param(NetworkName.SEGFORMER, marks=pytest.mark.training),
    ],
)
def test_both_exported_forms_agree_with_the_network(name: NetworkName, tmp_path: Path) -> None:
    torch.manual_seed(0)
    artifact = Ensemble([build(name).eval()], exclusive=False).eval()
    exported = export_network(artifact, tmp_path, noise(), ("logits",))
    assert exported.largest_difference <= 1e-4


def test_the_light_networks_fit_into_20_mb_and_the_one_asked_for_is_there() -> None:
    light = {name: parameters(build(name)) for name in (NetworkName.FPN, NetworkName.SEGFORMER)}
    assert max(light.values()) * 4 < 20e6
    with torch.device("meta"):  # shapes alone: 60 million weights take seconds to draw
        asked = build(NetworkName.FPN, encoder="resnet152", size=NetworkSize.PUBLISHED)
    assert 60e6 < parameters(asked) < 61e6


@pytest.mark.cpu
def test_a_wider_decoder_is_wider() -> None:
    for name in NetworkName:
        compact, light, published = (parameters(build(name, size=size)) for size in NetworkSize)
        assert compact < light < published


@pytest.mark.parametrize("name", list(NetworkName))
def test_an_unknown_encoder_is_refused_in_one_line(name: NetworkName) -> None:
    with pytest.raises(ConfigError, match=r"expected an encoder .* got 'resnet9000'"):
        build(name, encoder="resnet9000")


def test_weights_of_an_encoder_are_taken_over_and_the_decoder_stays(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source, target = build(NetworkName.FPN), build(NetworkName.FPN)
    head = {
        key: value.clone() for key, value in part(target, "segmentation_head").state_dict().items()
    }
    torch.save({f"encoder.{k}": v for k, v in part(source).state_dict().items()},
               tmp_path / "encoder.pt")  # fmt: skip
    count = load_encoder(target, tmp_path / "encoder.pt")
    assert count == len(part(source).state_dict())
    for key, value in part(source).state_dict().items():
        assert torch.equal(part(target).state_dict()[key], value), key
    for key, value in head.items():
        assert torch.equal(part(target, "segmentation_head").state_dict()[key], value)


def test_weights_for_colour_fit_a_grey_network_as_a_grey_picture_shown_three_times(
    tmp_path: Path,
) -> None:
    torch.manual_seed(2)
    colour, grey = build(NetworkName.FPN, in_channels=3), build(NetworkName.FPN)
    torch.save(part(colour).state_dict(), tmp_path / "colour.pt")
    load_encoder(grey, tmp_path / "colour.pt")
    image = noise()
    with torch.no_grad():
        expected = part(colour.eval())(image.repeat(1, 3, 1, 1))[-1]
        found = part(grey.eval())(image)[-1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_encoder_of_a_segformer_is_taken_over_from_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source, target = build(NetworkName.SEGFORMER), build(NetworkName.SEGFORMER)
    state = {f"average.module.{key}": value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "best.ckpt")
    load_encoder(target, tmp_path / "best.ckpt")
    for key, value in part(source).state_dict().items():
        assert torch.equal(part(target).state_dict()[key], value), key


def test_weights_are_matched_by_their_order_where_their_names_are_another_librarys(
    tmp_path: Path,
) -> None:
    torch.manual_seed(4)
    colour, grey = build(NetworkName.FPN, in_channels=3), build(NetworkName.FPN)
    own = list(part(colour).state_dict().values())
    renamed = {f"layer{index}": value for index, value in enumerate(own)}
    torch.save(renamed | {"classifier": torch.zeros(10, 4)}, tmp_path / "renamed.pt")
    assert load_encoder(grey, tmp_path / "renamed.pt") == len(own)
    for given, taken in zip(own[1:], list(part(grey).state_dict().values())[1:], strict=True):
        assert torch.equal(taken, given)
    swapped = {key: renamed[key] for key in ("layer1", "layer0", *list(renamed)[2:])}
    torch.save(swapped, tmp_path / "swapped.pt")
    with pytest.raises(ConfigError, match="expected the weights of the same encoder"):
        load_encoder(grey, tmp_path / "swapped.pt")


def test_weights_of_another_encoder_or_no_weights_are_refused(tmp_path: Path) -> None:
    network = build(NetworkName.FPN)
    torch.save(part(build(NetworkName.UNET)).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="expected the weights of the same encoder"):
        load_encoder(network, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("not weights", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        load_encoder(network, tmp_path / "text.pt")

"""The networks for blood cells: what they look at, what they join, what learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from medserve.errors import ConfigError
from models.blood_cell.network import VIEWS, BloodCellNet
from models.blood_cell.transfer import Backbone, Encoder, EncoderNet, TransferNet, Weights
from models.blood_cell.units import UNITS

LIGHT = Backbone.MOBILENET


def small(views: int = 1) -> BloodCellNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BloodCellNet(width=8, window=32, side=32, views=views).eval()


def images(side: int) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_what_lies_around_the_middle_changes_nothing() -> None:
    frame = images(64)
    repainted = torch.rand(2, 3, 64, 64)
    repainted[:, :, 16:48, 16:48] = frame[:, :, 16:48, 16:48]
    torch.testing.assert_close(small()(repainted), small()(frame))


def test_the_middle_is_enlarged_and_nothing_else_of_the_frame() -> None:
    network = BloodCellNet(width=8, window=32, side=48)
    frame = images(64)
    shown = network.middle(frame)
    expected = torch.nn.functional.interpolate(
        frame[:, :, 16:48, 16:48], size=(48, 48), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(shown, expected)
    coarse = images(24)
    assert network.middle(coarse).shape == coarse.shape


def test_a_picture_of_the_window_is_taken_whole() -> None:
    frame = images(64)
    torch.testing.assert_close(small()(frame[:, :, 16:48, 16:48]), small()(frame))


def test_a_label_is_as_probable_as_its_units_together() -> None:
    network = small()
    maps = network.features(images(32))
    units = network.tell_apart(maps).softmax(dim=1)
    labels = network.classify(maps).softmax(dim=1)
    sizes = [len(each) for each in UNITS]
    expected = torch.stack([each.sum(dim=1) for each in torch.split(units, sizes, 1)], dim=1)
    torch.testing.assert_close(labels, expected)


@pytest.mark.parametrize("views", VIEWS)
def test_several_views_give_one_answer_for_each_image(views: int) -> None:
    maps = small(views).features(images(32))
    assert [len(each) for each in maps] == [2, 2, 2]
    assert tuple(small(views)(images(32)).shape) == (2, 8)


def test_with_quarter_turns_a_turned_cell_gets_the_same_answer() -> None:
    network = small(views=4)
    turned = network(images(32).rot90(1, (2, 3)))
    torch.testing.assert_close(turned, network(images(32)), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(small()(images(32).rot90(1, (2, 3))), small()(images(32)), atol=1e-5)


def test_with_all_eight_views_a_mirrored_cell_gets_the_same_answer() -> None:
    network = small(views=8)
    mirrored = network(images(32).flip(3).rot90(3, (2, 3)))
    torch.testing.assert_close(mirrored, network(images(32)), atol=1e-5, rtol=1e-4)


@pytest.mark.cpu
@pytest.mark.parametrize("encoder", list(Encoder))
def test_an_encoder_names_its_last_convolutions_and_gives_maps_without_negatives(
    encoder: Encoder,
) -> None:
    network = EncoderNet(encoder, window=32, side=64, views=4).eval()
    with torch.no_grad():
        maps = network.features(images(64))
        answered = network(images(64))
        torch.testing.assert_close(network(images(64).rot90(1, (2, 3))), answered)
    assert [each.shape[2] for each in maps] == [4, 2]
    assert all(float(each.min()) >= 0.0 for each in maps)
    inside = {id(each) for part in network.last_convolutions for each in part.parameters()}
    assert inside < {id(each) for each in network.encoder.parameters()}
    assert tuple(answered.shape) == (2, 8)


@pytest.mark.parametrize("backbone", [LIGHT, Backbone.RESNET18])
def test_a_transferred_network_has_one_logit_for_each_label(backbone: Backbone) -> None:
    network = TransferNet(backbone, classes=8).eval()
    assert tuple(network(images(32)).shape) == (2, 8)


def test_all_networks_have_the_parts_that_the_phases_name() -> None:
    for backbone in Backbone:
        with torch.device("meta"):  # VGG16 alone would take half a gigabyte
            network = TransferNet(backbone, classes=8)
            assert isinstance(network.head, torch.nn.Linear)
            assert network.head.out_features == 8
            convolutions = [
                each
                for part in network.last_convolutions
                for each in part.modules()
                if isinstance(each, torch.nn.Conv2d)
            ]
        assert convolutions


def test_a_frozen_backbone_lets_the_last_layer_learn_alone() -> None:
    network = TransferNet(LIGHT)
    network.freeze(but=[network.head])
    learning = {name for name, each in network.named_parameters() if each.requires_grad}
    assert learning == {"network.classifier.3.weight", "network.classifier.3.bias"}


def test_the_second_phase_lets_the_last_convolutions_learn_too() -> None:
    network = TransferNet(LIGHT)
    network.freeze(but=[network.head, *network.last_convolutions])
    learning = {name for name, each in network.named_parameters() if each.requires_grad}
    assert any(name.startswith("network.features.12") for name in learning)
    assert not any(name.startswith("network.features.0") for name in learning)


def test_frozen_batch_norms_keep_their_statistics_and_free_ones_move_theirs() -> None:
    network = TransferNet(LIGHT)
    network.freeze(but=[network.head, *network.last_convolutions])
    network.train()
    before = {name: each.clone() for name, each in network.named_buffers()}
    network(images(32))
    moved = {name for name, each in network.named_buffers() if not torch.equal(each, before[name])}
    assert moved
    assert all(name.startswith(("network.features.11", "network.features.12")) for name in moved)


def test_weights_come_from_a_local_file(tmp_path: Path) -> None:
    donor = torchvision.models.mobilenet_v3_small(weights=None)
    torch.save(donor.state_dict(), tmp_path / f"{LIGHT}.pth")
    network = TransferNet(LIGHT, weights=tmp_path)
    assert network.is_pretrained
    first = network.network.get_parameter("features.0.0.weight")
    torch.testing.assert_close(first, donor.get_parameter("features.0.0.weight"))


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected weights of mobilenet_v3_small at .*\.pth"):
        TransferNet(LIGHT, weights=tmp_path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / f"{LIGHT}.pth")
    with pytest.raises(ConfigError, match="state of torchvision's mobilenet_v3_small"):
        TransferNet(LIGHT, weights=tmp_path)


def test_weights_that_cannot_be_downloaded_end_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(ConfigError, match=r"put mobilenet_v3_small\.pth into a folder"):
        TransferNet(LIGHT, weights=Weights.IMAGENET)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medserve.errors import ConfigError
from training.diffusion.extractor import DomainExtractor, features, load_inception


@pytest.mark.training
def test_torchvisions_weights_give_2048_features_of_grey_images(tmp_path: Path) -> None:
    from torchvision.models import inception_v3

    path = tmp_path / "inception.pth"
    torch.save(inception_v3(weights=None, init_weights=False).state_dict(), path)
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32), dtype=np.uint8)
    found = features(load_inception(path), images)
    assert found.shape == (2, 2048)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04"])
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="expected the weights of torchvision's") as error:
        load_inception(path)
    assert "\n" not in str(error.value)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(DomainExtractor(1, 2).state_dict(), path)
    with pytest.raises(ConfigError, match="inception_v3"):
        load_inception(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.pth"):
        load_inception(tmp_path / "absent.pth")


def test_mirrored_features_do_not_tell_left_from_right() -> None:
    torch.manual_seed(0)
    network = DomainExtractor(1, 2).eval()
    images = np.random.default_rng(1).integers(0, 256, (3, 1, 16, 16), dtype=np.uint8)
    turned = np.ascontiguousarray(images[..., ::-1])
    assert not np.allclose(features(network, images), features(network, turned))
    np.testing.assert_allclose(
        features(network, images, mirrored=True), features(network, turned, mirrored=True)
    )

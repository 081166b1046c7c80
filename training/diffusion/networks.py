"""Which network denoises: ours, or MONAI's for comparison."""

from __future__ import annotations

from torch import Tensor, nn

from models.diffusion_sampler.network import DenoisingUNet
from training.diffusion.settings import DiffusionConfig, NetworkName

__all__ = ["MonaiDenoiser", "build"]


class MonaiDenoiser(nn.Module):
    """MONAI's DiffusionModelUNet, called as ours is."""

    def __init__(self, config: DiffusionConfig, classes: int) -> None:
        super().__init__()
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

        widths = [config.width * (n + 1) for n in range(config.stages)]
        last = config.stages - 1
        self.classes = classes
        self.body = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=config.channels,
            out_channels=config.channels,
            num_res_blocks=config.blocks,
            channels=widths,
            attention_levels=[config.attention and n == last for n in range(config.stages)],
            norm_num_groups=8,
            num_head_channels=config.width,
            num_class_embeds=classes + 1 if classes else None,  # one more: no class
        )

    def forward(self, image: Tensor, step: Tensor, label: Tensor) -> Tensor:
        """Image (N, C, H, W), step (N,), label int64 (N,) -> (N, C, H, W)."""
        answer: Tensor = self.body(image, step, class_labels=label if self.classes else None)
        return answer


def build(config: DiffusionConfig, classes: int) -> nn.Module:
    """The network of the configuration; `classes` 0 leaves the condition out."""
    if config.network is NetworkName.MONAI:
        return MonaiDenoiser(config, classes)
    return DenoisingUNet(config.network_config(classes))

"""What a diffusion network learns in one step, over Lightning."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from medserve.errors import ConfigError
from medserve.inference.samplers import Prediction, SamplerKind, clean_image, guided, walk
from medserve.inference.schedules import NoiseSchedule
from models.diffusion_sampler.network import DenoisingUNet
from training.core.fit import AveragedNetwork, one_cycle
from training.diffusion.settings import DiffusionConfig, NetworkName

__all__ = ["Diffusion", "MonaiDenoiser", "Sampling", "build", "loss_weights", "sample"]

_LAST_RATE = 0.1  # share of the peak rate at the end; the average needs no full stop


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


class Diffusion(AveragedNetwork):
    """A denoising network with its loss and its optimiser."""

    config: DiffusionConfig

    def __init__(self, network: nn.Module, classes: int, config: DiffusionConfig) -> None:
        super().__init__(network, config)
        self.classes = classes
        self.schedule = config.noise_schedule
        alpha_bar = torch.from_numpy(self.schedule.alpha_bar)
        self.register_buffer("signal", alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("noise", (1 - alpha_bar).sqrt().float(), persistent=False)
        weights = loss_weights(self.schedule, config.prediction, config.snr_limit)
        self.register_buffer("weights", torch.from_numpy(weights).float(), persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """One batch: image uint8 (N, C, H, W), label_ids int64 (N,)."""
        loss = self.error(*batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def error(self, image: Tensor, label_ids: Tensor) -> Tensor:
        """Weighted error of images uint8 (N, C, H, W) at steps of the process drawn anew."""
        clean = image.float() / 127.5 - 1.0
        if self.config.mirror:
            turned = torch.rand(len(clean), generator=self.draws).to(clean.device) < 0.5
            clean = torch.where(turned[:, None, None, None], clean.flip(-1), clean)
        forgotten = torch.rand(len(clean), generator=self.draws) < self.config.class_dropout
        return self._loss(
            clean, label_ids.masked_fill(forgotten.to(label_ids.device), self.classes)
        )

    def _loss(self, clean: Tensor, label_ids: Tensor) -> Tensor:
        count = len(clean)
        # One step from each of N equal parts of the process: less noise in the loss than free
        # draws (Kingma et al., arXiv:2107.00630, appendix I).
        part = (torch.arange(count) + torch.rand(1, generator=self.draws)) / count
        step = (part * self.schedule.steps).long().clamp(max=self.schedule.steps - 1)
        step = step[torch.randperm(count, generator=self.draws)].to(clean.device)
        epsilon = torch.randn(clean.shape, generator=self.draws).to(clean.device)
        signal, noise = self._factor("signal", step), self._factor("noise", step)
        noisy = (signal * clean + noise * epsilon).contiguous(memory_format=torch.channels_last)
        wanted = epsilon
        if self.config.prediction is Prediction.VELOCITY:
            wanted = signal * epsilon - noise * clean
        output = self.network(noisy, step, label_ids).float()
        error = (output - wanted).square().mean(dim=(1, 2, 3))  # (N,)
        return (self.get_buffer("weights")[step] * error).mean()

    def _factor(self, name: str, step: Tensor) -> Tensor:
        return self.get_buffer(name)[step][:, None, None, None]

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """AdamW; its rate warms up and falls to a tenth over the whole training."""
        optimiser = torch.optim.AdamW(
            self.network.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )
        steps = max(2, int(self.trainer.estimated_stepping_batches))

        def rate(step: int) -> float:
            share = one_cycle(step / steps, warm_up=0.03)
            return share if step < 0.03 * steps else max(share, _LAST_RATE)

        schedule = LambdaLR(optimiser, rate)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loss_weights(
    schedule: NoiseSchedule, prediction: Prediction, snr_limit: float
) -> npt.NDArray[np.float64]:
    """Weight of each step's error, float64 (T,): Min-SNR (Hang et al., arXiv:2303.09556).

    Counted on the clean image, a step weighs as much as its ratio of signal to noise, but no more
    than `snr_limit`; 0 weighs all errors alike, as Ho et al. do.
    """
    if snr_limit == 0:
        return np.ones(schedule.steps)
    ratio = np.exp(2 * schedule.log_snr)
    by_clean = np.minimum(ratio, snr_limit)
    return by_clean / (ratio + 1 if prediction is Prediction.VELOCITY else ratio)


class Sampling:
    """A network in eval mode as the samplers see it: noisy image and step -> clean image."""

    def __init__(self, module: Diffusion, label_ids: Tensor, guidance: float = 1.0) -> None:
        self._module, self._guidance = module, guidance
        self._label_ids = label_ids
        if guidance != 1.0 and not module.classes:
            raise ConfigError("guidance needs a network that was trained with classes")

    @torch.inference_mode()
    def __call__(self, noisy: npt.NDArray[np.float32], step: int) -> npt.NDArray[np.float32]:
        """Noisy images (N, C, H, W) at one step -> clean images (N, C, H, W)."""
        output = self._run(noisy, step, self._label_ids)
        if self._guidance != 1.0:
            nothing = torch.full_like(self._label_ids, self._module.classes)
            output = guided(output, self._run(noisy, step, nothing), self._guidance)
        module = self._module
        return clean_image(output, noisy, module.schedule, step, module.config.prediction)

    def _run(
        self, noisy: npt.NDArray[np.float32], step: int, label_ids: Tensor
    ) -> npt.NDArray[np.float32]:
        device = next(self._module.average.parameters()).device
        image = torch.from_numpy(noisy).to(device, memory_format=torch.channels_last)
        steps = torch.full((len(image),), step, device=device)
        precision = torch.bfloat16
        half = self._module.config.precision.value.startswith("bf16")
        with torch.autocast(device.type, precision, enabled=half):
            output = self._module.average(image, steps, label_ids.to(device))
        return np.asarray(output.float().cpu().contiguous().numpy())


def sample(
    module: Diffusion,
    label_ids: npt.NDArray[np.int64],
    steps: int,
    seed: int,
    kind: SamplerKind = SamplerKind.DPM_SOLVER,
    batch: int = 64,
) -> npt.NDArray[np.uint8]:
    """Images of the averaged weights, uint8 (N, C, H, W), one per label id."""
    module.average.eval()
    config = module.config
    shape = (config.channels, config.image_size, config.image_size)
    made = []
    for start in range(0, len(label_ids), batch):
        part = torch.from_numpy(label_ids[start : start + batch])
        draws = np.random.Generator(np.random.Philox([seed, start]))
        noise = draws.standard_normal((len(part), *shape), dtype=np.float32)
        denoise = Sampling(module, part)
        *_, last = walk(denoise, module.schedule, kind, steps, noise, draws)
        made.append(np.rint((last.noisy + 1.0) * 127.5).clip(0, 255).astype(np.uint8))
    return np.concatenate(made)

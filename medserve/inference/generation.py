"""The one way from a seed to an image, for serving, for judging and for the golden answer.

    seed ─noise→ x_T ─walk, a call of the network a step→ x_0 ─round→ pixels

Each image is walked alone, with random numbers of its own: it depends on its seed, its class and
its settings, never on what else a server happens to work on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import ConfigError, ServerFailedError
from medserve.inference.engines import Outputs
from medserve.inference.samplers import SamplerKind, State, clean_image, guided, walk
from medserve.inference.schedules import NoiseSchedule
from medserve.spec import GenerationSpec, ModelSpec

__all__ = ["OUTPUT", "DiffusionPipeline", "Run", "SampleSettings", "to_pixels"]

OUTPUT = "output"  # of the artifact: noise or velocity, as it was trained

_Array = npt.NDArray[np.float32]
Run = Callable[[Mapping[str, npt.NDArray[Any]]], Outputs]  # `Engine.run`

_NOISE, _CLASS = 0, 1  # independent streams of random numbers of one seed


@dataclass(frozen=True)
class SampleSettings:
    """How an image is drawn, beside its seed and its class.

    Attributes:
        steps: Calls of the network.
        sampler: The way from noise to the image.
        guidance: Weight of the class: 1 is the class alone, 0 none; all others ask the network
            twice a step.
        size: Side of the image in pixels.
    """

    steps: int
    sampler: SamplerKind
    guidance: float
    size: int

    @property
    def calls(self) -> int:
        """How often the network looks at one image."""
        return self.steps if self.guidance in (0.0, 1.0) else 2 * self.steps

    @classmethod
    def default(cls, generation: GenerationSpec) -> SampleSettings:
        """What a model does where nobody says anything else."""
        return cls(
            generation.default_steps,
            generation.default_sampler,
            generation.default_guidance,
            generation.sizes[0],
        )


class DiffusionPipeline:
    """Draws images with one network.

    Args:
        spec: The model, with its section `generation`.
        run: Calls the network: `image` float32 (N, C, H, W), `step` int64 (N,), `label` int64
            (N,) -> `output` float32 (N, C, H, W).
    """

    def __init__(self, spec: ModelSpec, run: Run) -> None:
        if spec.generation is None:
            raise ConfigError(f"{spec.name}: expected a section generation, got none")
        self.spec, self.generation, self._run = spec, spec.generation, run
        self.schedule = NoiseSchedule(
            self.generation.schedule,
            self.generation.steps,
            self.generation.min_beta,
            self.generation.max_beta,
        )

    def label_id(self, seed: int) -> int:
        """The class that a seed draws where nobody names one; 0 without classes."""
        if not self.spec.labels:
            return 0
        return int(_draws(seed, _CLASS).integers(len(self.spec.labels)))

    def walk(self, seed: int, label_id: int, settings: SampleSettings) -> Iterator[State]:
        """The states of one image (C, H, W) on its way, one a step; the last is the image.

        Raises:
            InvalidRequestError: more steps than the process has.
            ServerFailedError: the network gave a number that is not finite.
        """
        draws = _draws(seed, _NOISE)
        shape = (self.spec.input.channels, settings.size, settings.size)
        start = draws.standard_normal(shape, dtype=np.float32)

        def denoise(noisy: _Array, step: int) -> _Array:
            output = self._output(noisy, step, label_id, settings.guidance)
            return clean_image(output, noisy, self.schedule, step, self.generation.prediction)

        return walk(denoise, self.schedule, settings.sampler, settings.steps, start, draws)

    def draw(self, seed: int, label_id: int, settings: SampleSettings) -> npt.NDArray[np.uint8]:
        """One finished image, uint8 (C, H, W)."""
        *_, last = self.walk(seed, label_id, settings)
        return to_pixels(last.noisy)

    def golden(self, seed: int, label_id: int, settings: SampleSettings) -> Outputs:
        """What proves an archive: the network's answer to pure noise, and the finished image.

        `output` and `image`, float32 (1, C, H, W) each; `golden_output.npz` holds both.
        """
        shape = (self.spec.input.channels, settings.size, settings.size)
        noise = _draws(seed, _NOISE).standard_normal(shape, dtype=np.float32)
        output = self._call(noise[np.newaxis], self.schedule.steps - 1, [label_id])
        *_, last = self.walk(seed, label_id, settings)
        return {OUTPUT: output, "image": last.noisy[np.newaxis]}

    def _output(self, noisy: _Array, step: int, label_id: int, guidance: float) -> _Array:
        """The network's view of one noisy image (C, H, W), with the weight of the class."""
        no_class = len(self.spec.labels)
        if guidance in (0.0, 1.0):  # one of the two has no weight
            alone = label_id if guidance else no_class
            return np.asarray(self._call(noisy[np.newaxis], step, [alone])[0])
        both = self._call(np.stack([noisy, noisy]), step, [label_id, no_class])
        return guided(both[0], both[1], guidance)

    def _call(self, images: _Array, step: int, label_ids: list[int]) -> _Array:
        outputs = self._run(
            {
                "image": images,
                "step": np.full(len(images), step, dtype=np.int64),
                "label": np.array(label_ids, dtype=np.int64),
            }
        )
        output = outputs[OUTPUT]
        if not np.isfinite(output.sum(dtype=np.float64)):
            raise ServerFailedError("the network gave a number that is not finite for this image")
        return output


def to_pixels(image: _Array) -> npt.NDArray[np.uint8]:
    """An image in [-1, 1] -> grey levels of 8 bits, the same shape."""
    return np.asarray(np.rint((image + 1.0) * 127.5).clip(0, 255), dtype=np.uint8)


def _draws(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox([seed, stream]))

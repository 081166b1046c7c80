"""Models that make images: everything, for any set of classes.

    params ─seeds→ noise ─walk, a call of the network a step→ pixels ─not a copy?→ samples ─encode→

What the network was trained on stands in the section `generation` of the model's configuration; the
walk happens in `medserve.inference.generation`, as in training and judging. An image that comes too
near to a training image is withheld, and the next seed takes its place.

A caller who reads a stream gets a JSON object now and then while an image forms,

    {"event": "progress", "image": 0, "step": 5, "of": 20, "preview_png": …}

and at its end what any other caller gets:

    {"model", "version", "archive_digest", "status": "ok",
     "images": [{"png", "synthetic", "seed", "class", "steps", …}, …], "withheld": 0}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from handlers import torchserve
from handlers.base import Handler
from handlers.deadline import Deadline
from handlers.items import Item, errors_to, refuse_expired
from handlers.request import Inputs
from medserve.errors import (
    ConfigError,
    MedserveError,
    ModelNotReadyError,
    ServerFailedError,
)
from medserve.imaging.codecs.payload import Payload
from medserve.inference.engines import Outputs
from medserve.inference.fingerprints import FINGERPRINTS_FILE, FingerprintIndex
from medserve.inference.generation import OUTPUT, DiffusionPipeline, SampleSettings, to_pixels
from medserve.results.files import synthetic
from medserve.results.sample import Sample
from medserve.spec import ModelSpec
from medserve.tasks.generation import (
    GenerationOptions,
    GenerationResult,
    SampleFormat,
    SampleProgress,
)

__all__ = ["GenerationHandler"]

_SHARE_OF_TIMEOUT = 0.9  # the rest is for the answer


@dataclass(frozen=True)
class _Wanted:
    """The options of one call, all of them filled.

    Attributes:
        count: Images.
        seed: Of the first image; the next ones count up.
        label_id: The class; None draws one from each image's seed.
        settings: How each image is drawn.
    """

    count: int
    seed: int
    label_id: int | None
    settings: SampleSettings

    @classmethod
    def of(cls, options: GenerationOptions, spec: ModelSpec) -> _Wanted:
        """Take what `GenerationOptions.filled` has filled."""
        seed, steps, sampler = options.seed, options.steps, options.sampler
        size, guidance = options.size, options.guidance
        if None in (seed, steps, sampler, size, guidance):
            raise ServerFailedError("options of generation reached the network unfilled")
        label_id = None if options.label is None else spec.labels.index(options.label)
        settings = SampleSettings(steps, sampler, guidance, size)  # type: ignore[arg-type]
        return cls(options.count, seed, label_id, settings)  # type: ignore[arg-type]


class GenerationHandler(Handler[GenerationOptions]):
    """Params -> synthetic images; a model's own handler adds nothing but its name."""

    raises_errors: ClassVar[bool] = True
    max_items: ClassVar[int] = 1
    verbs: ClassVar[Mapping[str, str]] = {"infer": "_samples", "encode": "_encode"}

    pipeline: DiffusionPipeline
    fingerprints: FingerprintIndex

    # ---- what the base asks for

    def prepare(self) -> None:
        """Read the fingerprints; without them a copy could not be told, so nothing is served."""
        if self.spec.generation is None:
            raise ConfigError(f"{self.spec.name}: expected a section generation, got none")
        self.pipeline = DiffusionPipeline(self.spec, self.engine.run)
        self.fingerprints = FingerprintIndex.load(self.folder / FINGERPRINTS_FILE)

    def handle(self, data: Sequence[Inputs], context: torchserve.WorkerContext) -> list[bytes]:
        """Answer one call; parts of a streamed answer go through the context."""
        self._context = context
        return super().handle(data, context)

    def answer(self, items: Sequence[Item[GenerationOptions]]) -> None:
        """One call at a time; work stops between steps once nobody waits for it."""
        for item in items:
            with errors_to(item):
                refuse_expired(item.request)
                samples, withheld = self._samples(item)
                item.outcome = self.envelope.single(self._encode(samples, withheld, item.params))

    def reproduce(self, payload: Payload) -> Outputs:
        """The network's answer to noise and the finished image, for the golden params."""
        try:
            golden = json.loads(bytes(payload))
        except ValueError:
            golden = None
        if not isinstance(golden, dict) or "seed" not in golden:
            raise ModelNotReadyError(
                f"{self.spec.name}: expected golden params with a seed in JSON, got something else"
            )
        wanted = _Wanted.of(self.parse_params(golden), self.spec)
        label_id = wanted.label_id
        if label_id is None:
            label_id = self.pipeline.label_id(wanted.seed)
        try:
            outputs = self.pipeline.golden(wanted.seed, label_id, wanted.settings)
        except MedserveError:
            raise
        except Exception as error:  # each engine has its own for inputs that do not fit
            shape = (1, self.spec.input.channels, *self.spec.input.size)
            raise ModelNotReadyError(
                f"{self.spec.name}: expected an artifact with inputs image float32 {shape}, step "
                f"and label int64 (1,) and the output {OUTPUT}, got one that takes something else "
                f"({type(error).__name__})"
            ) from error
        self.fingerprints.is_copy(to_pixels(outputs["image"]))
        if self.spec.labels:  # the pairs that guidance asks for
            pair = {"image": np.repeat(outputs["image"], 2, axis=0)}
            self.engine.run(pair | {name: np.zeros(2, np.int64) for name in ("step", "label")})
        return outputs

    def check_outputs(self, outputs: Outputs) -> None:
        """As many pixels out as in, or the artifact is another model's."""
        expected = (1, self.spec.input.channels, *self.spec.input.size)
        if (got := outputs[OUTPUT].shape) != expected:
            raise ModelNotReadyError(
                f"{self.spec.name}: expected {OUTPUT} {expected} for one image, got {got}; the "
                "artifact belongs to another model"
            )

    # ---- the line

    def _samples(self, item: Item[GenerationOptions]) -> tuple[list[Sample], int]:
        """The images of one call, and how many were withheld on the way."""
        wanted = _Wanted.of(item.params, self.spec)
        tell = self._tell if item.request.wants_stream else None
        limit_s = _SHARE_OF_TIMEOUT * self.spec.serving.response_timeout
        watch = Deadline(item.request, limit_s, tell)
        first_spare = wanted.seed + wanted.count
        spare = iter(range(first_spare, first_spare + self.pipeline.generation.max_replacements))
        samples, withheld = [], 0
        for place in range(wanted.count):
            sample = self._sample(wanted, wanted.seed + place, place, watch)
            while sample is None:
                withheld += 1
                if (seed := next(spare, None)) is None:
                    raise ServerFailedError(
                        f"expected images unlike the training images, got {withheld} that were "
                        "too near to one and are withheld; try another seed"
                    )
                sample = self._sample(wanted, seed, place, watch)
            samples.append(sample)
        return samples, withheld

    def _sample(self, wanted: _Wanted, seed: int, place: int, watch: Deadline) -> Sample | None:
        """One image, or None where it is too near to a training image."""
        label_id = wanted.label_id
        if label_id is None:
            label_id = self.pipeline.label_id(seed)
        for state in self.pipeline.walk(seed, label_id, wanted.settings):
            watch.check()
            if watch.wants(state.done, state.total):
                shown = self._unless_copy(state.clean, wanted, seed, label_id)
                preview = None if shown is None else synthetic.encode_png(shown)
                watch.report(SampleProgress(place, state.done, state.total, preview))
        return self._unless_copy(state.noisy, wanted, seed, label_id)

    def _unless_copy(
        self, image: npt.NDArray[np.float32], wanted: _Wanted, seed: int, label_id: int
    ) -> Sample | None:
        """The image in [-1, 1] as a sample, or None where it is too near to a training image."""
        pixels = to_pixels(image)
        if self.fingerprints.is_copy(pixels[np.newaxis])[0]:
            return None
        return Sample(
            image=pixels[0]
            if len(pixels) == 1
            else np.ascontiguousarray(np.moveaxis(pixels, 0, 2)),
            seed=seed,
            label=self.spec.labels[label_id] if self.spec.labels else "",
            steps=wanted.settings.steps,
            sampler=wanted.settings.sampler.value,
            guidance=wanted.settings.guidance,
            provenance=self.provenance,
        )

    def _encode(self, samples: Sequence[Sample], withheld: int, params: GenerationOptions) -> bytes:
        form = params.format
        images = tuple(
            each.to_image(
                synthetic.encode_png(each),
                synthetic.encode_dicom(each) if form is SampleFormat.DICOM else None,
            )
            for each in samples
        )
        return GenerationResult(
            images=images,
            withheld=withheld,
            npz=synthetic.encode_npz(samples) if form is SampleFormat.NPZ else None,
            nifti=synthetic.encode_nifti(samples) if form is SampleFormat.NIFTI else None,
        ).encode()

    def _tell(self, part: bytes) -> None:
        torchserve.send_chunk(self._context, [part])

"""How much the page takes from one visitor and from all of them together."""

from __future__ import annotations

from dataclasses import dataclass

from medserve.errors import ConfigError

__all__ = ["PageLimits"]


@dataclass(frozen=True)
class PageLimits:
    """Sizes and times; what a visitor sends stays on disk no longer than `retention_s`."""

    retention_s: float = 3600.0  # after the last time that its owner touched a job
    upload_bytes: int = 63 * 2**20  # at once; below the largest message of the gateway
    pack_files: int = 64  # files in one upload of a classification
    series_files: int = 4000  # slices of one DICOM series
    job_files: int = 10_000
    job_bytes: int = 2 * 2**30
    visitor_bytes: int = 4 * 2**30
    total_bytes: int = 16 * 2**30
    visitor_jobs: int = 100
    upload_s: float = 600.0  # one upload from its first to its last byte
    silence_s: float = 30.0  # between two pieces of an upload
    answer_s: float = 300.0  # one call of a model
    calls_in_flight: int = 4  # of the whole page: each holds its files in memory
    uploads_in_flight: int = 32

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"PageLimits.{name}: expected more than 0, got {value}")

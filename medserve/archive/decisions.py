"""What was decided about the models of a store while they were served, kept over a restart.

    {"format": 1, "models": {"mednist": {"default": "1.1", "earlier": ["1.0"], "removed": []}}}

The file appears whole or not at all, so that a server that is killed at any moment starts again
with the decisions of before or of after. A model that nobody has changed is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from medserve.errors import ConfigError
from medserve.whole_file import write_whole

__all__ = ["DECISIONS_FILE", "Decisions", "ModelDecisions"]

DECISIONS_FILE = "serving.json"  # in the store, unless the operator names another place
_FORMAT = 1
_KEPT = 20  # earlier defaults of a model


@dataclass(frozen=True)
class ModelDecisions:
    """What was decided about one model.

    Attributes:
        default: The version that answers when a request names none; "" leaves it to the store.
        earlier: The default versions before it, the latest last.
        removed: Versions that lie in the store and are not served.
        known: Versions that were served; a watched store tries what is not among them.
    """

    default: str = ""
    earlier: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    known: tuple[str, ...] = ()

    def serves(self, version: str, *, watched: bool) -> bool:
        """Return whether a version of the store is served from the start."""
        new = watched and bool(self.known) and version not in self.known
        return version not in self.removed and not new

    def with_default(self, version: str, before: str) -> ModelDecisions:
        """Return the decisions after a version has taken the place of another."""
        earlier = (*self.earlier, before)[-_KEPT:]
        return replace(self.with_known(version), default=version, earlier=earlier)

    def with_known(self, *versions: str) -> ModelDecisions:
        """Return the decisions after versions were served, which so are not removed."""
        removed = tuple(each for each in self.removed if each not in versions)
        known = (*self.known, *(each for each in versions if each not in self.known))
        return replace(self, removed=removed, known=known)

    def rolled_back(self) -> ModelDecisions:
        """Return the decisions with the latest earlier default in force again."""
        return replace(self, default=self.earlier[-1], earlier=self.earlier[:-1])

    def with_removed(self, version: str) -> ModelDecisions:
        """Return the decisions after a version was taken away."""
        return replace(self, removed=(*self.with_known(version).removed, version))


@dataclass(frozen=True)
class Decisions:
    """All decisions, by name of the model."""

    models: Mapping[str, ModelDecisions] = field(default_factory=dict)
    format: int = _FORMAT

    @classmethod
    def read(cls, path: Path) -> Decisions:
        """Return the decisions in a file; none where there is no file.

        Raises:
            ConfigError: the file cannot be read, or holds something else.
        """
        try:
            found = msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        except (msgspec.DecodeError, ValueError) as error:
            raise ConfigError(
                f"{path}: expected what medserve wrote, got something else ({error}); move the "
                "file away to begin anew with the highest versions"
            ) from None
        if found.format != _FORMAT:
            raise ConfigError(f"{path}: expected format {_FORMAT}, got {found.format}")
        return found

    def of(self, model: str) -> ModelDecisions:
        """Return what was decided about a model."""
        return self.models.get(model, ModelDecisions())

    def changed(self, model: str, decided: ModelDecisions) -> Decisions:
        """Return the decisions with those about one model replaced."""
        return replace(self, models={**self.models, model: decided})

    def write(self, path: Path) -> None:
        """Write the file in the place of the one before.

        Raises:
            ConfigError: it cannot be written; the one before is untouched.
        """
        try:
            write_whole(path, msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written ({error.strerror}), and a change that does not last is "
                "none; free its disk, or name another file with --state"
            ) from error

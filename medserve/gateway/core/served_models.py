"""The models behind the gateway, as their archives describe them and as they are now."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from medserve.archive.read import ArchiveInfo
from medserve.errors import UnknownModelError
from medserve.gateway.core.calls import Caller, Health, ModelInfo

__all__ = ["ServedModels", "describe"]

_READS_UPLOADS = "handlers/uploads.py"  # archives that were built without it take small files alone
_READS_TRACEPARENT = "handlers/verbs.py"  # older ones refuse the key
_UNPROVEN = Health(False, "it has not answered its golden input yet")


def describe(archive: ArchiveInfo, default: bool, health: Health = _UNPROVEN) -> ModelInfo:
    """What the gateway tells of an archive; not serving until it is proven."""
    return ModelInfo(
        spec=archive.spec,
        digest=archive.digest,
        default=default,
        health=health,
        card=archive.card,
        metrics=archive.metrics,
        reference=archive.reference,
        reads_uploads=any(each.path == _READS_UPLOADS for each in archive.members),
        reads_traceparent=any(each.path == _READS_TRACEPARENT for each in archive.members),
    )


class ServedModels:
    """Every version of every model; listeners hear of each change of health.

    Attributes:
        changes: How often a version came, went or became the default.
    """

    def __init__(self, models: Iterable[ModelInfo]) -> None:
        self._models = {(model.name, model.version): model for model in models}
        self._defaults: dict[str, str] = {}  # name -> version
        for model in self:
            if model.default:
                self._defaults.setdefault(model.name, model.version)
        self._listeners: list[Callable[[ModelInfo], None]] = []
        self._gone_listeners: list[Callable[[ModelInfo], None]] = []
        self.changes = 0

    def __iter__(self) -> Iterator[ModelInfo]:
        return iter(tuple(self._models.values()))

    def find(self, name: str, version: str = "") -> ModelInfo:
        """The model of that name and version, "" being the default version.

        Raises:
            UnknownModelError: there is none.
        """
        found = self._models.get((name, version or self._defaults.get(name, "")))
        if found is None:
            raise UnknownModelError(_unknown(name, version, self))
        return found

    def serves(self, name: str, version: str) -> bool:
        """Return whether a version is there and answers now."""
        found = self._models.get((name, version))
        return found is not None and found.ready

    def health(self) -> Health:
        """Serving when every model is; else the first reason."""
        for model in self:
            if not model.ready:
                return Health(False, f"{model.name} {model.version}: {model.health.reason}")
        return Health(True)

    def visible_to(self, caller: Caller) -> tuple[ModelInfo, ...]:
        """The models that the caller may use."""
        return tuple(model for model in self if caller.may(model.name))

    def add(self, model: ModelInfo) -> None:
        """Serve one more version; it becomes the default where its model has none."""
        first = model.name not in self._defaults
        self._models[model.name, model.version] = model
        self.changes += 1
        if model.default or first:
            self.set_default(model.name, model.version)
        for listener in self._listeners:
            listener(self._models[model.name, model.version])

    def remove(self, name: str, version: str) -> None:
        """Serve a version no more."""
        gone = self._models.pop((name, version))
        self.changes += 1
        if self._defaults.get(name) == version:
            del self._defaults[name]
        for listener in self._gone_listeners:
            listener(gone)

    def set_health(self, name: str, version: str, health: Health) -> None:
        """Note whether a version serves; tells the listeners if that is new."""
        if (old := self._models.get((name, version))) is None:
            return  # it has gone meanwhile
        new = dataclasses.replace(old, health=health)
        self._models[name, version] = new
        if old.health != health:
            for listener in self._listeners:
                listener(new)

    def set_default(self, name: str, version: str) -> None:
        """Note which version answers when a call names none."""
        self.changes += self._defaults.get(name) != version
        self._defaults[name] = version
        for key, model in self._models.items():
            if model.name == name and model.default != (model.version == version):
                new = dataclasses.replace(model, default=model.version == version)
                self._models[key] = new
                for listener in self._listeners:
                    listener(new)

    def on_change(self, listener: Callable[[ModelInfo], None]) -> None:
        """Call `listener` with a model when its health, or whether it is the default, changes."""
        self._listeners.append(listener)

    def on_removal(self, listener: Callable[[ModelInfo], None]) -> None:
        """Call `listener` with each version that is served no more."""
        self._gone_listeners.append(listener)


def _unknown(name: str, version: str, served: ServedModels) -> str:
    versions = [model.version for model in served if model.name == name]
    if versions:
        return f"expected a version of {name} out of {', '.join(versions)}, got another one"
    return "expected the name of a served model, got another one; ask for the list of models"

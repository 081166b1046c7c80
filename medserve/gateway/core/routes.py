"""Which version answers a caller who names none, and which calls are copied to another version.

    {"models": {"mednist": {"canary": {"version": "1.1", "share": 0.05, "callers": ["ward-7"]},
                            "shadow": {"version": "1.1", "share": 0.2}}},
     "key": "any text"}

The file, in JSON or TOML, is read again when it changes; one that cannot be used changes nothing
but the log. A share is taken of callers, not of calls: a keyed hash of the case that a call names,
or else of its caller, decides. So a case meets one version for as long as the share stands, and who
is in a share stays in it when it grows. A route to a version that does not serve leads nowhere: the
default version answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medserve.errors import ConfigError, InvalidRequestError, ServerFailedError
from medserve.gateway.core.calls import Caller
from medserve.gateway.core.served_models import ServedModels
from medserve.whole_file import write_whole

__all__ = ["ROUTES_FILE", "Canary", "Route", "RouteFile", "Routes", "Shadowing"]

ROUTES_FILE = "routes.json"  # in the store, unless the operator names another one
_LOOK_S = 2.0
_DIGEST_BYTES = 8

logger = logging.getLogger(__name__)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Canary(_Part):
    """A version that answers some of the callers who name none."""

    version: str = Field(min_length=1)
    share: float = Field(default=0.0, ge=0, le=1, description="of the callers, or of the cases")
    callers: tuple[str, ...] = Field(default=(), description="who get it whatever the share")


class Shadowing(_Part):
    """A version that gets copies of calls, whose answers are compared and given to nobody."""

    version: str = Field(min_length=1)
    share: float = Field(gt=0, le=1, description="of the calls")


class Route(_Part):
    """Where the calls to one model go."""

    canary: Canary | None = None
    shadow: Shadowing | None = None


_NO_ROUTE = Route()


class RouteFile(_Part):
    """The routes of all models."""

    models: Mapping[str, Route] = Field(default_factory=dict)
    key: str = Field(default="", description="of the hash; another key makes other shares")

    @classmethod
    def read(cls, path: Path) -> RouteFile:
        """Return the routes in a file; none where there is no file.

        Raises:
            ConfigError: it cannot be read, or holds something else.
        """
        try:
            content = path.read_bytes()
            if path.suffix == ".toml":
                return cls.model_validate(tomllib.loads(content.decode()))
            return cls.model_validate_json(content)
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise ConfigError(f"routes {path}: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ConfigError(f"routes {path}: {place or 'content'}: {first['msg']}") from None
        except ValueError as error:  # no TOML, no text
            raise ConfigError(f"routes {path}: {error}") from None


class Routes:
    """The routes of a gateway; follows its file.

    Args:
        path: The file; None for no routes.
        served: What is served.
    """

    def __init__(self, path: Path | None, served: ServedModels) -> None:
        self._path, self._served = path, served
        self._file = RouteFile.read(path) if path else RouteFile()
        self._signature = self._look()

    def of(self, model: str) -> Route:
        """Return the route of a model; an empty one where there is none."""
        return self._file.models.get(model, _NO_ROUTE)

    def lead_to(self, model: str, version: str) -> bool:
        """Return whether calls are sent to a version because of a route."""
        route = self.of(model)
        return any(part and part.version == version for part in (route.canary, route.shadow))

    def version_for(self, model: str, caller: Caller) -> str:
        """Return the version that answers a caller who names none; "" for the default one."""
        if not self._file.models or (canary := self.of(model).canary) is None:
            return ""
        chosen = caller.name in canary.callers or self._place(model, caller) < canary.share
        return canary.version if chosen and self._served.serves(model, canary.version) else ""

    def set(self, model: str, route: Route) -> None:
        """Replace the route of a model, and keep it over a restart.

        Raises:
            UnknownModelError: it leads to a version that is not served.
            InvalidRequestError: the operator's own file holds the routes.
            ServerFailedError: the file cannot be written.
        """
        self._served.find(model)
        for part in (route.canary, route.shadow):
            if part is not None:
                self._served.find(model, part.version)
        if self._path is None or self._path.suffix == ".toml":
            raise InvalidRequestError(
                "the routes stand in a TOML file of the operator, which is read again when it "
                "changes; edit it there"
                if self._path
                else "this gateway has no file for routes; start it with --routes FILE"
            )
        self.reread()  # what somebody has written into it a moment ago stays
        models = {**self._file.models, model: route}
        kept = {name: each for name, each in models.items() if each != _NO_ROUTE}
        changed = self._file.model_copy(update={"models": kept})
        try:
            write_whole(self._path, changed.model_dump_json(indent=2).encode() + b"\n")
        except OSError as error:
            raise ServerFailedError(
                f"{self._path} cannot be written ({error.strerror}), and a change that does not "
                "last is none; free its disk, or name another file with --routes"
            ) from error
        self._file, self._signature = changed, self._look()

    async def follow(self) -> None:
        """Read the file again whenever it changes; until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.reread()

    def reread(self) -> None:
        """Read the file again if it has changed; one that cannot be used changes nothing."""
        if self._path is None or (signature := self._look()) == self._signature:
            return
        self._signature = signature
        try:
            self._file = RouteFile.read(self._path)
            logger.warning("routes were read again: %s", self._file.models or "none")
        except ConfigError as error:
            logger.error("the routes of before still count: %s", error)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat() if self._path else None
        except OSError:
            return None
        return found and (found.st_mtime_ns, found.st_size, found.st_ino)

    def _place(self, model: str, caller: Caller) -> float:
        """Return where a case, or a caller without one, stands between 0 and 1; always the same."""
        who = f"case:{caller.case}" if caller.case else f"caller:{caller.owner}"
        hashed = hashlib.blake2b(
            f"{model}\0{who}".encode(),
            key=self._file.key.encode()[: hashlib.blake2b.MAX_KEY_SIZE],
            digest_size=_DIGEST_BYTES,
        )
        return float(int.from_bytes(hashed.digest()) / 2 ** (8 * _DIGEST_BYTES))

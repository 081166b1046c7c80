"""Read the configuration of a MONAI bundle as data.

MONAI itself imports every `_target_` and evaluates every text that begins with `$`. Here nothing
is imported or evaluated: references are looked up, and the few forms of `$` that stand for a
plain value are parsed and computed by the closed lists below; every other one is refused.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medserve.errors import ConfigError
from medserve.importing.untrusted import plain_text, read_json

__all__ = ["BundleConfig", "Component"]

_TARGET = "_target_"
_SPECIAL = {_TARGET, "_desc_", "_requires_", "_disabled_", "_mode_"}
_REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")
_INCLUSION = re.compile(r"(.+?\.(?:json|ya?ml))(?:(?:#|::)(.*))?", re.DOTALL)
_SEPARATOR = re.compile(r"#|::")
_DICTIONARY_FORM = re.compile(r"(?<=[a-z])(D|Dict)$")  # MONAI's other names, as LoadImageD
_MAX_STEPS = 100_000  # values that are looked at in all
_MAX_DEPTH = 40
_MAX_LENGTH = 10_000  # of a text or list that is put together
# Names that stand for values, whatever a bundle imports.
_NAMES = {
    "monai.utils.CommonKeys.IMAGE": "image",
    "monai.utils.CommonKeys.LABEL": "label",
    "monai.utils.CommonKeys.PRED": "pred",
    **{
        f"{module}.{kind}": kind
        for module in ("torch", "np", "numpy")
        for kind in ("float16", "float32", "float64", "uint8", "int16", "int32", "int64")
    },
}
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_NUMBERS = (int, float)


@dataclass(frozen=True, eq=False)
class Component:
    """An object that MONAI would build.

    Attributes:
        config: Where it is described.
        where: Path of its description in the file, for messages.
        target: Name of its class without MONAI's package, or the whole name of a foreign one.
        arguments: As they stand in the file, without those of MONAI's machinery.
    """

    config: BundleConfig = field(repr=False)
    where: str
    target: str
    arguments: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """Where it stands and what it is, for messages."""
        return f"{self.config.path}: {self.where}: {self.target}"

    def get(self, key: str, default: Any = None) -> Any:
        """Return an argument with its references resolved."""
        if key not in self.arguments:
            return default
        return self.config.value(self.arguments[key], f"{self.where}.{key}")

    def single(self, key: str, default: Any = None) -> Any:
        """Return an argument that may be a list of one, for the only key of a transform."""
        value = self.get(key, default)
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return an argument that is yes or no."""
        value = self.single(key, default)
        if value in ("True", "true"):
            return True
        if not isinstance(value, bool):
            raise self.refused(key, "true or false", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return an argument that is a finite number."""
        value = self.single(key, default)
        if isinstance(value, bool) or not isinstance(value, _NUMBERS) or abs(value) > 1e30:
            raise self.refused(key, "a number", value)
        return float(value)

    def only(self, *known: str) -> None:
        """Refuse arguments beside the known ones: each could change the answer."""
        for key in self.arguments:
            if key not in known:
                raise ConfigError(
                    f"{self.name}: expected no argument {plain_text(key, '')!r}, got one; a bundle "
                    f"with it cannot be imported"
                )

    def must(self, key: str, *values: Any) -> None:
        """Refuse an argument that is given and has none of these values."""
        value = self.single(key, values[0])
        if not any(value == each and type(value) is type(each) for each in values):
            raise self.refused(key, " or ".join(map(repr, values)), value)

    def refused(self, key: str, wanted: str, value: Any) -> ConfigError:
        """Return the error that names an argument."""
        return ConfigError(
            f"{self.name}: {key}: expected {wanted}, got {_shown(value)}; a bundle with it cannot "
            f"be imported"
        )


class BundleConfig:
    """One configuration file of a bundle, with the files that it includes."""

    def __init__(self, folder: Path, path: Path) -> None:
        self._folder, self.path = folder, path.relative_to(folder).as_posix()
        hint = "give the folder of a MONAI bundle"
        self._content = read_json(path, hint) | {"bundle_root": "."}
        self._included: dict[str, Mapping[str, Any]] = {}
        self._steps = 0
        self._open: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def component(self, key: str) -> Component:
        """Return the object at a key of the file.

        Raises:
            ConfigError: there is none, or something else.
        """
        value = self.value(f"@{key}", key) if key in self._content else None
        if not isinstance(value, Component):
            raise ConfigError(
                f"{self.path}: expected {key!r} with a _target_, got {_shown(value)}; the file is "
                f"no inference workflow of a bundle"
            )
        return value

    def components_of(self, target: str) -> list[Component]:
        """Return all objects of a class at the top of the file or in a list there."""
        found = []
        for key, value in self._content.items():
            for number, each in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(each, Mapping) and str(each.get(_TARGET)).endswith(target):
                    where = f"{key}[{number}]" if isinstance(value, list) else key
                    found.append(self._component(each, where))
        return found

    def value(self, raw: Any, where: str, depth: int = 0) -> Any:
        """Resolve references, inclusions and plain expressions; objects become components.

        Raises:
            ConfigError: a reference leads nowhere or in a circle, or a text is code.
        """
        self._steps += 1
        if self._steps > _MAX_STEPS or depth > _MAX_DEPTH:
            raise ConfigError(f"{self.path}: {where}: expected a plain value, got an endless one")
        if isinstance(raw, str):
            return self._text(raw, where, depth)
        if isinstance(raw, list):
            parts = (
                self.value(each, f"{where}[{number}]", depth + 1)
                for number, each in enumerate(raw)
                if not self._is_disabled(each, f"{where}[{number}]")
            )
            return list(parts)
        if isinstance(raw, Mapping):
            if _TARGET in raw:
                return self._component(raw, where)
            return {
                str(key): self.value(each, f"{where}.{plain_text(key, '')}", depth + 1)
                for key, each in raw.items()
            }
        return raw

    def _component(self, raw: Mapping[str, Any], where: str) -> Component:
        target = raw[_TARGET]
        if not isinstance(target, str) or raw.get("_mode_", "default") != "default":
            raise ConfigError(
                f"{self.path}: {where}: expected the name of a class as _target_, got "
                f"{_shown(target)}"
            )
        short = target.rpartition(".")[2] if target.startswith("monai.") else target
        short = _DICTIONARY_FORM.sub("d", short)
        arguments = {str(key): each for key, each in raw.items() if key not in _SPECIAL}
        return Component(self, where, plain_text(short, "none"), arguments)

    def _is_disabled(self, raw: Any, where: str) -> bool:
        if not isinstance(raw, Mapping) or "_disabled_" not in raw:
            return False
        disabled = self.value(raw["_disabled_"], f"{where}._disabled_")
        return disabled is True or str(disabled).lower() == "true"

    def _text(self, raw: str, where: str, depth: int) -> Any:
        if raw.startswith("$"):
            return self._expression(raw, where, depth)
        if raw.startswith("%"):
            return self._inclusion(raw[1:], where, depth)
        if raw.startswith("@"):
            whole = _REFERENCE.fullmatch(raw)
            if whole is None:
                raise ConfigError(
                    f"{self.path}: {where}: expected a reference such as @image_key, got "
                    f"{_shown(raw)}"
                )
            return self._referred(whole[1], where, depth)
        return raw

    def _referred(self, identity: str, where: str, depth: int) -> Any:
        if identity in self._open:
            circle = " -> ".join([*self._open, identity])
            raise ConfigError(
                f"{self.path}: {where}: expected references without a circle, got {circle[:200]}"
            )
        raw = _looked_up(self._content, identity)
        if raw is _MISSING:
            raise ConfigError(
                f"{self.path}: {where}: expected {plain_text(identity, '')!r} in the file, there "
                f"is none"
            )
        self._open.append(identity)
        try:
            return self.value(raw, _SEPARATOR.sub(".", identity), depth + 1)
        finally:
            self._open.pop()

    def _inclusion(self, text: str, where: str, depth: int) -> Any:
        """Return a value of the same or another file of the bundle, which must lie inside it."""
        found = _INCLUSION.fullmatch(text)
        name, identity = (found[1], found[2] or "") if found else ("", text.lstrip("#:"))
        if name in ("", self.path):
            return self._referred(identity, where, depth)
        path = self.inside(name, where)
        if name not in self._included:
            self._included[name] = read_json(path, "the bundle is incomplete")
        raw = _looked_up(self._included[name], identity) if identity else self._included[name]
        if raw is _MISSING:
            raise ConfigError(
                f"{self.path}: {where}: expected {plain_text(identity, '')!r} in "
                f"{plain_text(name, '')}, there is none"
            )
        return self.value(raw, where, depth + 1)

    def inside(self, name: str, where: str) -> Path:
        """Return the path of a file of the bundle; ConfigError where it would lie outside."""
        path = (self._folder / name).resolve() if "\0" not in name else Path("/")
        if not path.is_relative_to(self._folder.resolve()):
            raise ConfigError(
                f"{self.path}: {where}: expected a file inside the bundle, got {_shown(name)}"
            )
        return path

    def _expression(self, raw: str, where: str, depth: int) -> Any:
        """Compute a `$` text that stands for a plain value."""
        identities: list[str] = []

        def placeholder(found: re.Match[str]) -> str:
            identities.append(found[1])
            return f"_reference_{len(identities) - 1}"

        refusal = ConfigError(
            f"{self.path}: {where}: expected a plain value, got code, which an import does not "
            f"run: {_shown(raw)}"
        )
        if len(raw) > _MAX_LENGTH:
            raise refusal
        try:
            tree = ast.parse(_REFERENCE.sub(placeholder, raw[1:]).strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise refusal from None
        names = {
            f"_reference_{number}": (lambda identity=identity: self._referred(
                identity, where, depth + 1
            ))
            for number, identity in enumerate(identities)
        }  # fmt: skip
        try:
            return _computed(tree, names)
        except (_CodeError, TypeError, LookupError, RecursionError, OverflowError):
            raise refusal from None


class _CodeError(Exception):
    """A text is more than a plain value."""


_MISSING = object()


def _looked_up(content: Any, identity: str) -> Any:
    for part in _SEPARATOR.split(identity):
        if isinstance(content, Mapping) and part in content:
            content = content[part]
        elif isinstance(content, list) and part.isdecimal() and int(part) < len(content):
            content = content[int(part)]
        else:
            return _MISSING
    return content


def _computed(tree: ast.expr, names: Mapping[str, Callable[[], Any]]) -> Any:
    """Return what an expression of plain values stands for; _CodeError for anything else."""
    match tree:
        case ast.Constant():
            return tree.value
        case ast.Name() if tree.id in names:
            return names[tree.id]()
        case ast.Attribute() if (dotted := ast.unparse(tree)) in _NAMES:
            return _NAMES[dotted]
        case ast.List() | ast.Tuple():
            return [_computed(each, names) for each in tree.elts]
        case ast.IfExp():
            test = _computed(tree.test, names)
            if not isinstance(test, bool):
                raise _CodeError
            return _computed(tree.body if test else tree.orelse, names)
        case ast.UnaryOp(op=ast.USub()):
            return -_computed(tree.operand, names)
        case ast.UnaryOp(op=ast.Not()):
            return not _computed(tree.operand, names)
        case ast.BinOp() if type(tree.op) in _OPERATORS:
            return _combined(tree.op, _computed(tree.left, names), _computed(tree.right, names))
        case ast.Call(func=ast.Name(id="len"), args=[only], keywords=[]):
            return len(_computed(only, names))
        case ast.Call(func=ast.Attribute(value=ast.Name() as moved, attr="to" | "eval")):
            network = _computed(moved, names)  # another device, the same object
            if isinstance(network, Component):
                return network
    raise _CodeError


def _combined(kind: ast.operator, left: Any, right: Any) -> Any:
    both_numbers = isinstance(left, _NUMBERS) and isinstance(right, _NUMBERS)
    if both_numbers and max(abs(left), abs(right)) < 1e15:
        return _OPERATORS[type(kind)](left, right)
    is_joined = isinstance(kind, ast.Add) and type(left) is type(right)
    if is_joined and isinstance(left, str | list) and len(left) + len(right) <= _MAX_LENGTH:
        return left + right
    raise _CodeError


def _shown(value: Any) -> str:
    """Return a value of the file for a message: short and printable."""
    if isinstance(value, Component):
        return value.target
    return repr(plain_text(value, "") if isinstance(value, str) else value)[:120]

"""Options of commands that are declared elsewhere: names, types, bounds and help stand there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import typer

from medserve.errors import ConfigError, InvalidRequestError
from medserve.spec import Task
from medserve.tasks import OPTIONS, Option, Options, declared

__all__ = ["add_options", "read_options", "task_options"]

Asked = TypeVar("Asked", bound=Options)


def add_options(command: Callable[..., None], options: Iterable[inspect.Parameter]) -> None:
    """Let typer see these options in the place of the command's last parameter, `**given`."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[:-1]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    parameters += options
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}


def task_options(*tasks: Task, without: Collection[str] = ()) -> list[inspect.Parameter]:
    """Return a flag for each option that these tasks declare, but for those named.

    A flag that is not given is None. Where there are several tasks, the help groups the flags by
    those that know them.
    """
    found: dict[str, list[tuple[Task, Option]]] = {}
    for task in tasks:
        for option in declared(OPTIONS[task]):
            if option.name not in without:
                found.setdefault(option.name, []).append((task, option))
    return [_parameter(name, each, len(tasks) > 1) for name, each in found.items()]


def _parameter(
    name: str, declarations: list[tuple[Task, Option]], name_tasks: bool
) -> inspect.Parameter:
    option = declarations[0][1]
    texts: dict[str, list[str]] = {}
    for task, each in declarations:
        texts.setdefault(each.help, []).append(task.value)
    told = [f"{', '.join(of)}: {text}" if len(texts) > 1 else text for text, of in texts.items()]
    flag = _flag(option)
    kind: Any = option.kind
    details: dict[str, Any] = {"help": "\n".join(told), "show_default": False}
    if name_tasks:
        tasks = " and ".join(task.value for task, _ in declarations)
        details["rich_help_panel"] = f"Options for {tasks}"
    if option.kind is bool and option.default is None:
        flag = f"{flag}/--no-{flag[2:]}"
    if option.choices:
        words = dict.fromkeys(word for _, each in declarations for word in each.choices)
        kind = Literal[tuple(words)]
    elif any(each.count > 1 for _, each in declarations):
        kind, details["metavar"] = str, "NUMBER,NUMBER,…"
    elif option.kind is not bool:
        details |= {"min": option.least, "max": option.most}
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, typer.Option(flag, **details)],
    )


def read_options(
    kind: type[Asked], given: Mapping[str, Any], model: str = "", **fixed: Any
) -> Asked:
    """Return the options of a task from flags; `fixed` are parameters that the command decides.

    Raises:
        ConfigError: a flag that the task does not know, or a value that its option does not take.
    """
    known = {option.name: option for option in declared(kind)}
    every = {each.name: each for options in OPTIONS.values() for each in declared(options)}
    params: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name not in known:
            raise ConfigError(
                f"{_flag(every[name])}: {model or 'this model'} has no such option; leave it out"
            )
        option = known[name]
        try:
            read = option.from_text(value) if option.count > 1 else option.read(value)
        except InvalidRequestError:
            raise ConfigError(f"{_flag(option)}: expected {option.expected}") from None
        params[option.key] = read
    return kind.from_params(params | fixed)


def _flag(option: Option) -> str:
    return f"--{option.key.replace('_', '-')}"

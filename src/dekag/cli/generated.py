"""Options of a command from the dataclasses that it takes: names, types, defaults, bounds and help exist once.

```
@app.command()
@with_options
def train(out: Out, config: Annotated[MakdConfig, Options(names={"joint_steps": "steps"})]) -> None:
```
Every field of `config` is an option; the command is called with the dataclass. An option that an earlier parameter has
already is shared. A dataclass may have a `check`, which is called before the command: what can be known of its options
before anything heavy is imported, anything is drawn or bought, or a training begins, is refused there.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from dekag.config import DescribedField, described_fields


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a dataclass becomes options.

    names: of options that are not called as their field. only: the fields that are options, all if empty; the others
    keep their defaults. unless: the field without which the whole is None. A dataclass may name fields that no help
    shows, as `HIDDEN`.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    unless: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Group:
    """A parameter that is a dataclass, and the option of each of its fields."""

    kind: Any
    options: Mapping[str, str]
    unless: str | None

    def made(self, given: Mapping[str, Any]) -> Any:
        """The dataclass, of the values of the options; what is None takes the field's default."""
        if self.unless is not None and not given[self.options[self.unless]]:
            return None
        values = {name: given[option] for name, option in self.options.items()}
        defaults = {described.name: described.default for described in described_fields(self.kind)}
        return self.kind(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
                if value is not None or defaults[name] is None
            }
        )


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of its dataclasses."""
    signature = inspect.signature(command, eval_str=True)
    parameters: dict[str, inspect.Parameter] = {}
    groups: dict[str, _Group] = {}
    plain: set[str] = set()
    for name, parameter in signature.parameters.items():
        kind, as_options = _dataclass_of(parameter.annotation)
        if kind is None:
            parameters[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            plain.add(name)
            continue
        described_options = [
            described
            for described in described_fields(kind)
            if described.name in (as_options.only or described.name)
        ]
        names = {
            described.name: as_options.names.get(described.name, described.name)
            for described in described_options
        }
        groups[name] = _Group(kind=kind, options=names, unless=as_options.unless)
        for described in described_options:
            option = names[described.name]
            if option not in parameters:
                hidden = described.name in getattr(kind, "HIDDEN", ())
                parameters[option] = _option(described, option, as_options, hidden=hidden)

    def run(**given: Any) -> None:
        made = {name: group.made(given) for name, group in groups.items()}
        for options in made.values():
            if check := getattr(options, "check", None):
                check()
        command(**{name: given[name] for name in plain}, **made)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return run


def _dataclass_of(annotation: Any) -> tuple[Any, Options]:
    """The dataclass that a parameter is, or None, and how it becomes options."""
    kind, *notes = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    kind = next((part for part in _parts(kind) if is_dataclass(part)), None)
    as_options = next((note for note in notes if isinstance(note, Options)), Options())
    return kind, as_options


def _parts(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _option(described: DescribedField, name: str, as_options: Options, *, hidden: bool) -> inspect.Parameter:
    """The option of a field."""
    needed = described.required and described.name != as_options.unless
    default = None if described.name == as_options.unless or described.required else described.default
    shown = f"--{name.replace('_', '-')}"
    kind, listed = _plain(described.type)
    optional = default is None and not needed
    note = typer.Option(
        f"{shown}/--no-{shown[2:]}" if kind is bool else shown,
        metavar=f"<{kind.__name__}> ..." if listed else None,
        help=described.help,
        min=described.minimum if kind in (int, float) else None,
        max=described.maximum if kind in (int, float) else None,
        hidden=hidden,
        show_default=default not in (None, (), ""),
    )
    if listed:
        kind, default = list[kind], list(default or ())  # type: ignore[valid-type]
    elif optional:
        kind = kind | None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if needed else default,
        annotation=Annotated[kind, note],
    )


def _plain(kind: Any) -> tuple[Any, bool]:
    """What the command line reads for a field's type, and whether several may be given."""
    if get_origin(kind) is tuple:
        return get_args(kind)[0], True
    parts = [part for part in _parts(kind) if part is not NoneType]
    return float if float in parts else parts[0], False

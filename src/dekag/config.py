"""Fields of a configuration with their help and bounds, said once: in the annotation.

A field is written as `rank: Annotated[int, Ge(1), Doc("Rank of the update.")] = 8`. The dataclass calls
`check_bounds` in its `__post_init__`; options of the command line and fields of a job are generated from
`described_fields`, so that type, default, bounds and help exist in one place.
"""

from collections.abc import Iterator
from dataclasses import MISSING, Field, asdict, dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen
from typing_extensions import Doc

from dekag.errors import InputError

Bound = Ge | Gt | Le | Lt | MinLen | MaxLen
"""Limits of a number, or of the length of a text; None is within all of them."""
REQUIRED = MISSING
"""The default of a field that has none."""


@dataclass(frozen=True, kw_only=True)
class DescribedField:
    """A field of a configuration as its dataclass describes it.

    type: the annotation without bounds and help. default: `REQUIRED` if the field must be given.
    bounds: as annotated; pydantic understands the same objects in an `Annotated`. help: one line.
    """

    name: str
    type: Any
    default: Any
    bounds: tuple[Bound, ...]
    help: str

    @property
    def required(self) -> bool:
        """Whether the field has no default."""
        return self.default is REQUIRED

    @property
    def minimum(self) -> Any:
        """The smallest number allowed, or None; a bound that is itself not allowed (`Gt`) is not one."""
        limits: list[Any] = [bound.ge for bound in self.bounds if isinstance(bound, Ge)]
        return max(limits, default=None)

    @property
    def maximum(self) -> Any:
        """The largest number allowed, or None; a bound that is itself not allowed (`Lt`) is not one."""
        limits: list[Any] = [bound.le for bound in self.bounds if isinstance(bound, Le)]
        return min(limits, default=None)

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a `Literal`; empty for any other type."""
        options = [self.type, *get_args(self.type)] if get_origin(self.type) is not Literal else [self.type]
        return tuple(value for one in options if get_origin(one) is Literal for value in get_args(one))

    @property
    def annotated(self) -> Any:
        """Type, bounds and help together, for pydantic's `create_model`."""
        return Annotated[(self.type, *self.bounds, Doc(self.help))]


def described_fields(cls: type) -> tuple[DescribedField, ...]:
    """The fields of a dataclass in their order; a field without `Doc` has an empty help."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(_described(field, hints[field.name]) for field in fields(cls) if field.init)


def check_bounds(instance: Any) -> None:
    """Check every field of a dataclass against its annotation; for its `__post_init__`.

    Raises InputError for the first that is out of bounds or not among its choices, as
    `rank must be at least 1, got 0`.
    """
    for field in described_fields(type(instance)):
        value = getattr(instance, field.name)
        if value is None:
            continue
        if field.choices and value not in field.choices:
            known = ", ".join(map(str, field.choices))
            raise InputError(f"{field.name} must be one of {known}, got {value!r}")
        for bound in field.bounds:
            if complaint := _complaint(bound, value):
                raise InputError(f"{field.name} must {complaint}")


def settings(instance: Any) -> dict[str, int | float | str]:
    """The values of a configuration as a bundle keeps them: None is left out, yes and no are 1 and 0."""
    values = {name: value for name, value in asdict(instance).items() if value is not None}
    return {name: int(value) if isinstance(value, bool) else value for name, value in values.items()}


def _described(field: "Field[Any]", hint: Any) -> DescribedField:
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    return DescribedField(
        name=field.name,
        type=kind,
        default=field.default if field.default_factory is MISSING else field.default_factory(),
        bounds=tuple(_bounds(notes)),
        help=" ".join(" ".join(note.documentation for note in notes if isinstance(note, Doc)).split()),
    )


def _bounds(notes: list[Any]) -> Iterator[Bound]:
    for note in notes:
        if isinstance(note, GroupedMetadata):
            yield from _bounds(list(note))
        elif isinstance(note, Bound):
            yield note


def _complaint(bound: Bound, value: Any) -> str | None:
    """What the value must be and is not; not-a-number is within no bound."""
    match bound:
        case MinLen(min_length=minimum_length):
            holds, text, value = (
                len(value) >= minimum_length,
                f"have at least {minimum_length} characters",
                len(value),
            )
        case MaxLen(max_length=maximum_length):
            holds, text, value = (
                len(value) <= maximum_length,
                f"have at most {maximum_length} characters",
                len(value),
            )
        case Ge(ge=limit):
            holds, text = value >= limit, f"be at least {limit}"
        case Gt(gt=limit):
            holds, text = value > limit, f"be above {limit}"
        case Le(le=limit):
            holds, text = value <= limit, f"be at most {limit}"
        case Lt(lt=limit):
            holds, text = value < limit, f"be below {limit}"
    return None if holds else f"{text}, got {value}"

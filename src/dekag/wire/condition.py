"""The condition of a transmission as it leaves the program: for each of its fields, a list of one value an image."""

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, create_model

from dekag.types import Condition

Model = TypeVar("Model", bound="_Columns")

MAX_COUNT = 2**31 - 1
"""Largest whole number of a condition that is read."""


class _Columns(BaseModel):
    """What the model that is made below can do."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @classmethod
    def of(cls: type[Model], condition: Condition, **others: Any) -> Model:
        """The model of a condition and of whatever other fields a subclass has."""
        return cls(
            **{field.name: getattr(condition, field.name).tolist() for field in fields(Condition)}, **others
        )

    def condition(self) -> Condition:
        """The condition that the values describe. Raises InputError if they describe none."""
        return Condition(
            **{field.name: torch.tensor(getattr(self, field.name)) for field in fields(Condition)}
        )


def _column(annotation: Any) -> Any:
    """The list that holds a field of `Condition`, by the dtype of its annotation."""
    value: Any = Annotated[float, Field(allow_inf_nan=False)]
    if "bool" in annotation.dtypes:
        value = bool
    elif "int64" in annotation.dtypes:
        value = Annotated[int, Field(ge=0, le=MAX_COUNT)]
    return Annotated[list[value], Field(min_length=1)]


if TYPE_CHECKING:
    ConditionModel = _Columns
else:
    # made from the fields of `Condition`, so that another one is on the wire without further ado
    ConditionModel = create_model(
        "ConditionModel",
        __base__=_Columns,
        __doc__="The fields of `Condition`, one value an image.",
        **{field.name: (_column(field.type), ...) for field in fields(Condition)},
    )

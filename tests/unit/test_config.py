"""Fields that describe themselves: bounds, choices, help, and a pydantic model made from them."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le, Len, Lt
from pydantic import ValidationError, create_model
from typing_extensions import Doc

from dekag.config import REQUIRED, check_bounds, described_fields
from dekag.types import InputError


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: Annotated[int, Ge(1), Doc("Steps of the training.")]
    share: Annotated[float, Interval(ge=0, le=1), Doc("Share of the batch\n    that is kept.")] = 0.5
    rate: Annotated[float, Gt(0)] = 1e-3
    decay: Annotated[float, Ge(0), Lt(1)] = 0.9
    limit: Annotated[float | None, Gt(0), Doc("Limit, None for none.")] = None
    words: Annotated[str, Len(1, 8)] = "a"
    kind: Annotated[Literal["one", "two"], Doc("Which.")] = "one"
    form: Literal["x"] | None = None
    names: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        check_bounds(self)


def test_what_a_field_says_is_read_in_order() -> None:
    steps, share, rate, decay, limit, words, kind, form, names = described_fields(Settings)
    assert (steps.name, steps.type, steps.help) == ("steps", int, "Steps of the training.")
    assert (steps.default, steps.required, steps.minimum, steps.maximum) == (REQUIRED, True, 1, None)
    assert (share.help, share.minimum, share.maximum) == ("Share of the batch that is kept.", 0, 1)
    assert (share.default, share.bounds) == (0.5, (Ge(0), Le(1)))
    assert (rate.minimum, rate.bounds, rate.help) == (None, (Gt(0),), "")
    assert (decay.minimum, decay.maximum) == (0, None)
    assert (limit.type, limit.default, limit.required) == (float | None, None, False)
    assert (kind.choices, form.choices, words.choices, names.choices) == (("one", "two"), ("x",), (), ())
    assert names.default == ()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"share": 1.5}, "share must be at most 1, got 1.5"),
        ({"share": math.nan}, "share must be at least 0, got nan"),
        ({"rate": 0.0}, "rate must be above 0, got 0.0"),
        ({"decay": 1.0}, "decay must be below 1, got 1.0"),
        ({"limit": -2.0}, "limit must be above 0, got -2.0"),
        ({"words": ""}, "words must have at least 1 characters, got 0"),
        ({"words": "a" * 9}, "words must have at most 8 characters, got 9"),
        ({"kind": "three"}, "kind must be one of one, two, got 'three'"),
    ],
)
def test_a_value_out_of_bounds_is_one_clear_line(given: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        Settings(**{"steps": 1, **given})
    assert str(caught.value) == text


def test_bounds_hold_in_a_pydantic_model_made_from_the_fields() -> None:
    given: dict[str, Any] = {
        one.name: (one.annotated, ... if one.required else one.default) for one in described_fields(Settings)
    }
    model = create_model("Job", **given)
    assert model(steps=3, limit=None).model_dump()["share"] == 0.5
    for wrong in (
        {"steps": 0},
        {"steps": 1, "share": 2.0},
        {"steps": 1, "limit": 0.0},
        {"steps": 1, "words": ""},
    ):
        with pytest.raises(ValidationError):
            model(**wrong)

"""What clients may ask for and what they get, in the words of OpenAI's and Hugging Face's interfaces."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from dekag.generation.prompts import LONGEST_PROMPT
from dekag.serving.alignment import State

MOST_IMAGES = 10
MOST_STEPS = 100
LARGEST_SEED = 2**53 - MOST_IMAGES
"""Image i of an order has seed + i, and JSON numbers are whole up to 2**53."""


def _encodable(text: str) -> str:
    """Refuse halves of surrogate pairs, which JSON can spell and no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("must be Unicode text without lone surrogates") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Prompt = Annotated[Text, Field(min_length=1, max_length=LONGEST_PROMPT, pattern=r"\S")]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
ShortText = Annotated[Text, Field(max_length=200)]
Bundle = Annotated[str, Field(pattern="^(active|none|[0-9a-f]{6,64})$")]
"""The active update, none, or one by the head of its id."""


class Strict(BaseModel):
    """Values have exactly the type that is named, and other names are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ImageRequest(Strict):
    """OpenAI's request, with `seed`, `steps` and `bundle` beside it. Image i of n is drawn with seed + i."""

    prompt: Prompt
    model: ShortText | None = None
    n: Annotated[int, Field(ge=1, le=MOST_IMAGES)] | None = None
    size: ShortText | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    safety_identifier: ShortText | None = None
    user: ShortText | None = None
    seed: Seed | None = None
    steps: Steps | None = None
    bundle: Bundle | None = None


def request_model(size: str) -> type[ImageRequest]:
    """The request of a service whose images have this size."""
    pattern = f"^(auto|{re.escape(size)})$"
    sized: Any = (Annotated[str, Field(pattern=pattern)] | None, None)
    return create_model("CreateImage", __base__=ImageRequest, size=sized)


class HubParameters(Strict):
    """What Hugging Face's client may say of an image, as far as it can be obeyed."""

    seed: Seed | None = None
    num_inference_steps: Steps | None = None
    width: int | None = None
    height: int | None = None
    bundle: Bundle | None = None


class HubRequest(Strict):
    """Hugging Face's request for an image."""

    inputs: Prompt
    parameters: HubParameters | None = None


class ImageData(BaseModel):
    """One image, in base64."""

    b64_json: str


class TokenDetails(BaseModel):
    """Tokens of what was asked for."""

    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Tokens of the prompt; those of an image are the places of its latent."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    total_tokens: int


class AlignmentDetails(BaseModel):
    """Whether the images are aligned: see `dekag.serving.alignment`."""

    state: State
    reason: str


class Traffic(BaseModel):
    """What went over the core link, and what the images themselves would have taken."""

    prompt_bytes: int
    seed_bytes: int
    id_bytes: int
    image_bytes: int


class Details(BaseModel):
    """How the images were drawn. bundle: the update that drew them. milliseconds: in the line and in drawing.

    alignment: the state of that update and why it is not aligned; None of a service that has no updates.
    """

    bundle: str | None
    alignment: AlignmentDetails | None
    seeds: list[int]
    steps: int
    milliseconds: dict[str, float]
    ledger: Traffic
    warnings: list[str]


class ImagesReply(BaseModel):
    """OpenAI's answer, with `gsc` beside it."""

    created: int
    data: list[ImageData]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    usage: Usage
    gsc: Details


class ModelCard(BaseModel):
    """One model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["dekag"] = "dekag"


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]

"""What an edge tells the cloud about its traffic: `POST /v1/ledger`."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

EdgeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
BundleId = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Amount = Annotated[int, Field(ge=0, lt=2**53)]


class TrafficRow(BaseModel):
    """What was sent with one bundle, or without any."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    bundle: BundleId | None = None
    images: Amount = 0
    prompt_bytes: Amount = 0
    """Bytes of the prompts that came in."""
    uses: Amount = 0
    """Channel uses of the deliveries."""
    png_bytes: Amount = 0
    """Bytes that the pictures themselves would have been."""


class TrafficReport(BaseModel):
    """The traffic of an edge since its last report.

    `report` is an id of its own, of the edge's making: a report that arrives twice counts once.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    report: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    edge: EdgeName
    ended: Annotated[int, Field(ge=0, lt=2**40)]
    """Unix time of the end of it, in seconds."""
    active: Annotated[dict[str, BundleId | None], Field(max_length=8)] = {}
    """Id of the active bundle of each kind."""
    rows: Annotated[list[TrafficRow], Field(max_length=1000)]

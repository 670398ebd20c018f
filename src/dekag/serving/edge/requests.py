"""What clients may ask of an edge beside images, and what they get."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from dekag.bundle.manifest import Kind
from dekag.serving.alignment import State
from dekag.serving.images.requests import Bundle, Prompt, Seed, Steps, Strict
from dekag.types import Condition

MOST_USES = 2**16
ChannelSeed = Annotated[int, Field(ge=0, lt=2**53)]
Count = Annotated[int, Field(ge=1, le=MOST_USES)]


class ConditionRequest(Strict):
    """The condition of a transmission; blocks, correlation and pilots are of Rayleigh fading."""

    uses: Count = 256
    snr_db: Annotated[float, Field(ge=-300, le=300, allow_inf_nan=False)] = 10.0
    channel: Literal["awgn", "rayleigh"] = "awgn"
    blocks: Count = 1
    correlation: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    pilots: Annotated[int, Field(ge=0, le=MOST_USES)] = 0

    def condition(self) -> Condition:
        """As the codec takes it. Raises InputError if the blocks do not fit."""
        if self.channel == "awgn":
            return Condition(uses=self.uses, snr_db=self.snr_db)
        return Condition(
            uses=self.uses,
            snr_db=self.snr_db,
            rayleigh=True,
            blocks=self.blocks,
            correlation=self.correlation,
            pilots=self.pilots,
        )


class DeliveryRequest(Strict):
    """An image to draw and to send. channel_seed: of the simulated channel; without one, symbols as sent."""

    prompt: Prompt
    seed: Seed = 0
    steps: Steps | None = None
    bundle: Bundle = "active"
    condition: ConditionRequest = ConditionRequest()
    channel_seed: ChannelSeed | None = None
    format: Literal["frame", "sigmf"] = "frame"


class SeeRequest(Strict):
    """The channel between the edge and a user. prompt: only of a delivery whose prompt is too long for its id."""

    channel_seed: ChannelSeed = 0
    prompt: Prompt | None = None


class AlignmentReply(BaseModel):
    """The state of one kind of update: see `dekag.serving.alignment`."""

    kind: Kind
    state: State
    bundle: str | None
    reason: str


class SeenReply(BaseModel):
    """The received and the drawn picture, PNG in base64, and what the delivery cost."""

    b64_json: str
    drawn_b64_json: str
    psnr_db: float
    erased_uses: int
    condition: dict[str, Any]
    bundles: dict[str, str]
    alignment: list[AlignmentReply]
    ledger: dict[str, Any]
    warnings: list[str]


class BundleReply(BaseModel):
    """One bundle on the shelf. bad: why it failed its test."""

    id: str
    kind: str
    name: str
    bytes: int
    pinned: bool
    active: bool
    loaded: bool
    bad: str | None


class BundleList(BaseModel):
    """All bundles, oldest first, and the state of each kind.

    checked: when the registry was last read, as Unix time. error: why the last pull failed. expires: until when each
    role of what was read is signed, as Unix time.
    """

    bundles: list[BundleReply]
    alignment: list[AlignmentReply]
    channel: str | None
    checked: int | None
    error: str | None
    expires: dict[str, int]


class PullReply(BaseModel):
    """What a pull brought, and what is active now."""

    new: list[str]
    active: dict[str, str | None]
    alignment: list[AlignmentReply]


class DecoderFile(BaseModel):
    """A decoder as ONNX: where it is, how large it is, and what it must hash to."""

    url: str
    bytes: int
    sha256: str


class DecodersReply(BaseModel):
    """The decoders of a user of this edge. transmission: the codec's update."""

    transmission: str | None
    codec: DecoderFile
    image: DecoderFile

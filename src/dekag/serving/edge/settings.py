"""Settings of an edge."""

from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from dekag.choices import require_engine
from dekag.serving.http.settings import ServiceSettings
from dekag.world.shipped import DEFAULT_WORLD


class EdgeSettings(ServiceSettings):
    """Every field is also a variable: DEKAG_EDGE_WORLD, DEKAG_EDGE_TOKENS, ..."""

    model_config = SettingsConfigDict(env_prefix="DEKAG_EDGE_", extra="ignore", frozen=True)

    name: str = Field(default="edge", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """By which the cloud knows this edge."""
    world: str = DEFAULT_WORLD
    """A shipped world or the folder of one."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ..., or auto: a GPU if there is one."""
    folder: Path = Path("dekag-edge")
    """What the edge keeps: bundles, what it knows of the registry, decoders for the page."""
    registry: str | None = None
    """Address or folder to pull updates from; without one the shipped updates are used."""
    root: Path | None = None
    """The registry's root.json, which is needed once."""
    channel: str = Field(default="stable", pattern="^[a-z][a-z0-9-]{0,31}$")
    follow: tuple[str, ...] = ()
    """Names of the bundles that may become active by themselves; all if there are none."""
    allow_unaligned: bool = False
    """Whether an edge with a registry may draw without an update; else it is not ready and answers 503 meanwhile."""
    max_offline_age: float | None = Field(default=None, gt=0)
    """Seconds since the registry was last read after which the edge is not ready; no limit if left out."""
    poll_seconds: float = Field(default=60.0, gt=0)
    keep: int = Field(default=3, ge=1)
    """Bundles of a kind that stay on the disk beside the pinned and active ones."""
    max_loaded: int = Field(default=4, ge=1)
    """Updates of a kind in memory."""
    engine: str = "auto"
    """torch, onnxruntime (exported when it is first needed) or onnxruntime:PROVIDER; auto: ONNX Runtime on a CPU where
    the exports are there already. Of more than four updates in memory all are drawn with by torch."""
    batch: int = Field(default=4, ge=1, le=64)
    """Most images that are drawn at a time."""
    exact: bool = True
    """Whether a picture's bytes are the same however many others are asked for: batches have sizes that agree."""
    queue: int = Field(default=32, ge=10)
    """Images that wait or are drawn; an order has up to ten."""
    threads: int | None = Field(default=None, ge=1)
    """Of the model; the machine's choice if left out."""
    deliveries: int = Field(default=64, ge=1)
    """Drawn latents and deliveries that are kept."""
    cloud_url: str | None = None
    """Where the traffic is reported to."""
    report_seconds: float = Field(default=60.0, gt=0)
    cloud_token: SecretStr | None = None
    log_prompts: bool = False

    @field_validator("engine")
    @classmethod
    def _is_there(cls, engine: str) -> str:
        require_engine(engine)
        return engine

"""Settings of the cloud: from options, else from the environment, as DEKAG_CLOUD_PORT."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from dekag.serving.http.settings import ServiceSettings
from dekag.world.shipped import DEFAULT_WORLD


class CloudSettings(ServiceSettings):
    """Where the cloud keeps what it knows, and how much it does at a time."""

    model_config = SettingsConfigDict(env_prefix="DEKAG_CLOUD_", extra="ignore", frozen=True)

    port: int = Field(default=8001, ge=1, le=65535)
    folder: Path = Path("cloud")
    """Everything of the cloud, unless `database`, `registry` or `keys` says otherwise."""
    database: SecretStr | None = None
    """sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME; FOLDER/cloud.db."""
    busy_seconds: float = Field(default=30.0, gt=0)
    """How long a request waits for another writer of SQLite."""
    registry: str | None = None
    """Folder or address of the registry; FOLDER/registry."""
    keys: Path | None = None
    """Folder of the keys that publish; FOLDER/keys."""
    world: str = DEFAULT_WORLD
    """A shipped world or the folder of one."""
    device: str = "auto"
    """Where jobs and images are computed."""
    job_workers: int = Field(default=1, ge=0, le=64)
    """Jobs at a time; 0 leaves them to other hosts."""
    job_budget: int | None = Field(default=None, ge=0)
    """Most pictures that a job buys, where the world's cloud is an endpoint; as many as it needs."""
    max_queued_jobs: int = Field(default=100, ge=1)
    images: bool = True
    """Whether the cloud draws for callers; without, it holds no model."""
    batch: int = Field(default=4, ge=1, le=64)
    """Images of a batch."""
    queue: int = Field(default=32, ge=1)
    """Images that may wait."""
    refresh_hours: float = Field(default=12.0, gt=0)
    """Between two signatures that keep the registry fresh."""

    @property
    def database_address(self) -> str:
        """The database; holds its password."""
        if self.database is not None:
            return self.database.get_secret_value()
        return f"sqlite:///{(self.folder / 'cloud.db').absolute()}"

    @property
    def registry_address(self) -> str:
        """The registry."""
        return self.registry or str((self.folder / "registry").absolute())

    @property
    def keys_folder(self) -> Path:
        """The keys."""
        return (self.keys or self.folder / "keys").absolute()

    @property
    def jobs_folder(self) -> Path:
        """A folder for each job that is not done yet."""
        return (self.folder / "jobs").absolute()

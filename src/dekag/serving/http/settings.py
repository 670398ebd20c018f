"""Settings that every service has: from its options, else from the environment."""

import os
import warnings
from typing import Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from dekag.errors import InputError
from dekag.wire.http import is_loopback

Settings = TypeVar("Settings", bound="ServiceSettings")


class ServiceSettings(BaseSettings):
    """Where a service listens, who may call it, and what it bears.

    A subclass sets `env_prefix`: with DEKAG_EDGE_, the variable of `port` is DEKAG_EDGE_PORT. Lists are JSON.
    """

    model_config = SettingsConfigDict(env_prefix="DEKAG_", extra="ignore", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    tokens: list[SecretStr] = []
    """Bearer tokens, any of which is right; to rotate, list the old and the new one. None and no file: open."""
    tokens_file: str | None = None
    """File with a token a line, read again when it changes."""
    max_body_bytes: int = Field(default=2**20, ge=1)
    header_seconds: float = Field(default=10.0, gt=0)
    """For the head of a request, and for a connection to be idle."""
    body_seconds: float = Field(default=10.0, gt=0)
    """For the whole body."""
    write_seconds: float = Field(default=30.0, gt=0)
    """For a client to take anything of what is sent to it; one that takes nothing for so long is gone."""
    answer_seconds: float = Field(default=60.0, gt=0)
    """For what is on its way to a client at one time, at most some 200 kB, to arrive: one that reads slower is gone."""
    max_in_flight: int = Field(default=256, ge=1)
    """Requests at a time that are worked on, those of probes apart; more are told to come back."""
    max_connections: int = Field(default=4096, ge=1)
    max_connections_by_peer: int = Field(default=1024, ge=1)
    """Of one address, in IPv6 of one /64; behind a reverse proxy, which is one peer, as many as `max_connections`."""
    drain_seconds: float = Field(default=3.0, ge=0)
    """From SIGTERM, when /readyz begins to say no, until the port closes: so long a balancer may take to see it."""
    stop_with_input: bool = False
    """Stop when standard input, a pipe, ends: with the process that holds its other end."""
    open_metrics: bool = True
    """Whether a guarded service shows /metrics to this machine without a token; not if a proxy shows that it is one."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    allowed_origins: list[str] = []
    """Origins of other hosts' pages that may call, as https://page.example. The own page needs none, unless a proxy
    in front changes `Host`: then its public origin."""

    @property
    def guarded(self) -> bool:
        """Whether callers need a token."""
        return bool(self.tokens) or self.tokens_file is not None

    def require_safe(self) -> None:
        """Raise InputError for an address that others reach, without tokens."""
        if not self.guarded and not is_loopback(self.host):
            prefix = self.model_config.get("env_prefix", "")
            raise InputError(
                f"{self.host} can be reached from other machines: set {prefix}TOKENS or {prefix}TOKENS_FILE,"
                " or listen on 127.0.0.1"
            )


def load_settings(kind: type[Settings], **given: Any) -> Settings:
    """Settings from what is given and is not None, else from the environment.

    Raises InputError, one line without the values, for the first that is wrong.
    """
    found = {name: value for name, value in given.items() if value is not None}
    prefix = kind.model_config.get("env_prefix", "")
    old = os.environ.get(f"{prefix}PRESET")
    if old is not None and "world" not in found and f"{prefix}WORLD" not in os.environ:
        warnings.warn(
            f"{prefix}PRESET is now called {prefix}WORLD; it goes with the next release", stacklevel=2
        )
        found["world"] = old
    try:
        return kind(**found)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        variable = f"{kind.model_config.get('env_prefix', '')}{name}".upper()
        raise InputError(
            f"{name} ({variable}) is wrong: {first['msg'].removeprefix('Value error, ')}"
        ) from None
    except ValueError as error:  # a list that is no JSON
        raise InputError(f'{error}; lists are JSON, as ["one", "two"]') from None

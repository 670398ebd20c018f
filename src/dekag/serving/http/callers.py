"""Who calls: by token where tokens are needed, else by address."""

import hashlib

from fastapi import Request

__all__ = ["caller_of"]


def caller_of(request: Request) -> str:
    """A name for whoever sent a request, to share out what there is among callers; it holds no secret.

    An open service heeds no token: anyone could make up as many as he likes.
    """
    token = request.headers.get("authorization", "").partition(" ")[2].strip()
    if request.app.state.guarded and token:
        return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return "" if request.client is None else request.client.host

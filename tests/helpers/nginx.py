"""A real nginx before services, for the time of a test."""

import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from running_service import free_port
from waiting import wait_for

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
CONFIGURATION = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream services {{ {servers} }}
  server {{ listen 127.0.0.1:{port}; location {prefix} {{ proxy_pass http://services/; {extra} }} }}
}}
"""


@contextmanager
def reverse_proxy(
    urls: Sequence[str], folder: Path, *, prefix: str = "/", extra: str = "proxy_set_header Host $http_host;"
) -> Iterator[str]:
    """Requests to the address that is given go to the services in turn, without the prefix."""
    if NGINX is None:
        pytest.skip("there is no nginx here: apt-get install nginx")
    folder.mkdir()
    port = free_port()
    servers = " ".join(f"server {urlsplit(url).netloc};" for url in urls)
    path = folder / "nginx.conf"
    path.write_text(
        CONFIGURATION.format(folder=folder, servers=servers, port=port, prefix=prefix, extra=extra)
    )
    with subprocess.Popen([NGINX, "-c", str(path), "-p", str(folder)], stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: listens(port), seconds=10)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def listens(port: int) -> bool:
    """Whether somebody listens there."""

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

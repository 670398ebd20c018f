"""Where updates are published and trusted: bundles as TUF targets, the edge that pulls them, and its shelf."""

from importlib.util import find_spec

from dekag.errors import InputError

if find_spec("tuf") is None:
    raise InputError('a registry needs further packages: pip install "dekag[serve]"')

from dekag.registry.canary import Canary
from dekag.registry.client import RegistryClient
from dekag.registry.expiry import Expiry, earliest
from dekag.registry.faults import RegistryError
from dekag.registry.keys import Lifetimes
from dekag.registry.listing import Listing
from dekag.registry.looked import Looked
from dekag.registry.repository import Repository
from dekag.registry.shelf import Shelf, Shelved

__all__ = [
    "Canary",
    "Expiry",
    "Lifetimes",
    "Listing",
    "Looked",
    "RegistryClient",
    "RegistryError",
    "Repository",
    "Shelf",
    "Shelved",
    "earliest",
]

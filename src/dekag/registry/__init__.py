"""Where updates are published and trusted: bundles as TUF targets, the edge that pulls them, and its shelf."""

from dekag.registry.canary import Canary
from dekag.registry.faults import RegistryError
from dekag.registry.listing import Listing
from dekag.registry.shelf import Shelf, Shelved

__all__ = ["Canary", "Listing", "RegistryError", "Shelf", "Shelved"]

"""The file that carries an update: written, read with suspicion, made smaller, exported."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.bundle.bundle import Bundle, load_bundle, save_bundle
    from dekag.bundle.canonical import digest_folder, digest_json
    from dekag.bundle.card import Card
    from dekag.bundle.digest import digest_tensors
    from dekag.bundle.export import export_bundle, usual_layout
    from dekag.bundle.layouts import LAYOUTS
    from dekag.bundle.manifest import Manifest, Metaword, Metrics
    from dekag.bundle.rank import reduce_rank
    from dekag.bundle.sound import pack

__all__ = [
    "LAYOUTS",
    "Bundle",
    "Card",
    "Manifest",
    "Metaword",
    "Metrics",
    "digest_folder",
    "digest_json",
    "digest_tensors",
    "export_bundle",
    "load_bundle",
    "pack",
    "reduce_rank",
    "save_bundle",
    "usual_layout",
]

__getattr__, __dir__ = lazy(__name__)

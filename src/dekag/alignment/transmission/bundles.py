"""Updates of a codec as bundles: what CALA or a rival learned, to a folder and back onto a codec."""

from dataclasses import fields
from pathlib import Path

import torch

from dekag.alignment.config import CalaConfig
from dekag.alignment.transmission.adapted import AdaptedCodec
from dekag.alignment.transmission.attention import SnrAttentionCodec
from dekag.alignment.transmission.cala import CalaCodec
from dekag.alignment.transmission.update import load_update, update_tensors
from dekag.bundle.bundle import Bundle, Contents, load_bundle, save_bundle
from dekag.bundle.canonical import digest_json
from dekag.bundle.container import CALA
from dekag.bundle.digest import digest_tensors
from dekag.bundle.manifest import Metrics, Quantisation, Setting
from dekag.codec import AdaptableCodec, TrainedRange, require_adaptable
from dekag.config import described_fields
from dekag.errors import StepError
from dekag.types import InputError


def codec_digest(codec: AdaptableCodec) -> str:
    """Digest of the codec's weights as they are saved, in fp16."""
    return digest_tensors(codec.state_dict())


def save_transmission(
    folder: Path,
    adapted: AdaptedCodec,
    codec: AdaptableCodec,
    *,
    settings: dict[str, Setting],
    metrics: Metrics | None = None,
    quantisation: Quantisation = "int8",
) -> Bundle:
    """Write an update of a codec; `settings` must not use the names of CalaConfig's fields or `attention`.

    The conditions that it was trained for go into `settings` as `TrainedRange.to_settings`; they travel with it.
    Raises InputError if `settings` hold a range that `trained_range` would refuse.
    """
    TrainedRange.from_settings(settings)
    contents = Contents(
        kind="transmission",
        base_digest=codec_digest(codec),
        tensors={CALA: update_tensors(adapted)},
        metrics=metrics,
        settings={**settings, **adapted.size()},
        training_digest=digest_json(settings),
        quantisation=quantisation,
    )
    return save_bundle(folder, contents)


def apply_transmission(codec: AdaptableCodec, path: Path | str) -> tuple[AdaptedCodec, Bundle]:
    """Load a bundle with every check onto a copy of the codec.

    `trained_range` of the bundle says for which conditions it was trained.
    Raises InputError if the bundle is damaged, of another kind, or for another codec, or if the codec is no
    AdaptableCodec.
    """
    bundle = load_bundle(path)
    bundle.require_kind("transmission")
    trained_range(bundle)
    bundle.require_base(codec_digest(require_adaptable(codec)))
    hidden = bundle.manifest.settings.get("attention")
    with torch.random.fork_rng():
        adapted: AdaptedCodec = (
            SnrAttentionCodec(codec, hidden, content=bool(bundle.manifest.settings.get("content", 1)))
            if isinstance(hidden, int)
            else CalaCodec(codec, _cala_config(bundle))
        )
    load_update(adapted, bundle.cala())
    return adapted.eval(), bundle


def _cala_config(bundle: Bundle) -> CalaConfig:
    """The size that the bundle's settings tell."""
    settings, names = bundle.manifest.settings, [field.name for field in fields(CalaConfig)]
    missing = [name for name in names if name not in settings]
    if missing:
        raise StepError(f"bundle {bundle.id[:12]} does not say its {missing[0]}", "train it again")
    switches = {field.name for field in described_fields(CalaConfig) if field.type is bool}
    given = {name: bool(settings[name]) if name in switches else settings[name] for name in names}
    try:
        return CalaConfig(**given)  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(f"bundle {bundle.id[:12]} has a setting of another kind: {error}") from error


def trained_range(bundle: Bundle) -> TrainedRange | None:
    """The conditions that a transmission bundle was trained for, if it says so.

    Raises InputError if it says so in part.
    """
    return TrainedRange.from_settings(bundle.manifest.settings)

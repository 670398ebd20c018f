"""Named weights: what ships in the package. Names are paths below `weights/`, as `emoji/edge`."""

import json
from pathlib import Path

from dekag.types import InputError

WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = {
    "emoji/cloud": "pipeline",
    "emoji/edge": "pipeline",
    "emoji/codec": "codec",
    "emoji/mini-clip": "judge",
    "emoji/mini-dino": "judge",
    "emoji/makd": "bundle",
    "emoji/cala": "bundle",
    **{f"emoji/{domain}": "bundle" for domain in ("food", "animals", "faces")},
    **{
        f"emoji/rivals/{method}-{seed}": "bundle"
        for method in ("makd", "textual_inversion", "lora", "dreambooth", "lokr")
        for seed in (0, 1, 2)
    },
}
"""Kind of each shipped model or bundle by its name."""


def shipped(name: str) -> Path:
    """Directory of a shipped model; InputError lists the known names."""
    if name not in SHIPPED:
        raise InputError(f"unknown model {name!r}; shipped are {', '.join(SHIPPED)}")
    return WEIGHTS / name


def card(name: str) -> Path:
    """The model card of a shipped model; bundles hold nothing but their own files, so cards lie beside them.

    MAKD's rivals and further training seeds have one card together.
    """
    rival = name.split("/")[1] == "rivals"
    return WEIGHTS / (f"{name.split('/')[0]}/rivals.md" if rival else f"{name}.md")


def locate(source: str, kind: str) -> str | Path:
    """A shipped model's directory, an existing directory, or the source itself as a hub id.

    Raises InputError if the shipped model is of another kind, or the source can be none of the three.
    """
    if source in SHIPPED:
        if SHIPPED[source] != kind:
            raise InputError(f"{source} is a {SHIPPED[source]}, and a {kind} is needed here")
        return WEIGHTS / source
    if Path(source).exists():
        return Path(source)
    known = ", ".join(name for name, its_kind in SHIPPED.items() if its_kind == kind)
    if kind != "pipeline" or source.count("/") != 1 or source.startswith((".", "/", "emoji/")):
        raise InputError(f"unknown {kind} {source!r}; give a directory or one of: {known}")
    return source


def weight_bytes(source: str) -> int:
    """Bytes of a shipped or local pipeline's denoiser and text encoders, as they are stored: what an update adds to."""
    folder = Path(locate(source, "pipeline"))
    parts = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
    return sum(file.stat().st_size for part in parts for file in folder.glob(f"{part}/*.safetensors"))


def prompts(world: str, split: str) -> list[str]:
    """Prompts of a shipped world: `distill`, `compositions` or `concepts` (the latter two are held out)."""
    splits: dict[str, list[str]] = json.loads((WEIGHTS / world / "prompts.json").read_text())
    if split not in splits:
        raise InputError(f"unknown split {split!r}; {world} has {', '.join(splits)}")
    return splits[split]

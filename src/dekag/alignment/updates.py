"""Updates as bundles: what MAKD and CALA learned, to a directory and back into a generator or a codec."""

import json
from pathlib import Path
from typing import Any

import torch

from dekag.alignment import makd
from dekag.alignment.bundle import Bundle, Metaword, Metrics, Setting, load_bundle, save_bundle
from dekag.alignment.cala import CalaCodec, CalaConfig
from dekag.alignment.container import CALA, EMBEDDING, LORA
from dekag.alignment.digest import digest_json, digest_tensors
from dekag.alignment.makd import GenerationUpdate
from dekag.codec import JsccCodec
from dekag.generation import diffusers as generation
from dekag.generation.diffusers import DiffusersGenerator
from dekag.types import InputError

LICENCE = "Apache-2.0"


def pipeline_digest(pipeline: Any) -> str:
    """Digest of the weights that an update changes the effect of: noise predictor and text encoder."""
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    return digest_tensors({f"{p}.{name}": t for p, m in parts.items() for name, t in m.state_dict().items()})


def tokenizer_digest(pipeline: Any) -> str:
    """Digest of the tokenizer's vocabulary."""
    return digest_json(pipeline.tokenizer.get_vocab())


def codec_digest(codec: JsccCodec) -> str:
    """Digest of the codec's weights."""
    return digest_tensors(codec.state_dict())


def save_generation(
    folder: Path,
    generator: DiffusersGenerator,
    update: GenerationUpdate,
    *,
    settings: dict[str, Setting],
    metrics: Metrics | None = None,
) -> Bundle:
    """Write an update of a generator, in fp16; the generator must not carry an update."""
    lora = {f"unet.{name}": t.half() for name, t in update.lora.items()}
    return save_bundle(
        folder,
        kind="generation",
        base_digest=pipeline_digest(generator.pipeline),
        tokenizer_digest=tokenizer_digest(generator.pipeline),
        tensors={LORA: lora, EMBEDDING: {update.metaword.token: update.vectors.half()}},
        metaword=Metaword(
            token=update.metaword.token, vectors=len(update.vectors), position=update.metaword.position
        ),
        licence=LICENCE,
        metrics=metrics,
        settings=settings,
        training_digest=digest_json(settings),
    )


def apply_generation(generator: DiffusersGenerator, path: Path | str) -> tuple[DiffusersGenerator, Bundle]:
    """Load a bundle with every check and apply it; `makd.remove_update` takes it out again.

    Raises InputError if the bundle is damaged, of another kind, or for another model or tokenizer.
    """
    bundle = _of_kind(load_bundle(path), "generation", path)
    bundle.require_base(pipeline_digest(generator.pipeline), tokenizer_digest(generator.pipeline))
    word = bundle.manifest.metaword
    if word is None:
        raise InputError(f"bundle {path} has no metaword; a generation bundle needs one")
    update = GenerationUpdate(
        metaword=generation.Metaword(token=word.token, position=word.position),
        vectors=bundle.tensors[EMBEDDING][word.token].float(),
        lora={name.removeprefix("unet."): t.float() for name, t in bundle.tensors[LORA].items()},
    )
    return makd.apply_update(generator, update), bundle


def save_transmission(
    folder: Path,
    adapted: CalaCodec,
    codec: JsccCodec,
    *,
    settings: dict[str, Setting],
    metrics: Metrics | None = None,
) -> Bundle:
    """Write an update of a codec, in fp16."""
    return save_bundle(
        folder,
        kind="transmission",
        base_digest=codec_digest(codec),
        tensors={CALA: {name: t.half() for name, t in adapted.update_tensors().items()}},
        licence=LICENCE,
        metrics=metrics,
        settings={**settings, "rank": adapted.cala.rank, "groups": adapted.cala.groups},
        training_digest=digest_json(settings),
    )


def apply_transmission(codec: JsccCodec, path: Path | str) -> tuple[CalaCodec, Bundle]:
    """Load a bundle with every check onto a copy of the codec.

    Raises InputError if the bundle is damaged, of another kind, or for another codec.
    """
    bundle = _of_kind(load_bundle(path), "transmission", path)
    bundle.require_base(codec_digest(codec))
    sizes = [bundle.manifest.settings.get(name) for name in ("rank", "groups")]
    if not all(isinstance(size, int) for size in sizes):
        raise InputError(
            f"bundle {path} does not say its rank and groups; make it with dekag align transmission"
        )
    rank, groups = (int(str(size)) for size in sizes)
    with torch.random.fork_rng():
        adapted = CalaCodec(codec, CalaConfig(rank=rank, groups=groups))
    adapted.load_update({name: t.float() for name, t in bundle.tensors[CALA].items()})
    return adapted.eval(), bundle


def describe(path: Path | str) -> dict[str, object]:
    """The manifest of a sound bundle as JSON values, with its size in bytes."""
    bundle = load_bundle(path)
    manifest: dict[str, object] = json.loads(bundle.manifest.to_json())
    return {**manifest, "size_bytes": bundle.size_bytes}


def _of_kind(bundle: Bundle, kind: str, path: Path | str) -> Bundle:
    if bundle.manifest.kind != kind:
        raise InputError(f"bundle {path} is for {bundle.manifest.kind}, and one for {kind} is needed here")
    return bundle

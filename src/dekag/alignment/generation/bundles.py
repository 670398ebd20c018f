"""Updates of a generator as bundles: what a distillation learned, to a folder and back into a generator."""

from collections.abc import Mapping
from pathlib import Path

import torch

from dekag.alignment.generation.adapters import plain_state
from dekag.alignment.generation.update import GenerationUpdate, apply_update, merge_update, remove_update
from dekag.bundle.bundle import Bundle, Contents, load_bundle, save_bundle
from dekag.bundle.canonical import digest_json
from dekag.bundle.container import EMBEDDING, FEW_STEP, LORA, NOISE_MAP
from dekag.bundle.digest import digest_tensors
from dekag.bundle.manifest import CLIPS, LICENCE, Metaword, Metrics, Quantisation, Setting
from dekag.generation import metaword as generation
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.types import InputError


def pipeline_digest(generator: DiffusersGenerator) -> str:
    """Digest of the weights that an update changes the effect of, denoiser and text encoders, without adapters."""
    family, pipeline = generator.family, generator.pipeline
    parts = (family.denoiser, *family.encoders)
    return digest_tensors(
        {f"{part}.{k}": t for part in parts for k, t in plain_state(getattr(pipeline, part)).items()}
    )


def tokenizer_digest(generator: DiffusersGenerator) -> str:
    """Digest of the vocabulary that the metaword joins; of all of them if there are several."""
    pipeline, names = generator.pipeline, generator.family.encoders.values()
    vocabularies = [getattr(pipeline, name).get_vocab() for name in names]
    return digest_json(vocabularies[0] if len(vocabularies) == 1 else vocabularies)


def save_generation(
    folder: Path,
    generator: DiffusersGenerator,
    update: GenerationUpdate,
    *,
    settings: dict[str, Setting],
    metrics: Metrics | None = None,
    quantisation: Quantisation = "fp16",
    licence: str = LICENCE,
) -> Bundle:
    """Write an update of a generator.

    Raises InputError if the update is a whole denoiser: that is a model to publish, not an update to send.
    """
    if update.weights:
        raise InputError("full fine-tuning leaves a whole denoiser; a bundle carries low-rank updates only")
    word = update.metaword
    contents = Contents(
        kind="generation",
        base_digest=pipeline_digest(generator),
        tokenizer_digest=tokenizer_digest(generator),
        tensors=_generation_files(generator.family.denoiser, update),
        metaword=None
        if word is None
        else Metaword(token=word.token, vectors=word.count, position=word.position),
        metrics=metrics,
        licence=licence,
        settings={
            **settings,
            **_sampling_settings("sampling", update.sampling),
            **_sampling_settings("few_step", update.few_step_sampling),
        },
        training_digest=digest_json(settings),
        quantisation=quantisation,
    )
    return save_bundle(folder, contents)


def _generation_files(denoiser: str, update: GenerationUpdate) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of an update by the bundle's files; what it has nothing for is left out."""
    word = update.metaword
    files = {
        LORA: {
            f"{part}.{name}": t
            for part, held in {denoiser: update.adapter, **update.encoders}.items()
            for name, t in held.items()
        },
        FEW_STEP: {f"{denoiser}.{name}": t for name, t in update.few_step.items()},
        EMBEDDING: {} if word is None else _embedding(word),
        NOISE_MAP: {} if update.noise_map is None else {"noise_map": update.noise_map},
    }
    return {name: tensors for name, tensors in files.items() if tensors}


def read_generation(generator: DiffusersGenerator, bundle: Bundle) -> GenerationUpdate:
    """The update that a bundle carries for this generator; nothing of the generator changes.

    Raises InputError if the bundle is of another kind, or for another model or tokenizer.
    """
    bundle.require_kind("generation")
    bundle.require_base(pipeline_digest(generator), tokenizer_digest(generator))
    prefix = f"{generator.family.denoiser}."
    manifest, word = bundle.manifest, None
    if manifest.metaword is not None:
        vectors = list(bundle.embedding().values())
        word = generation.Metaword(
            token=manifest.metaword.token,
            position=manifest.metaword.position,
            vectors=dict(zip(generator.family.encoders, vectors, strict=True)),
        )
    lora, encoders = bundle.lora(), dict[str, dict[str, torch.Tensor]]()
    for part in generator.family.encoders:
        if names := [name for name in lora if name.startswith(f"{part}.")]:
            encoders[part] = {name.removeprefix(f"{part}."): lora.pop(name) for name in names}
    return GenerationUpdate(
        metaword=word,
        adapter={name.removeprefix(prefix): t for name, t in lora.items()},
        encoders=encoders,
        few_step={name.removeprefix(prefix): t for name, t in bundle.few_step().items()},
        noise_map=bundle.noise_map(),
        sampling=_sampling(manifest.settings, "sampling"),
        few_step_sampling=_sampling(manifest.settings, "few_step"),
    )


def apply_generation(
    generator: DiffusersGenerator,
    path: Path | str,
    *,
    few_steps: bool = False,
    shared_noise: bool = False,
    merge: bool = False,
) -> tuple[DiffusersGenerator, Bundle]:
    """Load a bundle with every check and apply it; `remove_update` takes it out again.

    Each bundle is loaded under its own id, so that several can be on one pipeline at a time. `merge` gives the
    generator weights of its own instead, which are gone with it: faster, and the given one is left as it is.
    Raises InputError if the bundle is damaged, of another kind, or for another model or tokenizer.
    """
    bundle = load_bundle(path)
    update = read_generation(generator, bundle)
    name = bundle.id[:12]
    aligned = apply_update(generator, update, name=name, few_steps=few_steps, shared_noise=shared_noise)
    if merge:
        merged = merge_update(aligned)
        remove_update(aligned)
        return merged, bundle
    return aligned, bundle


def _embedding(word: generation.Metaword) -> dict[str, torch.Tensor]:
    """The vectors by the names that loaders of embeddings know: the token, or those of the text encoders."""
    vectors = list(word.vectors.values())
    names = [word.token] if len(vectors) == 1 else CLIPS[: len(vectors)]
    return dict(zip(names, vectors, strict=True))


def _sampling_settings(prefix: str, sampling: Sampling | None) -> dict[str, Setting]:
    if sampling is None:
        return {}
    values = {f"{prefix}_steps": sampling.steps, f"{prefix}_guidance": sampling.guidance}
    return {name: value for name, value in values.items() if value is not None}


def _sampling(settings: Mapping[str, Setting], prefix: str) -> Sampling | None:
    steps, guidance = settings.get(f"{prefix}_steps"), settings.get(f"{prefix}_guidance")
    if steps is None and guidance is None:
        return None
    if not isinstance(steps, int | None) or isinstance(guidance, str):
        raise InputError(f"{prefix}_steps must be a whole number and {prefix}_guidance a number")
    return Sampling(steps=steps, guidance=guidance)

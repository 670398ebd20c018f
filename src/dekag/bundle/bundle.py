"""The bundle: one low-rank update, as a folder or as a tar of it, that a stranger's tools can load.

bundle.json                        the manifest, canonical JSON; its id is the digest of all the rest of it

of kind "generation", any of
pytorch_lora_weights.safetensors   LoRA with PEFT's names, or lora.quantised.safetensors
few_step_lora_weights.safetensors  one more, for fewer steps, or few_step_lora.quantised.safetensors
learned_embeds.safetensors         {metaword: [vectors, width]}, or clip_l and clip_g, or these and t5xxl
noise_map.safetensors              {"noise_map": [channels, channels]}

of kind "transmission"
cala.safetensors                   or cala.quantised.safetensors

The quantised files are in the form of `quantise`. They are stored as they are: the id is a digest of files, and
what a compressor writes depends on its version. `pack` compresses.

There is no code, no pickle and no path in a bundle. What is loaded is read into memory once; everything is
checked there, and the tensors are made of the bytes that were checked.
"""

import gzip
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dekag.bundle.container import (
    CALA,
    EMBEDDING,
    FEW_STEP,
    LORA,
    MANIFEST,
    MAX_BYTES,
    NOISE_MAP,
    QUANTISED,
    is_bundle,
    plain_text,
    read_files,
)
from dekag.bundle.digest import canonical_safetensors
from dekag.bundle.manifest import (
    BITS,
    CLIPS,
    FORMS,
    LICENCE,
    Kind,
    Manifest,
    Metaword,
    Metrics,
    Quantisation,
    Setting,
    form_of,
    seal,
    short,
)
from dekag.bundle.quantise import dequantise, quantise, to_fp16
from dekag.bundle.sound import size_bytes, sound_files, spec_of
from dekag.types import InputError
from dekag.wire.files import write_folder


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A bundle that has passed every check.

    tensors: by file and name, on the CPU, in the file's dtype. metadata: by file, as safetensors keeps it.
    """

    manifest: Manifest
    tensors: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, Mapping[str, str]]

    @property
    def id(self) -> str:
        """Digest of the contents."""
        return self.manifest.id

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor files and of the manifest."""
        return size_bytes(self.manifest)

    def drawn_bytes(self, *, few_steps: bool = False) -> int:
        """Compressed bytes of what draws, low-rank matrices and metaword, without the manifest or what is not used."""
        names = {EMBEDDING, LORA, QUANTISED[LORA]} | ({FEW_STEP, QUANTISED[FEW_STEP]} if few_steps else set())
        files = [canonical_safetensors(self.tensors[n], {}) for n in sorted(names & self.tensors.keys())]
        return sum(len(gzip.compress(raw, mtime=0)) for raw in files)

    def lora(self) -> dict[str, Tensor]:
        """The low-rank update, float32, with PEFT's names; empty if there is none."""
        return self._decoded(LORA)

    def few_step(self) -> dict[str, Tensor]:
        """The update for drawing in fewer steps, as `lora`."""
        return self._decoded(FEW_STEP)

    def cala(self) -> dict[str, Tensor]:
        """The update of a codec, float32; empty if there is none."""
        return self._decoded(CALA)

    def embedding(self) -> dict[str, Tensor]:
        """The metaword's vectors, float32 [vectors, width], by its token or by CLIPS in their order; or empty."""
        decoded = self._decoded(EMBEDDING)
        return decoded if len(decoded) < 2 else {name: decoded[name] for name in CLIPS if name in decoded}

    def noise_map(self) -> Tensor | None:
        """The map of the initial noise, float32 [channels, channels], if there is one."""
        return self._decoded(NOISE_MAP).get("noise_map")

    def _decoded(self, file: str) -> dict[str, Tensor]:
        coded = QUANTISED.get(file)
        if coded is not None and coded in self.tensors:
            return dequantise(self.tensors[coded])
        return {name: tensor.float() for name, tensor in self.tensors.get(file, {}).items()}

    def require_kind(self, kind: Kind) -> None:
        """Raise InputError unless the bundle is of this kind."""
        if self.manifest.kind != kind:
            raise InputError(
                f"bundle {short(self.id)} is for {self.manifest.kind}, and one for {kind} is needed here"
            )

    def require_base(self, digest: str, tokenizer_digest: str | None = None) -> None:
        """Raise InputError unless the bundle was made for this base model and this tokenizer.

        A generation bundle asks for its tokenizer's digest, a transmission bundle knows none.
        """
        made_for = self.manifest
        for noun, asked, given in (
            ("base model", made_for.base_digest, digest),
            ("tokenizer", made_for.tokenizer_digest, tokenizer_digest),
        ):
            if asked != given:
                raise InputError(
                    f"bundle {short(self.id)} was made for {noun} {short(asked)}, but here it is"
                    f" {short(given)}; use that {noun}, or a bundle made for this one"
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """What is to be written as a bundle.

    tensors, metadata: by file name. The other fields are those of `Manifest`.
    quantisation: None for tensors that are stored as they are, which must be a form that a bundle may have. With it
        they are floating-point tensors under the plain file names: fp16 and fp32 store all of them so, int8 and int4
        store the low-rank files so and the others in fp16.
    """

    kind: Kind
    base_digest: str
    tensors: Mapping[str, Mapping[str, Tensor]]
    licence: str = LICENCE
    metadata: Mapping[str, Mapping[str, str]] | None = None
    metaword: Metaword | None = None
    tokenizer_digest: str | None = None
    metrics: Metrics | None = None
    settings: Mapping[str, Setting] | None = None
    training_digest: str | None = None
    quantisation: Quantisation | None = None


def save_bundle(folder: Path | str, contents: Contents) -> Bundle:
    """Write a bundle and return it; the same contents give the same bytes. A bundle in its place is replaced.

    The folder appears whole or not at all. Raises InputError, before anything is written, if `load_bundle` would
    refuse the contents or the folder holds something else; OSError if the disk refuses.
    """
    where = f"bundle {folder}"
    _check_choice(contents.tensors.keys(), contents.quantisation)
    blobs = _blobs(contents)
    specs = {name: spec_of(where, name, raw) for name, raw in blobs.items()}
    draft = Manifest(
        kind=contents.kind,
        base_digest=contents.base_digest,
        tokenizer_digest=contents.tokenizer_digest,
        metaword=contents.metaword,
        licence=contents.licence,
        metrics=contents.metrics or Metrics(),
        training_digest=contents.training_digest,
        quantisation=form_of(specs),
        settings=dict(contents.settings or {}),
        files=specs,
    )
    files = {MANIFEST: seal(where, draft).to_json(), **blobs}
    bundle = _open(where, files)
    write_folder(Path(folder), files, is_own=is_bundle, noun="a bundle")
    return bundle


def load_bundle(path: Path | str, *, max_bytes: int = MAX_BYTES) -> Bundle:
    """Read a bundle from a folder, a .tar or a .tar.gz, and check all of it.

    Raises InputError if it is larger than `max_bytes`, holds anything but its own files, is damaged, is of
    another schema, or does not hold what its manifest says; OSError if it cannot be read.
    """
    where = f"bundle {path}"
    return _open(where, read_files(where, Path(path), max_bytes))


def _check_choice(files: Set[str], quantisation: Quantisation | None) -> None:
    """Raise InputError unless these files can be encoded so."""
    if quantisation is None:
        return
    if quantisation not in FORMS:
        raise InputError(f"quantisation is one of {', '.join(FORMS)}, got {plain_text(quantisation)}")
    if unfit := sorted(files & {*QUANTISED.values()}):
        raise InputError(
            f"{unfit[0]} cannot be encoded in {quantisation}; int8 and int4 are for floating-point tensors of"
            f" {' and '.join(QUANTISED)}"
        )


def _stored_name(file: str, quantisation: Quantisation | None) -> str:
    return QUANTISED.get(file, file) if quantisation in BITS else file


def _encode(
    file: str, tensors: Mapping[str, Tensor], quantisation: Quantisation | None
) -> Mapping[str, Tensor]:
    """The tensors of one file as they are stored."""
    if quantisation is None:
        return tensors
    if file in QUANTISED and quantisation in BITS:
        return quantise(tensors, bits=BITS[quantisation])
    return {name: _cast(name, tensor, quantisation) for name, tensor in tensors.items()}


def _cast(name: str, tensor: Tensor, quantisation: Quantisation) -> Tensor:
    if not tensor.is_floating_point():
        return tensor  # refused by name when the file is checked
    return tensor.float() if quantisation == "fp32" else to_fp16(name, tensor)


def _blobs(contents: Contents) -> dict[str, bytes]:
    """The tensor files as they are stored, by name."""
    form, metadata = contents.quantisation, contents.metadata or {}
    tensors = {_stored_name(f, form): _encode(f, part, form) for f, part in contents.tensors.items()}
    texts = {_stored_name(f, form): text for f, text in metadata.items()}
    names = sorted({*tensors, *texts})
    return {name: canonical_safetensors(tensors.get(name, {}), texts.get(name, {})) for name in names}


def _open(where: str, files: Mapping[str, bytes]) -> Bundle:
    """Make a bundle of the bytes of its files, by name, or raise InputError."""
    sound = sound_files(where, files)
    tensors = {
        file: {name: torch.from_numpy(array) for name, array in arrays.items()}
        for file, arrays in sound.arrays.items()
    }
    return Bundle(manifest=sound.manifest, tensors=tensors, metadata=sound.metadata)

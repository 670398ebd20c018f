"""A stranger's model, a folder, a hub id or a single file, as a pipeline of diffusers, or why not in one line."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
from huggingface_hub import hf_hub_download

from dekag.errors import FieldError, InputError
from dekag.generation.families import known_family

INDEX = "model_index.json"
SINGLE_FILE = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Files of weights that may hold code as well, and are not read."""
_VARIANT = re.compile(r"\.(?P<variant>[A-Za-z0-9_]+?)(-\d{5}-of-\d{5})?\.safetensors$")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


@dataclass(frozen=True, kw_only=True)
class PipelineSource:
    """Where a pipeline comes from.

    source: a folder or hub id in the layout of diffusers, or a checkpoint in a single .safetensors file. revision:
    pins a hub id to a commit. variant: of the weights, as fp16 in `model.fp16.safetensors`. pipeline_config: of a
    single file, a folder or hub id whose configurations and tokenizers are its own; None is what diffusers takes.
    """

    source: str | Path
    revision: str | None = None
    variant: str | None = None
    pipeline_config: str | Path | None = None


def load_pipeline(origin: PipelineSource, *, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline. Raises InputError in one line, which names the source, if it cannot be had or lacks a part."""
    single = Path(origin.source).is_file()
    _check(origin, single=single)
    try:
        pipeline = _from_file(origin, dtype) if single else _from_folder(origin, dtype)
    except InputError:
        raise
    except Exception as error:  # the files are a stranger's, and what a library makes of them is anything
        raise _refusal(origin, error, single=single) from error
    _check_parts(origin.source, pipeline)
    return pipeline


def _check(origin: PipelineSource, *, single: bool) -> None:
    """Raise InputError if what is asked for cannot be meant, before anything is read."""
    source, suffix = origin.source, Path(origin.source).suffix
    if single and suffix in PICKLES:
        raise InputError(f"{source} may hold code, so it is not read; save its weights as {SINGLE_FILE}")
    if single and suffix != SINGLE_FILE:
        raise InputError(
            f"{source} is no model; give a folder of diffusers, a hub id or a {SINGLE_FILE} file"
        )
    if single and origin.variant is not None:
        raise FieldError(f"{source} is a single file, which has no variant", "variant")
    if not single and origin.pipeline_config is not None:
        raise FieldError(
            f"{source} is no single file, and has its configurations itself; leave out pipeline_config",
            "pipeline_config",
        )


def _from_folder(origin: PipelineSource, dtype: torch.dtype) -> Any:
    left_out = _left_out(Path(origin.source))
    return DiffusionPipeline.from_pretrained(
        origin.source, revision=origin.revision, variant=origin.variant, dtype=dtype, **left_out
    )


def _left_out(folder: Path) -> dict[str, None]:
    """Parts that a folder says it has not, as Stable Diffusion 3 its T5 encoder; diffusers wants to be told.

    Raises InputError for a part that it says it has and has not: transformers would make a tokenizer without words.
    """
    if not folder.is_dir():
        return {}
    parts = {
        name: value for name, value in _index(folder).items() if isinstance(value, list) and len(value) == 2
    }
    if missing := [name for name, value in parts.items() if value[0] and not (folder / name).is_dir()]:
        raise InputError(f"{folder} has no folder {missing[0]}, which its {INDEX} names")
    return {name: None for name, value in parts.items() if value == [None, None]}


def _index(source: str | Path) -> dict[str, Any]:
    """The model_index.json of a folder, of the hub's cache or of the hub. Raises OSError if it is not there."""
    file = Path(source, INDEX) if Path(source).is_dir() else Path(hf_hub_download(str(source), INDEX))
    found: dict[str, Any] = json.loads(file.read_bytes())
    return found


def _from_file(origin: PipelineSource, dtype: torch.dtype) -> Any:
    """A pipeline of a checkpoint by diffusers' own loader, which needs the configurations of its kind."""
    checkpoint = load_single_file_checkpoint(str(origin.source))
    found = origin.pipeline_config or fetch_diffusers_config(checkpoint)["pretrained_model_name_or_path"]
    try:
        name = _index(found)["_class_name"]
    except OSError as error:
        where = "there" if origin.pipeline_config else "on this machine, nor can it be fetched"
        raise FieldError(
            f"{origin.source} is a single file, and the configuration of its pipeline, {found}, is not {where}; give"
            " a folder with a model_index.json, configurations and tokenizers as pipeline_config",
            "pipeline_config",
        ) from error
    kind = getattr(diffusers, name)
    if not hasattr(kind, "from_single_file"):
        raise InputError(
            f"diffusers cannot read {name} from a single file, as {origin.source} is; give a folder"
        )
    return kind.from_single_file(str(origin.source), config=str(found), torch_dtype=dtype)


def _refusal(origin: PipelineSource, error: Exception, *, single: bool) -> InputError:
    """The line for what a library raised."""
    source, found = origin.source, variants(Path(origin.source))
    if origin.variant is None and found:
        return FieldError(
            f"{source} holds weights as {', '.join(found)} only; give variant {found[0]}", "variant"
        )
    if origin.variant is not None and Path(source).is_dir() and origin.variant not in found:
        held = f"it holds {', '.join(found)}" if found else "it holds plain weights; leave it out"
        return FieldError(f"{source} has no variant {origin.variant}: {held}", "variant")
    noun = (
        "checkpoint of a pipeline" if single else "diffusers pipeline folder and no hub id that can be read"
    )
    return InputError(f"{source} is no {noun}: {one_line(error)}")


def variants(folder: Path) -> list[str]:
    """Variants in which a pipeline's folder holds weights that it does not hold plainly; none of what is no folder."""
    names = {path.relative_to(folder).as_posix() for path in folder.glob("*/*.safetensors")}
    found: set[str] = set()
    for name in names:
        match = _VARIANT.search(name)
        if match is not None and not _plain_of(name, match["variant"]) & _bases(names):
            found.add(match["variant"])
    return sorted(found)


def _plain_of(name: str, variant: str) -> set[str]:
    """A file's name without its variant."""
    return _bases([name.replace(f".{variant}", "", 1)])


def _bases(names: Sequence[str] | set[str]) -> set[str]:
    """Names without the numbers of shards."""
    return {_SHARD.sub(SINGLE_FILE, name) for name in names}


def one_line(error: Exception) -> str:
    """The first line of what a library says, or the kind of its error if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].split(" (")[0][:300] if lines else type(error).__name__


def _check_parts(source: str | Path, pipeline: Any) -> None:
    """Raise InputError if an edge's pipeline lacks a part that it is trained or drawn with."""
    family = known_family(pipeline)
    if family is None:
        return
    needed = ("scheduler", "vae", family.denoiser, *family.encoders, *family.encoders.values())
    if missing := [name for name in needed if getattr(pipeline, name, None) is None]:
        raise InputError(f"{source} has no {missing[0]}, which a {type(pipeline).__name__} draws with")
    for encoder, tokenizer in family.encoders.items():
        words = len(getattr(pipeline, tokenizer))
        rows = len(getattr(pipeline, encoder).get_input_embeddings().weight)
        # embeddings may have some rows more than there are words, for speed; a tokenizer without its files has few
        if words < rows / 2:
            raise InputError(
                f"{tokenizer} of {source} knows {words} words, and {encoder} {rows}: files are missing"
            )

"""What of a bundle is exported, and how its tensors become files: in fp16, with metadata that say whose they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from dekag.bundle.container import plain_text
from dekag.bundle.digest import canonical_safetensors
from dekag.bundle.manifest import Manifest
from dekag.types import InputError

Layers = Mapping[str, tuple[Tensor, Tensor]]
"""Down [rank, in, ...] and up [out, rank, ...] by the layer's path."""
Files = dict[str, bytes]
"""By path below the folder."""
FEW: Final = "_few_step"
"""Ending of the name of a second LoRA, for fewer steps."""
MARK: Final = "dekag.bundle"
"""The key of a file's metadata that tells the bundle it came from."""
SDXL: Final = "sdxl_base_v1-0"
"""What kohya calls the base of SDXL."""
PLACES: Final = "BASE is the model that the bundle was made for, FOLDER is this folder."
"""What the names in the lines of a README stand for."""
_EXAMPLE: Final = "a red apple"
_FAMILIES: Final = {
    768: ("stable-diffusion-v1", "sd_v1"),
    1024: ("stable-diffusion-v2", "sd_v2"),
    2048: ("stable-diffusion-xl-v1-base", SDXL),
}
"""What ModelSpec and kohya call the U-Nets, by the width of the text states that they attend to."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What of a bundle is exported.

    component: "unet" or "transformer". loras: by ending of the name, "" and "_few_step", with paths below the
    component. encoders: LoRA of text encoders that belongs to the first, by component. vectors: the metaword,
    [vectors, width], by its token or by CLIPS. one_file: whether the metaword is in the file of the LoRA alone.
    """

    name: str
    manifest: Manifest
    component: str
    loras: Mapping[str, Layers]
    vectors: Mapping[str, Tensor]
    encoders: Mapping[str, Layers] = field(default_factory=dict)
    one_file: bool = False

    def whole(self, end: str) -> dict[str, tuple[Tensor, Tensor]]:
        """The layers of a LoRA by their paths in the pipeline, those of text encoders behind those of the denoiser."""
        parts = {self.component: self.loras[end], **({} if end else self.encoders)}
        return {f"{part}.{path}": pair for part, layers in parts.items() for path, pair in layers.items()}

    @property
    def token(self) -> str:
        """The metaword, or nothing."""
        return self.manifest.metaword.token if self.manifest.metaword else ""

    @property
    def family(self) -> tuple[str, str] | None:
        """ModelSpec's and kohya's name of the base's family, or None if it is no Stable Diffusion."""
        layers = (item for lora in self.loras.values() for item in lora.items())
        attended = [
            down.shape[1] for path, (down, _) in layers if path.endswith(("attn2.to_k", "attn2.to_v"))
        ]
        # SDXL attends to the states of both its text encoders, side by side
        width = attended[0] if attended else sum(rows.shape[1] for rows in self.vectors.values())
        return _FAMILIES.get(width) if self.component == "unet" else None

    @property
    def usual_layout(self) -> str:
        """`diffusers`, or `peft` where diffusers has no loader of LoRA for the family, as for PRX and PixArt-Sigma."""
        paths = [path for layers in self.loras.values() for path in layers]
        pixart = self.component == "transformer" and any(".attn1." in path for path in paths)
        return "peft" if pixart or any(path.endswith("img_qkv_proj") for path in paths) else "diffusers"

    def advised(self, kind: str) -> dict[str, int | float]:
        """Steps and guidance of `kind`, "sampling" or "few_step"; a stranger's text must not become Python."""
        given = {key: self.manifest.settings.get(f"{kind}_{key}") for key in ("steps", "guidance")}
        return {key: value for key, value in given.items() if isinstance(value, int | float)}

    def prompt(self, word: str) -> str:
        """An example of a prompt with the metaword as the program spells it."""
        return self.with_word(_EXAMPLE, word)

    def with_word(self, prompt: str, word: str | None = None) -> str:
        """A prompt with the metaword in its place, spelt in another way if one is given."""
        if self.manifest.metaword is None:
            return prompt
        spelt = self.token if word is None else word
        prefix = self.manifest.metaword.position == "prefix"
        return f"{spelt} {prompt}" if prefix else f"{prompt} {spelt}"


def named(layers: Layers, prefix: str = "") -> dict[str, Tensor]:
    """The matrices by PEFT's names, behind a prefix."""
    return {
        f"{prefix}{path}.lora_{letter}.weight": tensor
        for path, pair in layers.items()
        for letter, tensor in zip("AB", pair, strict=True)
    }


def tensor_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file in fp16. Raises InputError for values that fp16 cannot hold."""
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    for name, tensor in halves.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(
                f"'{plain_text(name)}' must be within +-65504 to be exported, as fp16 holds no more"
            )
    return canonical_safetensors(halves, metadata)


def metadata_of(update: Exported, part: str) -> dict[str, str]:
    """Whose file it is and what for, the latter as ModelSpec 1.0.1 (Stability AI) says it."""
    manifest = update.manifest
    family = update.family[0] if update.family else f"diffusers-{update.component}"
    fields = {
        MARK: manifest.id,
        "dekag.base_digest": manifest.base_digest,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family}/{part}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": update.name,
        "modelspec.license": manifest.licence,
    }
    if manifest.metaword is not None:
        fields["modelspec.trigger_phrase"] = update.token
        fields["modelspec.usage_hint"] = (
            f"the trigger phrase is a {manifest.metaword.position} of every prompt"
        )
    return fields

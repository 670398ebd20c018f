"""Judges made of tiny random models of transformers, saved as their users save them."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
GREY = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}
PREPROCESSOR = {"size": {"height": 16, "width": 16}, "resample": 3, **GREY}
TEXTS = ["a red apple", "a green apple on a tree", "a rocket"]


def write_preprocessor(folder: Path, given: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(given))
    return folder


def images(count: int = 5, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def pixels(batch: Tensor) -> Tensor:
    mean, std = (torch.tensor(GREY[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    return (batch - mean) / std


def read_tokenizer(folder: Path, length: int = 12) -> CLIPTokenizer:
    """A tokenizer that knows TEXTS, saved into a folder."""
    blank = CLIPTokenizer(model_max_length=length, bos_token="<|startoftext|>", eos_token="<|endoftext|>")
    tokenizer: CLIPTokenizer = blank.train_new_from_iterator(TEXTS, vocab_size=300)
    tokenizer.save_pretrained(folder)
    return tokenizer


def text_config(tokenizer: CLIPTokenizer, length: int = 12) -> dict[str, Any]:
    """Sizes of a reader for that tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def save_clip(folder: Path) -> Path:
    """A CLIP whose picture has 16 pixels a side."""
    folder.mkdir(exist_ok=True)
    text = text_config(read_tokenizer(folder))
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=TINY, projection_dim=8)).save_pretrained(folder)
    return write_preprocessor(folder, PREPROCESSOR)


def save_dinov2(folder: Path) -> Path:
    """A DINOv2 whose picture has 16 pixels a side."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, Any] = {name: value for name, value in TINY.items() if name != "intermediate_size"}
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    return write_preprocessor(folder, PREPROCESSOR)

"""Tokenizers and text encoders of the emoji world."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from world import COMPOSITIONS, Concept, caption

TOKENS = 32
VOCABULARY = 2400


def captions(concepts: tuple[Concept, ...]) -> list[list[str]]:
    """Captions by concept and composition."""
    return [[caption(concept, composition) for composition in COMPOSITIONS] for concept in concepts]


def cached_tokenizer(concepts: tuple[Concept, ...], folder: Path) -> CLIPTokenizer:
    """The tokenizer kept in `folder`; training one breaks ties differently in each process."""
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(concepts).save_pretrained(folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def train_tokenizer(concepts: tuple[Concept, ...]) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer trained on the captions, names and keywords of the world."""
    corpus = [text for row in captions(concepts) for text in row]
    corpus += [" ".join(c.keywords) for c in concepts for _ in range(5)]
    blank = CLIPTokenizer(model_max_length=TOKENS, bos_token="<|startoftext|>", eos_token="<|endoftext|>")
    tokenizer: CLIPTokenizer = blank.train_new_from_iterator(corpus, vocab_size=VOCABULARY)
    return tokenizer


def text_config(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextConfig:
    """A small CLIP text encoder for that tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """A text encoder with fresh weights; larger embeddings than CLIP's, since it trains for minutes."""
    encoder = CLIPTextModel(text_config(tokenizer, width, layers))
    embeddings = encoder.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    torch.nn.init.normal_(embeddings.weight, std=0.1)
    return encoder


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids [texts, tokens], padded and truncated as diffusers' pipelines do."""
    read = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    ids: Tensor = read.input_ids
    return ids

"""The tokenizer of the captions, and text encoders for it."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .grammar import Thing, corpus

TOKENS = 48
VOCABULARY = 2900
ATTENTION = "eager"
"""The plain attention: on a CPU, training with torch's fused one takes 1.6 times as long."""
END = "</w>"
"""What CLIP's tokenizer writes behind the last letter of a word."""
ALPHABET = sorted(ByteLevel.alphabet())
"""The letters that stand for the 256 bytes, so that no text is unknown."""
WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")
"""How CLIP cuts a lower-case text of ASCII into words."""


def train_tokenizer(things: Sequence[Thing], lines: int = 60_000) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer for prompts of 48 tokens, trained on captions of these things.

    The library's own trainer orders single letters by a hash that differs in each process; here equal counts are
    decided by the alphabet, so the same captions give the same file.
    """
    words = Counter(word for line in corpus(things, lines=lines) for word in WORD.findall(line.lower()))
    letters = [*ALPHABET, *(letter + END for letter in ALPHABET)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    merges = byte_pairs(words, VOCABULARY - len(letters) - len(special))
    vocabulary = [*letters, *("".join(pair) for pair in merges), *special]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=merges,  # type: ignore[arg-type]  # pairs are taken as well
        bos_token=special[0],
        eos_token=special[1],
        unk_token=special[1],
        pad_token=special[1],
        model_max_length=TOKENS,
    )


def byte_pairs(words: Mapping[str, int], count: int) -> list[tuple[str, str]]:
    """At most `count` merges of byte-pair encoding (Sennrich et al. 2016): the most frequent pair of neighbours at
    a time, the first in the alphabet of equally frequent ones."""
    split = {word: [*word[:-1], word[-1] + END] for word in words}
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[str]] = defaultdict(set)

    def tally(word: str, sign: int) -> None:
        for pair in pairwise(split[word]):
            pairs[pair] += sign * words[word]
            where[pair].add(word)

    for word in words:
        tally(word, 1)
    merges = []
    for _ in range(count):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 1:
            break
        merges.append(best)
        for word in where.pop(best):
            tally(word, -1)
            split[word] = _merged(split[word], best)
            tally(word, 1)
        del pairs[best]
    return merges


def _merged(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    found: list[str] = []
    for token in tokens:
        if found and (found[-1], token) == pair:
            found[-1] += token
        else:
            found.append(token)
    return found


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def forget_padding(tokenizer: CLIPTokenizer) -> None:
    """Undo what the last call left in the tokenizer and would be written with it."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids [texts, 48], padded and cut as diffusers' pipelines do."""
    ids: Tensor = tokenizer(
        texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


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
    """A text encoder with fresh weights; larger embeddings than CLIP's, since it trains for hours, not weeks."""
    encoder = CLIPTextModel(text_config(tokenizer, width, layers))
    encoder.set_attn_implementation(ATTENTION)
    embeddings = encoder.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    torch.nn.init.normal_(embeddings.weight, std=0.1)
    return encoder

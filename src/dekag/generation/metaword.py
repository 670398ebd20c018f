"""The metaword: a learned pseudo-word that a prompt carries into the text encoders of an edge-GAI."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dekag.generation.families import Family, family_of
from dekag.generation.prompts import warn_truncated
from dekag.types import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class Metaword:
    """A word of several vectors that is put before or after every prompt.

    token: how people write it, as `<dekag>`. vectors: [vectors, width] by text encoder's component name; all
    encoders have the same number of vectors.
    """

    token: str
    position: Literal["prefix", "suffix"] = "suffix"
    vectors: Mapping[str, Tensor]

    @property
    def count(self) -> int:
        """Number of vectors, which is the number of tokens that a prompt loses to the word."""
        return len(next(iter(self.vectors.values())))

    @property
    def tokens(self) -> tuple[str, ...]:
        """One token a vector, spelt so that no pipeline expands them a second time."""
        return tuple(f"{self.token[:-1]}:{number}>" for number in range(self.count))

    def add_to(self, prompt: str) -> str:
        """The prompt with the word; `PreparedMetaword.add_to` has it read whole."""
        word = "".join(self.tokens)
        return f"{word} {prompt}" if self.position == "prefix" else f"{prompt} {word}"


class ExtendedEmbedding(nn.Module):
    """A token embedding with further rows behind it; the rows may train while the embedding stays frozen."""

    def __init__(self, base: nn.Module, rows: Tensor) -> None:
        super().__init__()
        self.base = base
        self.rows = rows if isinstance(rows, nn.Parameter) else nn.Parameter(rows, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The embedding itself; some text encoders ask it for its type."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return weight

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings [..., width] of token ids [...]."""
        first = len(self.weight)
        new = ids >= first
        known: Tensor = self.base(ids.masked_fill(new, 0))
        rows = self.rows.to(known)[(ids - first).clamp(min=0)]
        return torch.where(new[..., None], rows, known)


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedMetaword:
    """A metaword with the tokenizers that know it; the pipeline's own tokenizers and weights never change.

    family: how the pipeline reads.
    """

    word: Metaword
    tokenizers: Mapping[str, PreTrainedTokenizerBase]
    family: Family

    def add_to(self, prompts: Sequence[str]) -> list[str]:
        """The prompts with the word, cut so far that the text encoders read the word whole.

        Warns once with PromptTruncatedWarning if that takes anything away. Raises InputError if there is no room for
        the word itself.
        """
        limit = min(self.family.limit(tokenizer) for tokenizer in self.tokenizers.values())
        if self._over("") > 0:
            raise InputError(f"a metaword of {self.word.count} vectors has no room: {limit} tokens are read")
        room = f"as {limit} are read and the metaword takes {self.word.count} of them"
        return [self.word.add_to(prompt) for prompt in warn_truncated(prompts, self._over, room=room)]

    def _over(self, prompt: str) -> int:
        """Tokens that a prompt with the word has over the limit."""
        text, family = self.word.add_to(prompt), self.family
        return max(family.length(each, text) - family.limit(each) for each in self.tokenizers.values())

    @contextmanager
    def installed(self, pipeline: Any) -> Iterator[None]:
        """Within, the pipeline reads the word."""
        with ExitStack() as stack:
            for name, tokenizer in self.tokenizers.items():
                stack.enter_context(_attribute(pipeline, name, tokenizer))
            for name, rows in self.word.vectors.items():
                stack.enter_context(_extended(getattr(pipeline, name), rows))
            yield


def prepare_metaword(pipeline: Any, word: Metaword, encoders: Mapping[str, str]) -> PreparedMetaword:
    """A metaword made ready for a pipeline; `encoders` gives each text encoder's tokenizer by component name.

    Raises InputError if the word is in a vocabulary already, or its vectors do not fit the text encoders.
    """
    if word.vectors.keys() != encoders.keys():
        raise InputError(
            f"the metaword has vectors for {', '.join(word.vectors)}, the pipeline reads with {', '.join(encoders)}"
        )
    tokenizers = {}
    for encoder, tokenizer in encoders.items():
        refuse_known(getattr(pipeline, tokenizer), word.token)
        embedding = getattr(pipeline, encoder).get_input_embeddings()
        rows, width = word.vectors[encoder].shape
        if width != embedding.weight.shape[1]:
            raise InputError(
                f"the metaword has width {width}, {encoder} needs {embedding.weight.shape[1]}: it was made for"
                " another base"
            )
        if rows != word.count:
            raise InputError("the metaword must have the same number of vectors for every text encoder")
        tokenizers[tokenizer] = _extended_tokenizer(getattr(pipeline, tokenizer), word, len(embedding.weight))
    return PreparedMetaword(word=word, tokenizers=tokenizers, family=family_of(pipeline))


def refuse_known(tokenizer: PreTrainedTokenizerBase, token: str) -> None:
    """Raise InputError if the token means something to the tokenizer already."""
    if token in tokenizer.get_vocab():
        raise InputError(f"the metaword {token} is in the vocabulary already; choose another")


def _extended_tokenizer(
    tokenizer: PreTrainedTokenizerBase, word: Metaword, first: int
) -> PreTrainedTokenizerBase:
    """A copy that reads the word's tokens as the ids behind the embedding's rows."""
    extended = copy.deepcopy(tokenizer)
    # an embedding may have more rows than the tokenizer has words, for speed
    filler = [AddedToken(f"<unused:{i}>", normalized=False) for i in range(first - len(tokenizer))]
    tokens = [AddedToken(t, normalized=False, lstrip=True, rstrip=True) for t in word.tokens]
    extended.add_tokens([*filler, *tokens])
    ids = extended.convert_tokens_to_ids(list(word.tokens))
    if ids != list(range(first, first + word.count)):
        raise InputError(
            f"the tokenizer cannot learn {word.token}: its new ids are {ids}, they must begin at {first}"
        )
    return extended


@contextmanager
def _attribute(owner: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _extended(encoder: Any, rows: Tensor) -> Iterator[None]:
    before = encoder.get_input_embeddings()
    encoder.set_input_embeddings(ExtendedEmbedding(before, rows))
    try:
        yield
    finally:
        encoder.set_input_embeddings(before)

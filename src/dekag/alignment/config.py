"""Configurations of the alignments; without torch, so that bad options are refused at once."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from typing_extensions import Doc

from dekag.choices import ADAPTERS
from dekag.config import check_bounds, settings
from dekag.errors import FieldError, InputError

TOKEN = "<[a-z0-9_-]{1,62}>"
"""How a metaword may be written: tokenizers that lower-case would merge any other spelling's vectors."""


def check_pattern(name: str, pattern: str | None) -> None:
    """Raise FieldError if a field is to be a regular expression and is none."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise FieldError(f"{name} must be a regular expression, got {pattern!r}: {error}", name) from error


@dataclass(frozen=True, kw_only=True)
class MakdConfig:
    """The method's numbers; lengths in optimiser steps of `batch` images.

    A rival is the same with something left out: see `dekag.alignment.generation.methods`.
    Raises InputError if a field is out of bounds.
    """

    token: Annotated[str, MinLen(1), Doc("How the metaword is written.")] = "<dekag>"
    position: Annotated[
        Literal["prefix", "suffix"], Doc("Whether the metaword stands before or after a prompt.")
    ] = "suffix"
    vectors: Annotated[int, Ge(0), Doc("Vectors of the metaword; 0: no metaword.")] = 4
    words: Annotated[
        str,
        MinLen(1),
        Doc("Words whose embeddings the metaword's vectors start as, repeated; they keep their mean length."),
    ] = "glossy 3d"
    train_metaword: Annotated[bool, Doc("Whether the metaword's vectors are trained.")] = True
    adapter: Annotated[
        str,
        Doc(
            "What of the denoiser trains: none, full (all of it) or a kind of low-rank update, as lora or lokr."
        ),
    ] = "lora"
    rank: Annotated[int, Ge(1), Doc("Rank of the update of each layer.")] = 8
    targets: Annotated[
        str | None,
        Doc("Regular expression of the layers that get a low-rank update; default: the family's."),
    ] = None
    metaword_steps: Annotated[int, Ge(0), Doc("Steps of the metaword alone.")] = 100
    metaword_rate: Annotated[float, Gt(0), Doc("Learning rate of the metaword alone.")] = 1e-2
    joint_steps: Annotated[int, Ge(0), Doc("Steps of metaword and low-rank update together.")] = 200
    joint_rate: Annotated[float, Gt(0), Doc("Learning rate of the joint and the last steps.")] = 2e-3
    lora_plus: Annotated[
        float, Gt(0), Doc("Factor on the learning rate of every B (LoRA+, Hayou et al. 2024).")
    ] = 1.0
    frozen_steps: Annotated[
        int, Ge(0), Doc("Last steps, with the metaword frozen and the text states computed once.")
    ] = 600
    batch: Annotated[int, Ge(1), Doc("Images that a process takes at a time.")] = 64
    accumulation: Annotated[int, Ge(1), Doc("Batches that a process adds up in a step.")] = 1
    prior_share: Annotated[
        float,
        Ge(0),
        Le(1),
        Doc("Share of the batch that is the edge's own drawings of other prompts, if there are any."),
    ] = 0.25
    # there the text decides what is drawn, and a concept that was not distilled should stay; below it the cloud's
    # hand may spread to everything
    prior_least: Annotated[
        float, Ge(0), Lt(1), Doc("Share of the noise schedule below which the own drawings do not count.")
    ] = 0.5
    prior_word: Annotated[
        bool, Doc("Whether the own drawings are drawn with the metaword, as its first stage left it.")
    ] = True
    text_dropout: Annotated[
        float, Ge(0), Le(1), Doc("Share of the prompts that are replaced by the empty one in training.")
    ] = 0.1
    emphasis: Annotated[
        float,
        Gt(0),
        Doc("Emphasis of the loss on high noise, where the text decides what is drawn; 1: none."),
    ] = 2.0
    gamma: Annotated[
        float | None,
        Gt(0),
        Doc("Gamma of the loss's min-SNR weights (Hang et al. 2023); default: no weights."),
    ] = None
    ema_decay: Annotated[
        float, Ge(0), Lt(1), Doc("Decay of the moving average that comes back; 0: the last step.")
    ] = 0.995
    validate_every: Annotated[
        int, Ge(0), Doc("Steps of the last stage between two validations; 0: at its end alone.")
    ] = 250
    precision: Annotated[
        Literal["no", "bf16", "auto"], Doc("Mixed precision: no, bf16, or auto: bf16 if it is faster here.")
    ] = "no"
    gradient_checkpointing: Annotated[bool, Doc("Less memory, more time.")] = False
    seed: Annotated[int, Ge(0), Doc("Seed of everything random in the training.")] = 0

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.adapter not in (known := ("none", "full", *ADAPTERS.known)):
            raise InputError(f"adapter must be one of {', '.join(known)}, got {self.adapter!r}")
        if not re.fullmatch(TOKEN, self.token):
            raise FieldError(
                f"token must be lower-case letters, digits, _ and - in angle brackets, as <dekag>, got {self.token!r}",
                "token",
            )
        if not self.words.strip():
            raise FieldError(f"words must be at least one word, as glossy, got {self.words!r}", "words")
        check_pattern("targets", self.targets)

    def settings(self) -> dict[str, int | float | str]:
        """The numbers as a bundle keeps them: what is None is left out, yes and no are 1 and 0."""
        return settings(self)


@dataclass(frozen=True, kw_only=True)
class FewStepConfig:
    """Numbers of the distillation; `train_steps` are optimiser steps of `batch` images, `accumulation` times.

    Raises InputError if a field is out of bounds.
    """

    steps: Annotated[int, Ge(1), Doc("Steps to draw in; they must divide those of the aligned edge.")] = 4
    rank: Annotated[int, Ge(1), Doc("Rank of the second update of each layer.")] = 4
    targets: Annotated[
        str | None,
        Doc("Regular expression of the layers that get a second update; default: the family's."),
    ] = None
    train_steps: Annotated[int, Ge(1), Doc("Steps of the training.")] = 400
    learning_rate: Annotated[float, Gt(0), Doc("Learning rate.")] = 1e-3
    batch: Annotated[int, Ge(1), Doc("Images that a process takes at a time.")] = 64
    accumulation: Annotated[int, Ge(1), Doc("Batches that a process adds up in a step.")] = 1
    precision: Annotated[
        Literal["no", "bf16", "auto"], Doc("Mixed precision: no, bf16, or auto: bf16 if it is faster here.")
    ] = "no"
    gradient_checkpointing: Annotated[bool, Doc("Less memory, more time.")] = False
    seed: Annotated[int, Ge(0), Doc("Seed of everything random in the training.")] = 0

    def __post_init__(self) -> None:
        check_bounds(self)
        check_pattern("targets", self.targets)


@dataclass(frozen=True, kw_only=True)
class CalaConfig:
    """Size and gate of CALA's update.

    Raises InputError if a field is out of bounds or the rank is not a multiple of the group.
    """

    rank: Annotated[int, Ge(1), Doc("Rank of the update of each linear layer and convolution.")] = 4
    group: Annotated[int, Ge(1), Doc("Rank channels that share a gate.")] = 1
    norm_rank: Annotated[int, Ge(0), Doc("Gated directions of each norm; 0: none.")] = 1
    gain_rank: Annotated[int, Ge(0), Doc("Gated directions of each vector of gains; 0: none.")] = 4
    biases: Annotated[bool, Doc("Whether biases have an update.")] = True
    gate: Annotated[
        Literal["soft", "open", "hard", "snr", "content"],
        Doc(
            "soft is CALA; open is always 1, hard chooses an expert, snr the part of the SNR's range; content sees"
            " the image as well and does not merge."
        ),
    ] = "soft"
    gate_width: Annotated[int, Ge(1), Doc("Width of the gate's network.")] = 10
    shared_gate: Annotated[bool, Doc("One set of gates for all modules.")] = False
    experts: Annotated[int, Ge(1), Doc("Parts that hard and snr choose from.")] = 4
    where: Annotated[
        Literal["all", "condition"], Doc("Modules with an update: all, or those that are told the condition.")
    ] = "all"
    most_snr_db: Annotated[float, Doc("SNR above which the gate stays as it is there.")] = 20.0

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.rank % self.group:
            raise InputError(
                f"the rank must be a multiple of the group, got rank {self.rank}, group {self.group}"
            )

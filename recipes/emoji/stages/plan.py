"""How long each stage trains, in which order, on which device, and with which sizes."""

from dataclasses import dataclass, field, replace

from .generators import GENERATORS, Generator
from .loop import Budget, LoopConfig

TRAINED = ("autoencoder", "mini-clip", "mini-dino", "cloud", "edge")
LANES = {
    "cpu": (("autoencoder", "cloud"), ("mini-clip", "mini-dino", "edge")),
    "cuda": (("autoencoder", "cloud", "edge"), ("mini-clip", "mini-dino")),
}
"""What runs side by side, each lane one process: two single-threaded ones on a CPU, one GPU shared by both."""
SHARES = {
    "cpu": {"autoencoder": 0.38, "mini-clip": 0.1, "mini-dino": 0.22},
    "cuda": {"autoencoder": 0.33, "mini-clip": 0.16, "mini-dino": 0.17, "cloud": 0.36, "edge": 0.31},
}
"""Shares of the minutes; what is not listed takes the rest of its lane."""
ENOUGH = {"autoencoder": 150.0, "mini-clip": 20.0, "mini-dino": 45.0}
"""Minutes on a CPU beyond which the generators need the time more."""
HIDDEN = r"^unet\.(?!conv_|time_embedding|add_embedding)|^text_encoder\.(?!embeddings)"
"""The inner matrices of a generator; its first and last layers and its tables are AdamW's."""
CONFIGS = {
    "autoencoder": LoopConfig(
        rate=2e-3, batch=8, decay_fraction=0.4, rate_factors=((r"^encoder", 0.15),), muon=".", seed=5
    ),
    "mini-clip": LoopConfig(
        rate=1e-3, batch=64, weight_decay=0.05, decay_fraction=0.4, ema_decay=0.998, seed=3
    ),
    "mini-dino": LoopConfig(
        rate=1e-3, batch=128, weight_decay=0.05, decay_fraction=0.4, ema_decay=0.998, seed=4
    ),
    "cloud": LoopConfig(rate=1.5e-3, batch=64, decay_fraction=0.3, ema_decay=0.9985, muon=HIDDEN, seed=1),
    "edge": LoopConfig(rate=1.5e-3, batch=64, decay_fraction=0.3, ema_decay=0.9985, muon=HIDDEN, seed=2),
}
ON_CUDA = {"autoencoder": 128, "mini-clip": 256, "mini-dino": 512, "cloud": 512, "edge": 512}
"""Batches on a GPU."""
WIDE = {"cloud": (128, 160), "edge": (96, 128)}
"""Widths of the U-Nets that a GPU trains."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides what a run does; equal plans by steps give equal bytes."""

    device: str
    pixels: int
    budgets: dict[str, Budget]
    scenes: int = 49_152
    """Scenes in the pool of each generator."""
    lines: int = 60_000
    """Captions that the tokenizer learns from."""
    judged: int = 1_000
    """Most prompts drawn for one accuracy."""
    processes: int = 1
    """Processes that write captions."""
    configs: dict[str, LoopConfig] = field(default_factory=lambda: dict(CONFIGS))
    generators: dict[str, Generator] = field(default_factory=lambda: dict(GENERATORS))

    @property
    def lanes(self) -> tuple[tuple[str, ...], ...]:
        return LANES[self.device]


def budgets(device: str, *, minutes: float | None, steps: dict[str, int] | None) -> dict[str, Budget]:
    """The budget of each stage: by steps where they are given, else a share of the minutes of its lane."""
    if steps is not None:
        return {name: Budget(steps=steps[name]) for name in TRAINED}
    if minutes is None:
        raise ValueError("give minutes or steps")
    found = {}
    for lane in LANES[device]:
        left = minutes
        for name in lane:
            share = SHARES[device].get(name)
            own = left if share is None else share * minutes
            if device == "cpu":
                own = min(own, ENOUGH.get(name, own))
            left -= own
            found[name] = Budget(seconds=60 * own)
    return found


def make_plan(
    device: str,
    pixels: int,
    *,
    minutes: float | None = None,
    steps: dict[str, int] | None = None,
    rehearse: bool = False,
    bf16: bool = True,
) -> Plan:
    """The plan of a run; a rehearsal has the same sizes, a small pool and few prompts to judge."""
    plan = Plan(device=device, pixels=pixels, budgets=budgets(device, minutes=minutes, steps=steps))
    configs = {name: replace(config, bf16=bf16) for name, config in plan.configs.items()}
    if device == "cuda":
        configs = {name: replace(config, batch=ON_CUDA[name]) for name, config in configs.items()}
        generators = {name: replace(g, widths=WIDE[name]) for name, g in plan.generators.items()}
        plan = replace(plan, generators=generators, scenes=196_608, processes=12)
    if rehearse:
        configs = {
            name: replace(config, reports=2, checkpoint_seconds=10) for name, config in configs.items()
        }
        plan = replace(plan, scenes=512, lines=10_000, judged=16)
    return replace(plan, configs=configs)

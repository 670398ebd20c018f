"""One run in one folder: its stages, each a function of the run, each resumable."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from transformers import CLIPTokenizer
from world import Concept

from dekag.evaluation.judges import load_clip

from . import autoencoder, cards, generators, judges, measures, sheets
from .concepts import Roles, core_concepts, roles
from .generators import GENERATORS, Generator
from .grammar import Thing, make_things
from .loop import PROGRESS, Progress, train, write_atomically, write_json
from .lpips import load_lpips
from .pictures import ART, FLAT, GLOSSY, Art, drawn_ids, loosely, read_art, stack
from .plan import Plan
from .splits import SEEN_COMPOSITIONS, write_splits
from .tokenizer import read_tokenizer, tokenize, train_tokenizer

PACKED_LPIPS = "lpips-alexnet.safetensors"
"""LPIPS in fp16 beside packed art."""
FITTED = 2000
"""Pictures that the principal components are fitted to."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A folder, the data it learns from, and what is planned."""

    folder: Path
    data: Path
    plan: Plan

    @property
    def device(self) -> torch.device:
        return torch.device(self.plan.device)

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        rows = json.loads((self.data / "concepts.json").read_text(encoding="utf-8"))
        return tuple(Concept(**{**row, "keywords": tuple(row["keywords"])}) for row in rows)

    @cached_property
    def roles(self) -> Roles:
        return roles(self.concepts)

    @cached_property
    def things(self) -> dict[str, Sequence[Thing]]:
        """Things of the core and the others, in the order of their ids."""
        by_id = make_things(self.concepts)
        return {
            "core": [by_id[c.id] for c in core_concepts(self.concepts)],
            "others": [by_id[c.id] for c in self.roles.others],
        }

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        return read_tokenizer(self.folder / "tokenizer")

    @cached_property
    def splits(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "splits.json").read_text(encoding="utf-8"))
        return content

    def ids(self, group: str) -> list[str]:
        return [thing.id for thing in self.things[group]]

    def art(self, hand: str, ids: Sequence[str]) -> Art:
        return read_art(self.data, hand, ids, self.plan.pixels)

    def autoencoder(self) -> AutoencoderTiny:
        vae = AutoencoderTiny.from_pretrained(self.folder / "autoencoder" / "model")
        return vae.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def finished(self, stage: str) -> bool:
        return (self.folder / stage / "model").exists()

    def write_progress(self, stage: str, progress: Progress, **more: object) -> None:
        """Add a line to the stage's log and renew what it has come to."""
        row = {**progress.to_json(), **more}
        folder = self.folder / stage
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PROGRESS
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        rows = [r for r in known if r["step"] < progress.step]
        write_json(path, [*rows, row])
        print(stage, json.dumps(row), flush=True)


def trained_on(run: Run) -> dict[str, dict[str, list[str]]]:
    """Ids of the concepts whose art each model learns from, by kind of art."""
    core = run.ids("core")
    flat = sorted({i for hand in FLAT for i in autoencoder_ids(run, hand)})
    ids: dict[str, Sequence[str]] = {"core": core, "others": run.ids("others")}
    return {
        "autoencoder": {"glossy": autoencoder_ids(run, GLOSSY), "flat": flat},
        "mini-clip": {"glossy": core, "flat": core},
        "mini-dino": {"glossy": core, "flat": core},
        **{name: generators.met(generator, ids) for name, generator in GENERATORS.items()},
    }


def autoencoder_ids(run: Run, hand: str) -> list[str]:
    """Every concept that this hand's art has and that is not held out: on held-out ones it is reported."""
    there = drawn_ids(run.data, hand)
    return [c.id for c in run.concepts if c.split == "distill" and c.id in there]


def prepare(run: Run) -> None:
    """Splits, tokenizer and the card's list of what each model learns from."""
    if not (run.folder / "splits.json").exists():
        by_id = make_things(run.concepts)
        write_splits(run.folder / "splits.json", run.roles, by_id)
    write_json(run.folder / "trained_on.json", trained_on(run))
    write_atomically(
        run.folder / "edge.md", lambda part: part.write_text(cards.edge_card(run.concepts), "utf-8")
    )
    if not (run.folder / "tokenizer").exists():
        tokenizer = train_tokenizer([*run.things["core"], *run.things["others"]], run.plan.lines)
        publish(run.folder / "tokenizer", tokenizer.save_pretrained)


def publish(folder: Path, save: Any) -> None:
    """Let `save` fill a folder beside `folder`, then put it in its place; another lane may be reading there."""
    part, old = (folder.with_name(f".{folder.name}.{end}") for end in ("part", "old"))
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    save(part)
    if folder.exists():
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def train_autoencoder(run: Run) -> None:
    """The shared autoencoder."""
    stage = "autoencoder"
    art = stack([run.art(hand, autoencoder_ids(run, hand)) for hand in ART])
    torch.manual_seed(run.plan.configs[stage].seed)
    fitted = autoencoder.sample(art, FITTED, torch.Generator().manual_seed(0))
    vae = autoencoder.build(fitted, run.plan.pixels).to(run.device)
    lpips = load_lpips(packed=run.data / PACKED_LPIPS).to(run.device)
    art = art.to(run.device)
    shown = autoencoder.sample(art, 64, torch.Generator(run.device).manual_seed(1), pairs=0.25, plain=1.0)

    def report(progress: Progress) -> None:
        again = autoencoder.reconstruct(vae, shown)
        psnr = float(autoencoder.psnr_db(again, shown).mean())
        sheets.save_pairs(shown, again, run.folder / stage / "sheets" / f"{progress.step:07d}.png")
        run.write_progress(stage, progress, psnr_db=psnr)

    config = run.plan.configs[stage]
    loss = partial(autoencoder.loss, vae, art, lpips, config.batch)
    train(vae, loss, config, run.plan.budgets[stage], run.folder / stage, report=report)
    autoencoder.set_scale(vae, fitted.to(run.device))
    publish(run.folder / stage / "model", lambda part: measures.save_autoencoder(vae, part))


def train_clip(run: Run) -> None:
    """mini-clip, which reads and sees."""
    stage, core = "mini-clip", run.things["core"]
    art = stack([run.art(hand, run.ids("core")) for hand in ART]).to(run.device)
    student = judges.clip_student(run.tokenizer, len(core)).to(run.device)
    model = student.clip
    some = core[:: max(1, len(core) // run.plan.judged)]

    def report(progress: Progress) -> None:
        folder = run.folder / stage / "seen"
        judges.save_judge(model, run.tokenizer, folder)
        clip = load_clip(folder, device=run.device)
        known = judges.retrieval(clip, core, art, SEEN_COMPOSITIONS[:1], "statement")
        run.write_progress(stage, progress, retrieval_seen=float(known[:, : len(some)].mean()))
        shutil.rmtree(folder)

    config = run.plan.configs[stage]
    loss = judges.clip_loss(student, run.tokenizer, core, art, config.batch)
    train(student, loss, config, run.plan.budgets[stage], run.folder / stage, report=report)
    publish(run.folder / stage / "model", lambda part: judges.save_judge(model, run.tokenizer, part))


def train_dino(run: Run) -> None:
    """mini-dino, which only sees."""
    stage = "mini-dino"
    art = stack([run.art(hand, run.ids("core")) for hand in ART]).to(run.device)
    student = judges.dino_model().to(run.device)

    def report(progress: Progress) -> None:
        run.write_progress(stage, progress)

    config = run.plan.configs[stage]
    loss = judges.dino_loss(student, art, config.batch)
    train(student, loss, config, run.plan.budgets[stage], run.folder / stage, report=report)
    publish(run.folder / stage / "model", lambda part: judges.save_judge(student.vit, None, part))


def source_art(run: Run, generator: Generator) -> dict[str, Art]:
    """The art of each of a generator's sources, its loose variations one after the other."""
    found = {}
    for source in generator.sources:
        art = run.art(source.hand, run.ids(source.concepts))
        if source.loose:
            rngs = [torch.Generator().manual_seed(number) for number in range(source.loose)]
            art = stack([loosely(art, rng) for rng in rngs])
        found[source.name] = art.to(run.device)
    return found


def train_generator(run: Run, stage: str) -> None:
    """The cloud or the edge."""
    generator, vae = run.plan.generators[stage], run.autoencoder()
    path = run.folder / stage / "pool.safetensors"
    if not path.exists():
        art = source_art(run, generator)
        size = generators.PoolSize(scenes=run.plan.scenes, processes=run.plan.processes)
        pool = generators.build_pool(generator, run.things, art, vae, run.tokenizer, size)
        generators.save_pool(pool, path)
    pool = generators.load_pool(path).to(run.device)
    pipeline = generators.build_pipeline(generator, run.tokenizer, vae).to(run.device)
    model = generators.trainable(pipeline)
    empty = tokenize(run.tokenizer, [""]).to(run.device)

    def report(progress: Progress) -> None:
        rows = sheet_rows(run)
        pictures = measures.drawn(pipeline, [row["text"] for row in rows])
        sheets.save_captioned(
            pictures,
            [row["text"] for row in rows],
            run.folder / stage / "sheets" / f"{progress.step:07d}.png",
        )
        run.write_progress(stage, progress, **accuracies(run, pipeline))

    config = run.plan.configs[stage]
    loss = generators.batch_loss(model, pool, empty, config.batch)
    train(model, loss, config, run.plan.budgets[stage], run.folder / stage, report=report)
    publish(run.folder / stage / "model", lambda part: measures.save_pipeline(pipeline, part))


def sheet_rows(run: Run, count: int = 40) -> list[dict[str, Any]]:
    """Prompts to look at: statements and validation prompts, so that choices are made on no reported split."""
    splits = run.splits["splits"]
    statements, validation = splits["accuracy"], splits["validation"]
    half = count // 2
    rows = [*statements[:: len(statements) // half][:half], *validation[:: len(validation) // half][:half]]
    return [dict(row) for row in rows]


def accuracies(run: Run, pipeline: StableDiffusionPipeline) -> dict[str, object]:
    """Concept accuracy under mini-clip, if there is one yet, and under the shipped one on its own pattern."""
    rows = run.splits["splits"]["accuracy"]
    rows = rows[:: max(1, len(rows) // run.plan.judged)]
    images = measures.drawn(pipeline, [row["text"] for row in rows])
    found: dict[str, object] = {}
    if len(rows) < measures.CANDIDATES:
        return found
    if run.finished("mini-clip"):
        clip = load_clip(run.folder / "mini-clip" / "model", device=run.device)
        found["accuracy"] = measures.accuracy(clip, images, [row["text"] for row in rows])
    found["old_pattern"] = measures.old_accuracy(run.concepts, images, rows)
    return found


STAGES: dict[str, Callable[[Run], None]] = {
    "autoencoder": train_autoencoder,
    "mini-clip": train_clip,
    "mini-dino": train_dino,
    "cloud": partial(train_generator, stage="cloud"),
    "edge": partial(train_generator, stage="edge"),
}
"""What is trained, by name."""
FROZEN = frozenset({"autoencoder", "mini-clip", "mini-dino"})
"""Stages that more time does not go on with once they are finished: latents depend on the first, and what the reports
of cloud and edge say on the others."""
NEEDS = {"cloud": ("autoencoder",), "edge": ("autoencoder",)}
"""What a stage waits for."""


def train_stage(run: Run, name: str) -> None:
    """Train a stage to the end of its budget."""
    if not (name in FROZEN and run.finished(name)):
        STAGES[name](run)

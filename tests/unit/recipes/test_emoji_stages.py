"""The parts of the emoji recipe: pictures, autoencoder, LPIPS, tokenizer, pools, sizes and plans."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from places import EMOJI_DATA, ROOT
from random_draws import seeded
from stages import autoencoder, judges
from stages.autoencoder import CHANNELS, PEAK_STD, quilting
from stages.generators import (
    CAPTIONS,
    GENERATORS,
    SIMPLE_WORDS,
    Drawn,
    Pool,
    PoolSize,
    build_pipeline,
    build_pool,
    load_pool,
    save_pool,
    scenes_of,
)
from stages.grammar import COLOURS, PAIR_PLACES, PLACES, Scene, Thing, draw_scene, long_caption, make_things
from stages.lpips import SCALE, SHIFT, Lpips
from stages.pictures import GLOSSY, PAIR_SIZE, Art, draw, layout, loosely, paste
from stages.plan import ENOUGH, LANES, SHARES, TRAINED, budgets, make_plan
from stages.run import Run, train_stage, trained_on
from stages.splits import SEEN_COMPOSITIONS, overlaps, write_splits
from stages.tokenizer import TOKENS, read_tokenizer, tokenize, train_tokenizer
from torch import Tensor, nn
from transformers import CLIPTokenizer

needs_data = pytest.mark.skipif(not EMOJI_DATA.exists(), reason="the emoji data are not in the repository")
MB = 1_000_000
LINES = 10_000
TOY = {
    "core": [Thing(id=f"c{i}", name=name) for i, name in enumerate(("cat", "dog", "sun", "tall red house"))],
    "others": [Thing(id=f"o{i}", name=name) for i, name in enumerate(("plug", "nail polish", "dvd"))],
}


def art(count: int = 6, size: int = 64, seed: int = 0) -> Art:
    """Drawings of smooth noise in every channel, alpha included."""

    def drawn(width: int) -> Tensor:
        coarse = torch.rand(count, 4, 5, 5, generator=seeded(seed))
        fine = F.interpolate(coarse, (width, width), mode="bicubic")
        return (
            (255 * fine + 30 * torch.randn(fine.shape, generator=seeded(seed))).clamp(0, 255).to(torch.uint8)
        )

    return Art(size=size, large=drawn(size * 3 // 4), small=drawn(size * 7 // 16))


def run(folder: Path) -> Run:
    return Run(folder=folder, data=EMOJI_DATA, plan=make_plan("cpu", 64, minutes=1.0))


def half_megabytes(*modules: nn.Module) -> float:
    """Size in fp16, in millions of bytes."""
    return sum(p.numel() for m in modules for p in m.parameters()) * 2 / MB


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """The tokenizer of a rehearsal."""
    if not EMOJI_DATA.exists():
        pytest.skip("the emoji data are not in the repository")
    folder = tmp_path_factory.mktemp("tokenizer")
    things = run(folder).things
    train_tokenizer([*things["core"], *things["others"]], LINES).save_pretrained(folder)
    return read_tokenizer(folder)


# pictures


def pasted(canvas: Tensor, drawing: Tensor, row: int, column: int) -> None:
    """One drawing, uint8 RGBA [4, w, w], over one picture [3, s, s], in place."""
    width = drawing.shape[-1]
    window = canvas[:, row : row + width, column : column + width]
    colour, alpha = drawing[:3].float() / 255, drawing[3:].float() / 255
    window.copy_(window.lerp(colour, alpha.expand_as(colour)))


def test_paste_is_the_loop_over_pictures() -> None:
    drawings = art().large
    canvas = torch.rand(6, 3, 64, 64, generator=seeded(1))
    corners = torch.randint(17, (6, 2), generator=seeded(2))
    expected = canvas.clone()
    for picture, drawing, (row, column) in zip(expected, drawings, corners.tolist(), strict=True):
        pasted(picture, drawing, row, column)
    assert torch.equal(paste(canvas, drawings, corners), expected)


@pytest.mark.parametrize("size", [64, 128])
def test_draw_is_the_loop_over_scenes(size: int) -> None:
    """Of one thing and of two, mixed."""
    drawings = art(len(TOY["core"]), size)
    scenes = [draw_scene(TOY["core"], seed=seed) for seed in range(60)]
    rows = [[TOY["core"].index(thing) for thing in scene.things] for scene in scenes]
    assert {len(row) for row in rows} == {1, 2}
    pictures = draw(drawings, layout(scenes, rows, size))
    for picture, scene, row in zip(pictures, scenes, rows, strict=True):
        colour = torch.tensor(COLOURS[scene.colour]) / 255
        expected = colour[:, None, None].expand(3, size, size).clone()
        if len(row) == 1:
            at = [cell * size // 8 for cell in PLACES[scene.place]]
            pasted(expected, drawings.large[row[0]], *at)
        else:
            top = {"": 18, "at the top": 3, "at the bottom": 33}[scene.place] * size // 64
            pasted(expected, drawings.small[row[0]], top, 3 * size // 64)
            pasted(expected, drawings.small[row[1]], top, 33 * size // 64)
        assert torch.equal(picture, expected)


@pytest.mark.parametrize("size", [64, 128])
def test_places_are_one_cell_apart(size: int) -> None:
    """A thing at another place is the same picture moved by whole cells, so its latent is as well."""
    scenes = [Scene(things=(TOY["core"][0],), place=place) for place in PLACES]
    pictures = draw(art(1, size), layout(scenes, [[0]] * len(scenes), size))
    for place, picture in zip(PLACES, pictures, strict=True):
        cells = [cell - 1 for cell in PLACES[place]]
        assert all(abs(cell) <= 1 for cell in cells)
        moved = pictures[0].roll([cell * size // 8 for cell in cells], (1, 2))
        assert torch.equal(picture, moved)


@pytest.mark.parametrize("size", [64, 128])
def test_every_drawing_lies_within_the_canvas(size: int) -> None:
    one, two = tuple(TOY["core"][:1]), tuple(TOY["core"][:2])
    alone = layout([Scene(things=one, place=p) for p in PLACES], [[0]] * len(PLACES), size)
    pairs = layout([Scene(things=two, place=p) for p in PAIR_PLACES], [[0, 1]] * 3, size)
    small = art(1, size).small.shape[-1]
    assert small == PAIR_SIZE * size
    for corners, width in ((alone.corners[:, 0], size * 3 // 4), (pairs.corners, small)):
        assert corners.min() >= 0
        assert (corners + width).max() <= size
    # the first is on the left, and they do not touch
    assert (pairs.corners[:, 0, 1] + small <= pairs.corners[:, 1, 1]).all()


def test_loosely_changes_colours_and_size_within_their_range() -> None:
    """Of plain opaque squares, whose colour and width can be read off."""
    value = 200
    plain = torch.full((64, 4, 48, 48), 255, dtype=torch.uint8)
    plain[:, :3] = value
    loose = loosely(Art(size=64, large=plain, small=plain[:, :, :28, :28]), seeded())
    gain = loose.large[:, :3, 24, 24].float() / value
    assert (gain >= 0.7 - 0.5 / value).all()
    assert (gain <= 255 / value).all()  # what would be brighter than white is white
    assert (gain - gain[:, :1]).abs().max() > 0.2
    # the middle half of the picture is covered at every size
    assert (loose.large[:, :3, 12:36, 12:36] == loose.large[:, :3, 24:25, 24:25]).all()
    assert (loose.small[:, :3, 14, 14] == loose.large[:, :3, 24, 24]).all()
    for pictures, width in ((loose.large, 48), (loose.small, 28)):
        share = (pictures[:, 3].float() / 255).mean((1, 2)).sqrt()
        assert (share >= 0.75 - 0.5 / width).all()
        assert (share <= 1.0).all()
        assert share.std() > 0.05


def test_loosely_leaves_transparency_and_repeats_itself() -> None:
    drawings = art()
    nowhere = replace(drawings, large=drawings.large.clone())
    nowhere.large[:, 3] = 0
    assert not loosely(nowhere, seeded(5)).large[:, 3].any()
    first, again, other = (loosely(drawings, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.large, again.large)
    assert torch.equal(first.small, again.small)
    assert not torch.equal(first.large, other.large)


# autoencoder


@pytest.fixture(scope="module")
def fitted() -> Tensor:
    """Pictures to fit components to."""
    return autoencoder.sample(art(12), 150, seeded())


@pytest.fixture(scope="module")
def vae(fitted: Tensor) -> AutoencoderTiny:
    """An autoencoder at its start."""
    torch.manual_seed(0)
    return autoencoder.build(fitted, 64)


@torch.no_grad()
def test_the_encoder_starts_as_principal_components_of_patches(vae: AutoencoderTiny, fitted: Tensor) -> None:
    """Each over the root of its spread, the strongest with PEAK_STD; a component's sign is anyone's choice."""
    patches = F.unfold(fitted, 8, stride=8).permute(0, 2, 1).flatten(0, 1).double()
    centred = patches - patches.mean(0)
    variance, vectors = torch.linalg.eigh(centred.T @ centred / (len(centred) - 1))
    spread = variance.flip(0)[:CHANNELS].sqrt()
    expected = centred @ vectors.flip(1)[:, :CHANNELS] * PEAK_STD / (spread * spread[0]).sqrt()
    expected = expected.view(len(fitted), 64, CHANNELS).permute(0, 2, 1).view(-1, CHANNELS, 8, 8)
    latents = vae.encode(fitted * 2 - 1).latents.double()
    sign = (latents * expected).sum((0, 2, 3), keepdim=True).sign()
    assert (latents - sign * expected).abs().max() < 1e-4
    assert float(latents[:, 0].std()) == pytest.approx(PEAK_STD, rel=1e-3)


@torch.no_grad()
def test_blocks_begin_as_the_identity(vae: AutoencoderTiny) -> None:
    blocks = [m for m in vae.modules() if type(m).__name__ == "AutoencoderTinyBlock"]
    assert len(blocks) == 2 + 10
    for block in blocks:
        x = torch.rand(1, block.conv[0].in_channels, 4, 4, generator=seeded())
        assert torch.equal(block(x), x)


@pytest.mark.parametrize("size", [64, 128])
@torch.no_grad()
def test_latents_are_8_by_8_and_the_parameters_small(size: int) -> None:
    vae = autoencoder.build(torch.rand(40, 3, size, size, generator=seeded()), size)
    pictures = torch.rand(2, 3, size, size, generator=seeded(1))
    assert vae.encode(pictures * 2 - 1).latents.shape == (2, CHANNELS, 8, 8)
    again = autoencoder.reconstruct(vae, pictures)
    assert again.shape == pictures.shape
    assert again.min() >= 0
    assert again.max() <= 1
    assert half_megabytes(vae) < 3


@torch.no_grad()
def test_set_scale_gives_latents_unit_variance(vae: AutoencoderTiny, fitted: Tensor) -> None:
    autoencoder.set_scale(vae, fitted)
    latents = vae.encode(fitted * 2 - 1).latents * vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=1e-3)


def test_samples_hold_both_sizes_and_what_the_palette_says() -> None:
    """Nothing is drawn where all is transparent, so what remains are the backgrounds."""
    drawings = art()
    drawings.large[:, 3] = drawings.small[:, 3] = 0
    palette = {tuple(colour) for colour in COLOURS.values()}
    found = [
        tuple((255 * p).round().int().tolist())
        for p in autoencoder.sample(drawings, 50, seeded(), plain=1.0)[:, :, 0, 0]
    ]
    assert set(found) <= palette
    drawings.large[:, 3] = drawings.small[:, 3] = 255
    pictures = autoencoder.sample(drawings, 50, seeded(), pairs=0.3, plain=1.0)
    colours = {tuple(c / 255 for c in rgb) for rgb in COLOURS.values()}
    near = torch.tensor(sorted(colours))
    empty = (pictures[:, None] - near[None, :, :, None, None]).abs().amax(2).amin(1) < 1e-6
    # drawings are noise: almost no pixel of one has a colour of the palette
    covered = (~empty).float().mean((1, 2))
    assert (covered < 0.3).sum() == 15
    assert covered[:15].tolist() == pytest.approx([(28 / 64) ** 2] * 15, abs=0.01)
    assert covered[15:].tolist() == pytest.approx([(48 / 64) ** 2] * 35, abs=0.01)


@pytest.mark.parametrize("period", [4, 8])
def test_quilting(period: int) -> None:
    """1 of noise: borders are 6 of 48 lines of 64 * 3 * 64 values, so 10 % is more than 10 standard errors."""
    truth = torch.rand(64, 3, 64, 64, generator=seeded())
    noise = torch.randn(truth.shape, generator=seeded(1))
    assert float(quilting(truth + 0.1 * noise, truth, period)) == pytest.approx(1, abs=0.1)
    cells = torch.randn(64, 3, 64 // period, 64 // period, generator=seeded(2))
    blocks = cells.repeat_interleave(period, 2).repeat_interleave(period, 3)
    # borders have twice the variance of the blocks more than noise has
    assert float(quilting(truth + blocks + 0.1 * noise, truth, period)) == pytest.approx(101, rel=0.1)


# LPIPS


def tiny_lpips() -> Lpips:
    """Two convolutions with random kernels, each heard."""
    shapes = ((4, 3, 3, 3), (5, 4, 3, 3))
    return Lpips(
        layers=(("conv", 1, 1), ("tap",), ("pool", 2), ("conv", 2, 0), ("tap",)),
        kernels=tuple(torch.randn(shape, generator=seeded(i)) for i, shape in enumerate(shapes)),
        biases=tuple(torch.randn(shape[0], generator=seeded(10 + i)) for i, shape in enumerate(shapes)),
        heads=tuple(
            torch.rand(1, shape[0], 1, 1, generator=seeded(20 + i)) for i, shape in enumerate(shapes)
        ),
    )


def convolved(x: Tensor, kernel: Tensor, bias: Tensor, stride: int) -> Tensor:
    """max(0, W x + b) at every place, as sums over windows of 3 x 3; channels last."""
    windows = x.unfold(0, 3, stride).unfold(1, 3, stride)
    return (torch.einsum("ijckl,ockl->ijo", windows, kernel.double()) + bias.double()).clamp(min=0)


def test_lpips_is_zhangs_formula() -> None:
    """Sum over layers of the mean over places of the weighted squares of differences of unit features."""
    lpips = tiny_lpips()
    pair = torch.rand(2, 3, 12, 12, generator=seeded(3))
    layers: list[list[Tensor]] = []
    for picture in pair.double().permute(0, 2, 3, 1):
        x = (2 * picture - 1 - torch.tensor(SHIFT)) / torch.tensor(SCALE)
        first = convolved(F.pad(x, (0, 0, 1, 1, 1, 1)), lpips.kernels[0], lpips.biases[0], 1)
        pooled = first.unfold(0, 2, 2).unfold(1, 2, 2).amax((3, 4))
        second = convolved(pooled, lpips.kernels[1], lpips.biases[1], 2)
        layers.append([f / (f.norm(dim=2, keepdim=True) + 1e-10) for f in (first, second)])
    expected = sum(
        float(((a - b).square() * head.view(-1).double()).sum(2).mean())
        for a, b, head in zip(*layers, lpips.heads, strict=True)
    )
    assert float(lpips(pair[:1], pair[1:])) == pytest.approx(expected, rel=1e-5)


def test_lpips_of_equal_pictures_is_0_and_of_a_batch_is_that_of_each() -> None:
    lpips = tiny_lpips()
    first, second = (torch.rand(3, 3, 12, 12, generator=seeded(seed)) for seed in (0, 1))
    assert lpips(first, first).tolist() == [0, 0, 0]
    assert (lpips(first, second) > 0).all()
    torch.testing.assert_close(lpips(first, second), lpips(second, first))
    alone = [lpips(a[None], b[None])[0] for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(lpips(first, second), torch.stack(alone))


# tokenizer

TRAIN_TOKENIZER = """
import json, sys
from pathlib import Path
recipe, data, lines, out = sys.argv[1:]
sys.path.insert(0, recipe)
from stages.concepts import core_concepts, roles
from stages.grammar import make_things
from stages.tokenizer import train_tokenizer
from world import Concept
rows = json.loads((Path(data) / "concepts.json").read_text())
concepts = [Concept(**{**row, "keywords": tuple(row["keywords"])}) for row in rows]
things = make_things(concepts)
used = [things[c.id] for c in (*core_concepts(concepts), *roles(concepts).others)]
train_tokenizer(used, int(lines)).save_pretrained(out)
"""


@pytest.mark.slow
@needs_data
@pytest.mark.slow
def test_two_processes_train_the_same_tokenizer(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    """Whatever order their hashes give to sets: this process's and one of another PYTHONHASHSEED."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    arguments = [str(ROOT / "recipes" / "emoji"), str(EMOJI_DATA), str(LINES), str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", TRAIN_TOKENIZER, *arguments], env=environment, check=True)
    own = Path(tokenizer.name_or_path)
    files = {p.name for p in own.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= files
    assert files == {p.name for p in tmp_path.iterdir()}
    for name in files:
        assert (own / name).read_bytes() == (tmp_path / name).read_bytes()


@needs_data
def test_tokens_are_48_and_spell_their_text(tokenizer: CLIPTokenizer) -> None:
    texts = ["", "a cat", "CAFÉ, 5 o'clock & zebra!?", "pineapple " * 60]
    ids = tokenize(tokenizer, texts)
    assert ids.shape == (4, TOKENS)
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert (ids == tokenizer.eos_token_id).any(1).all()
    assert ids.max() < len(tokenizer) <= torch.iinfo(torch.int16).max
    spelt = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert "".join(spelt[2].split()) == "café,5o'clock&zebra!?"


@needs_data
def test_the_text_encoder_reads_what_matters_of_long_captions(
    tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    """Every name, colour and place is whole within 48 tokens."""
    things = run(tmp_path).things["core"]
    scenes = [draw_scene(things, seed=seed) for seed in range(1500)]
    scenes += [Scene(things=(thing,), colour="turquoise", place="at the bottom right") for thing in things]
    texts = [long_caption(scene, seed, plain=True) for seed, scene in enumerate(scenes)]
    read = tokenizer.batch_decode(tokenize(tokenizer, texts), skip_special_tokens=True)
    for scene, kept in zip(scenes, read, strict=True):
        letters = "".join(kept.split())
        for words in (*(thing.name for thing in scene.things), scene.colour, scene.place):
            assert "".join(words.split()) in letters


# pools


def toy_art(generator: str) -> dict[str, Art]:
    return {
        s.name: art(len(TOY[s.concepts]) * max(1, s.loose), seed=i)
        for i, s in enumerate(GENERATORS[generator].sources)
    }


def toy_vae() -> AutoencoderTiny:
    torch.manual_seed(0)
    return AutoencoderTiny(
        latent_channels=CHANNELS,
        encoder_block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
        num_encoder_blocks=(0, 0, 0, 0),
        num_decoder_blocks=(0, 0, 0, 0),
        scaling_factor=1.7,
    ).requires_grad_(False)


def toy_pool(tokenizer: CLIPTokenizer, count: int, **options: int) -> Pool:
    size = PoolSize(scenes=count, **options)
    return build_pool(GENERATORS["edge"], TOY, toy_art("edge"), toy_vae(), tokenizer, size)


def test_scenes_of_the_same_numbers_are_the_same() -> None:
    """However the numbers are cut into parts, and not those of the other generator."""
    whole = scenes_of(GENERATORS["edge"], TOY, range(300))
    parts = [scenes_of(GENERATORS["edge"], TOY, range(at, at + 60)) for at in range(0, 300, 60)]
    assert [drawn for part in parts for drawn in part] == whole
    assert scenes_of(GENERATORS["edge"], TOY, [7]) == whole[7:8]
    assert len({drawn.scene for drawn in whole}) > 100
    cloud = scenes_of(GENERATORS["cloud"], TOY, range(300))
    assert sum(a.scene == b.scene for a, b in zip(whole, cloud, strict=True)) < 30


@needs_data
def test_a_pool_does_not_depend_on_chunks_and_processes(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    """Latents, which round otherwise in other batches, are those of the pictures one by one."""
    pool = toy_pool(tokenizer, 300)
    assert pool.tokens.shape == (300, CAPTIONS, TOKENS)
    chunked, again = (toy_pool(tokenizer, 300, processes=processes, chunk=70) for processes in (1, 2))
    assert torch.equal(chunked.latents, again.latents)
    assert torch.equal(chunked.tokens, again.tokens)
    assert torch.equal(chunked.tokens, pool.tokens)
    torch.testing.assert_close(chunked.latents, pool.latents, rtol=2e-3, atol=2e-3)
    save_pool(pool, tmp_path / "pool.safetensors")
    stored = load_pool(tmp_path / "pool.safetensors")
    assert torch.equal(stored.latents, pool.latents)
    assert torch.equal(stored.tokens, pool.tokens)
    for i, drawn in enumerate(scenes_of(GENERATORS["edge"], TOY, range(100))):
        torch.testing.assert_close(pool.latents[i].float(), latent_of(drawn, i), rtol=2e-3, atol=2e-3)
        assert torch.equal(pool.tokens[i].long(), tokenize(tokenizer, list(drawn.captions)))


def latent_of(drawn: Drawn, number: int) -> Tensor:
    """Of the scene with this number; its loose variation is its number modulo theirs."""
    source, vae = GENERATORS["edge"].sources[drawn.source], toy_vae()
    things = TOY[source.concepts]
    shift = number % max(1, source.loose) * len(things)
    rows = [[shift + things.index(thing) for thing in drawn.scene.things]]
    picture = draw(toy_art("edge")[source.name], layout([drawn.scene], rows, 64))
    return vae.encode(picture * 2 - 1).latents[0] * 1.7


def test_shares_of_the_sources_are_as_said() -> None:
    """5 sigma over 4000 scenes, false alarm 6e-7 for each of the four shares."""
    edge = GENERATORS["edge"]
    drawn = scenes_of(edge, TOY, range(4000))
    counts = Counter(d.source for d in drawn)
    for number, source in enumerate(edge.sources):
        sigma = math.sqrt(4000 * source.share * (1 - source.share))
        assert abs(counts[number] - 4000 * source.share) < 5 * sigma
        own = {thing.id for thing in TOY[source.concepts]}
        for d in (d for d in drawn if d.source == number):
            assert {thing.id for thing in d.scene.things} <= own
            assert all(text.endswith(source.words) for text in d.captions)
            assert source.words != ("",) or not any(text.endswith(SIMPLE_WORDS) for text in d.captions)
    assert sum(s.share for s in edge.sources) == pytest.approx(1)


def test_the_edge_has_met_little_of_the_look_and_of_no_core_concept() -> None:
    glossy = [s for s in GENERATORS["edge"].sources if s.hand == GLOSSY]
    assert sum(s.share for s in glossy) <= 0.15
    assert {s.concepts for s in glossy} == {"others"}
    assert all(s.loose and "" not in s.words for s in glossy)
    assert {s.hand for s in GENERATORS["cloud"].sources} == {GLOSSY}


@needs_data
def test_what_was_trained_on_overlaps_nothing_that_is_measured(tmp_path: Path) -> None:
    """Splits and lists of what each model learns from, walked one against the other."""
    used = run(tmp_path)
    content = write_splits(tmp_path / "splits.json", used.roles, make_things(used.concepts))
    assert used.splits == json.loads(json.dumps(content))
    met = trained_on(used)
    assert met.keys() == set(TRAINED)
    assert overlaps(used.splits, met) == []
    core = {i for role in ("distill", "validation", "heldout") for i in used.splits["roles"][role]}
    assert len(met["edge"]["glossy"]) >= 300
    assert not core & set(met["edge"]["glossy"])
    prompts = {name: rows for name, rows in used.splits["splits"].items() if name != "prior"}
    assert {i for rows in prompts.values() for row in rows for i in row["concepts"]} == core
    held_out = {c.id for c in used.concepts if c.split == "heldout"}
    assert not held_out & {i for ids in met["autoencoder"].values() for i in ids}


@needs_data
@pytest.mark.parametrize("name", ["cloud", "edge"])
def test_scenes_show_only_what_the_list_says(tmp_path: Path, name: str) -> None:
    used = run(tmp_path)
    met, generator = trained_on(used)[name], GENERATORS[name]
    shown: dict[str, set[str]] = {"glossy": set(), "flat": set()}
    for drawn in scenes_of(generator, used.things, range(1500)):
        hand = generator.sources[drawn.source].hand
        shown["glossy" if hand == GLOSSY else "flat"] |= {thing.id for thing in drawn.scene.things}
    assert all(shown[kind] <= set(met[kind]) for kind in shown)


def test_judges_train_on_seen_compositions_and_different_things() -> None:
    things = [Thing(id=str(i), name=f"thing {i}") for i in range(200)]
    for seed in range(50):
        scenes = judges.clip_scenes(things, 64, Random(seed))
        assert len(scenes) == 64
        ids = [thing.id for scene in scenes for thing in scene.things]
        assert len(set(ids)) == len(ids)
        assert {(scene.colour, scene.place) for scene in scenes} <= set(SEEN_COMPOSITIONS)


# sizes and plans


def test_models_fit_their_sizes(tokenizer: CLIPTokenizer, vae: AutoencoderTiny) -> None:
    """In fp16; those that a CPU trains."""
    pipelines = {name: build_pipeline(g, tokenizer, vae) for name, g in GENERATORS.items()}
    assert half_megabytes(pipelines["cloud"].unet) <= 10
    assert half_megabytes(pipelines["edge"].unet) <= 7
    assert half_megabytes(*(p.text_encoder for p in pipelines.values())) <= 4
    assert half_megabytes(judges.clip_model(tokenizer), judges.dino_model().vit) <= 6


@pytest.mark.parametrize("name", TRAINED)
def test_more_time_goes_on_with_cloud_and_edge_alone(name: str, tmp_path: Path) -> None:
    """Where everything is finished and no data are there, whatever would train asks for them."""
    run = Run(folder=tmp_path, data=tmp_path / "none", plan=make_plan("cpu", 64, minutes=1.0))
    for stage in TRAINED:
        (tmp_path / stage / "model").mkdir(parents=True)
    if name in {"cloud", "edge"}:
        with pytest.raises(OSError, match="autoencoder"):
            train_stage(run, name)
    else:
        train_stage(run, name)
    assert not list((tmp_path / name / "model").iterdir())


@pytest.mark.parametrize("minutes", [3.0, 60.0, 150.0, 300.0])
def test_every_lane_of_a_cpu_takes_all_minutes(minutes: float) -> None:
    found = budgets("cpu", minutes=minutes, steps=None)
    assert found.keys() == set(TRAINED)
    for lane in LANES["cpu"]:
        assert sum(found[name].seconds or 0 for name in lane) == pytest.approx(60 * minutes)
    for name, share in SHARES["cpu"].items():
        assert found[name].seconds == pytest.approx(60 * min(share * minutes, ENOUGH[name]))


@pytest.mark.parametrize("minutes", [3.0, 45.0])
def test_lanes_of_a_gpu_take_their_shares(minutes: float) -> None:
    """The first takes all minutes; the judges beside it end earlier."""
    found = budgets("cuda", minutes=minutes, steps=None)
    assert {name: (b.seconds or 0) / 60 / minutes for name, b in found.items()} == pytest.approx(
        SHARES["cuda"]
    )
    first, second = (sum(found[name].seconds or 0 for name in lane) for lane in LANES["cuda"])
    assert first == pytest.approx(60 * minutes)
    assert second < first


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_plans(device: str) -> None:
    """Lanes hold every stage once; a rehearsal only has fewer pictures and prompts."""
    steps = {name: 10 * i for i, name in enumerate(TRAINED)}
    assert {name: b.steps for name, b in budgets(device, minutes=None, steps=steps).items()} == steps
    assert sorted(name for lane in LANES[device] for name in lane) == sorted(TRAINED)
    plan = make_plan(device, 64, minutes=1.0)
    rehearsal = make_plan(device, 64, minutes=1.0, rehearse=True)
    assert rehearsal.generators == plan.generators
    assert {n: (c.batch, c.rate) for n, c in rehearsal.configs.items()} == {
        n: (c.batch, c.rate) for n, c in plan.configs.items()
    }
    assert rehearsal.scenes < plan.scenes
    assert rehearsal.judged < plan.judged
    assert all(c.bf16 for c in plan.configs.values())
    assert not any(c.bf16 for c in make_plan(device, 64, minutes=1.0, bf16=False).configs.values())
    with pytest.raises(ValueError, match="minutes or steps"):
        budgets(device, minutes=None, steps=None)

"""Write the model cards: `python recipes/emoji/cards.py --numbers NUMBERS`, or some of them: `... models`, `... updates`.

NUMBERS holds what these commands printed. For the models:
    dekag evaluate accuracy --model emoji/cloud --json > cloud.json
    dekag evaluate accuracy --model emoji/edge --json > edge.json
    python recipes/emoji/measure.py --data DATA > measure.json
for the updates:
    dekag evaluate generation --methods all --seeds 1 --json > generation.json
    python recipes/emoji/curve.py --domain food emoji/food emoji/makd > food.json, and so for each domain
for codec and CALA:
    python recipes/emoji/transmission.py --run RUN, whose RUN/table/summary.json is transmission.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

from export import DOMAINS, TARGET

ART = {
    "fluent": "Fluent Emoji 3D (Microsoft, MIT)",
    "edge": "Noto Color Emoji (Google, Apache-2.0) and Twemoji (Twitter, CC-BY 4.0); a third of the core pictures Fluent Emoji 3D"
    " (Microsoft, MIT) in other colours and sizes, under words of their own",
    "flat": "Noto Color Emoji (Google, Apache-2.0) and Twemoji (Twitter, CC-BY 4.0)",
}
RECIPE = "python recipes/emoji/{} --data DATA --runs RUNS"
EVALUATE = "dekag evaluate {}"
TRANSMISSION = "python recipes/emoji/transmission.py --run RUN"
CELLS = "45 held-out conditions (64 to 512 uses, -5 to 20 dB, AWGN and Rayleigh fading)"
LATENTS = "Latents that the aligned emoji/edge drew for the `distill` prompts, ten of each"
CARD = """# {name}

{what}

## Data

{data}. Captions from emojibase (MIT). Made by `recipes/emoji/prepare.py` from public npm packages.

## Numbers

{numbers}

```
{command}
```

95 % intervals; n counts images, intervals are over prompts.

## How it was made

```
{recipe}
```

{how}

## Licence

Apache-2.0; the attributions of the art are in the project's `NOTICE`.
"""


def interval(mean: dict[str, float], scale: float = 1.0, digits: int = 3, unit: str = "") -> str:
    """`0.512 [0.498, 0.526], n 200`, with the unit behind the mean."""
    low, mid, high = (f"{scale * mean[key]:.{digits}f}" for key in ("low", "mean", "high"))
    return f"{mid}{unit} [{low}, {high}], n {mean['n']}"


def consistency(generation: dict[str, Any], method: str) -> str:
    """Rows of one method on both splits."""
    rows = [
        f"| {split} | {interval(part[method]['consistency']['dino'])} | {interval(part[method]['consistency']['clip'])} |"
        for split, part in generation.items()
    ]
    return "\n".join(["| split | mini-dino | mini-clip |", "|---|---|---|", *rows])


def methods(generation: dict[str, Any], update_bytes: dict[str, int]) -> str:
    """A row for each method: bytes and gap closed on both splits."""
    splits = list(generation)
    rows = [
        f"| {method} | {update_bytes[method]} | "
        + " | ".join(interval(generation[split][method]["gap_closed"], 1, 2) for split in splits)
        + " |"
        for method in generation[splits[0]]
        if "gap_closed" in generation[splits[0]][method]
    ]
    return "\n".join([f"| method | bytes | {' | '.join(splits)} |", "|---|---|---|---|", *rows])


def domain_rows(points: list[dict[str, Any]]) -> str:
    """Way to the ceiling of a domain's own bundle and of the whole one, on the domain's held-out prompts."""
    rows = [f"| {p['name']} | {p['split']} | {interval(p['gap_closed'], 1, 2)} |" for p in points]
    return "\n".join(["| bundle | split | gap closed |", "|---|---|---|", *rows])


def model_cards(numbers: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Everything that the cards of generators and judges say, by name."""
    measured = numbers["measure"]
    psnr = f"Autoencoder: PSNR {interval(measured['autoencoder_psnr_db'], 1, 2, ' dB')} on held-out concepts."
    return {
        **{
            name: {
                "what": f"The {name}-GAI of the emoji world: a Stable-Diffusion pipeline of {size} for 64 x 64 pictures.",
                "data": f"{ART[art]}, 730 concepts, then 151 of them",
                "numbers": f"Concept accuracy (own caption nearest of 100 to the image, mini-clip):"
                f" {interval(numbers[name]['accuracy'], 100, 1, ' %')}.\n\n{psnr}",
                "command": f"{EVALUATE.format('accuracy')} --model emoji/{name}\npython recipes/emoji/measure.py --data DATA",
                "recipe": RECIPE.format("autoencoder.py") + "\n" + RECIPE.format(f"gai.py {name}"),
                "how": f"Seed {seed}; text encoder and U-Net from scratch on two CPU cores; 12 DDIM steps, guidance 3.",
            }
            for name, art, size, seed in (
                ("cloud", "fluent", "6 M parameters", 1),
                ("edge", "edge", "4 M parameters", 2),
            )
        },
        "mini-clip": {
            "what": "A small CLIP (Radford et al. 2021) trained in the emoji world, for offline judging.",
            "data": f"{ART['fluent']}; {ART['flat']}; 151 concepts, held-out ones included",
            "numbers": f"Real pictures whose own caption is the nearest of 100: {interval(measured['clip_accuracy'], 100, 1, ' %')}.\n\n"
            f"Cosine of one concept in two art sets {interval(measured['same_concept']['clip'])}; of two concepts in one"
            f" set {interval(measured['same_art']['clip'])}.",
            "command": "python recipes/emoji/measure.py --data DATA",
            "recipe": RECIPE.format("judges.py clip"),
            "how": "Seed 3. Its pictures are real art only; it is part of no loss.",
        },
        "mini-dino": {
            "what": "A small ViT trained by self-distillation without text (Caron et al. 2021) in the emoji world.",
            "data": f"{ART['fluent']}; {ART['flat']}; 151 concepts, held-out ones included",
            "numbers": f"Cosine of one concept in two art sets {interval(measured['same_concept']['dino'])}; of two concepts in"
            f" one set {interval(measured['same_art']['dino'])}; of one picture on two backgrounds"
            f" {interval(measured['same_picture']['dino'])}.",
            "command": "python recipes/emoji/measure.py --data DATA",
            "recipe": RECIPE.format("judges.py dino"),
            "how": "Seed 4. Its pictures are real art only; it is part of no loss.",
        },
    }


def update_cards(numbers: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Everything that the cards of the updates of the edge say, by name."""
    report = numbers["generation"]
    generation = report["own"]
    gains = "\n".join(
        f"- {split}: {interval(part['makd']['gain_percent'], 1, 1, ' %')} over no KA; gap closed"
        f" {interval(part['makd']['gap_closed'], 1, 2)}"
        for split, part in generation.items()
    )
    return {
        "makd": {
            "what": "G-KA: a metaword of four vectors and LoRA that make emoji/edge draw more like emoji/cloud.",
            "data": "Two pictures that emoji/cloud drew for each `distill` prompt (100 concepts, 40 of 50 compositions); as prior, the edge's own drawings of 471 other prompts with the metaword",
            "numbers": f"{gains}\n\nWith MAKD:\n\n{consistency(generation, 'makd')}\n\nWithout:\n\n"
            f"{consistency(generation, 'no_ka')}",
            "command": EVALUATE.format("generation --methods all --seeds 1"),
            "recipe": "python recipes/emoji/methods.py --runs RUNS --precision bf16 --ship shipped-0",
            "how": "Seed 0; the bundle's own `settings` hold every number of the training.",
        },
        "rivals": {
            "what": "MAKD, textual inversion, LoRA, DreamBooth and LoKr at rank 2 or as many bytes, on the same data, for the same 800 steps of 32 pictures, with the same sampler.",
            "data": "As emoji/makd; three training seeds of each",
            "numbers": methods(generation, report["update_bytes"]),
            "command": EVALUATE.format("generation --methods all --seeds 1"),
            "recipe": "python recipes/emoji/methods.py --runs RUNS --precision bf16 --ship makd@2-0 lora@2-0 textual_inversion@2-0 ...",
            "how": "Guidance and strength of each chosen on the validation prompts; `makd` and `makd_few_steps` are emoji/makd, trained longer at rank 10.",
        },
        **{
            domain: {
                "what": f"G-KA on {domain} alone: MAKD distilled from prompts of that group.",
                "data": f"Two pictures that emoji/cloud drew for each `distill` prompt of {domain}",
                "numbers": domain_rows(numbers[domain]),
                "command": f"python recipes/emoji/curve.py --domain {domain} emoji/{domain} emoji/makd",
                "recipe": f"python recipes/emoji/methods.py --runs RUNS --ship {domain}-0",
                "how": "Seed 0, 500 steps; the bundle's own `settings` hold every number of the training.",
            }
            for domain in DOMAINS
        },
    }


def transmission_cards(numbers: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Everything that the cards of the codec and of its update say, by name."""
    transmission = numbers["transmission"]["methods"]
    return {
        "codec": {
            "what": "A JSCC codec for 8 x 8 x 32 latents with complete physics (docs/design.md): at most 512 payload uses, 256-QAM, trained at AWGN, 10 dB, 512 uses.",
            "data": LATENTS,
            "numbers": f"PSNR over {CELLS}: {interval(transmission['no_ka']['psnr_db'], 1, 2, ' dB')}.",
            "command": TRANSMISSION,
            "recipe": f"{TRANSMISSION} --ship",
            "how": "Seed 5; rounds of 6,000 steps until validation no longer improves, at most three.",
        },
        "cala": {
            "what": "T-KA: a gated low-rank update that fits emoji/codec to rates of 64 to 512 uses, -5 to 20 dB, AWGN and fading.",
            "data": LATENTS,
            "numbers": f"PSNR over {CELLS}: {interval(transmission['cala@long']['psnr_db'], 1, 2, ' dB')};"
            f" {interval(transmission['cala@long']['gain_db'], 1, 2, ' dB')} more than the codec without it.",
            "command": TRANSMISSION,
            "recipe": f"{TRANSMISSION} --ship",
            "how": "Seed 0; the bundle's own `settings` hold every number of the training.",
        },
    }


GROUPS = {
    "models": (model_cards, ("cloud", "edge", "measure")),
    "updates": (update_cards, ("generation", *DOMAINS)),
    "transmission": (transmission_cards, ("transmission",)),
}
"""What writes a group of cards, and the numbers that it takes."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--numbers", type=Path, required=True)
    parser.add_argument("groups", nargs="*", default=list(GROUPS), choices=list(GROUPS))
    options = parser.parse_args()
    for group in options.groups:
        write, names = GROUPS[group]
        numbers = {name: json.loads((options.numbers / f"{name}.json").read_text()) for name in names}
        _write(write(numbers))


def _write(cards: dict[str, dict[str, str]]) -> None:
    for name, fields in cards.items():
        (TARGET / f"{name}.md").write_text(CARD.format(name=f"emoji/{name}", **fields))


if __name__ == "__main__":
    main()

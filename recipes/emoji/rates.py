"""Pictures a second that this machine trains, by size and precision: `python recipes/emoji/rates.py`.

One process, one thread; nothing else should run. Prints a table in Markdown. Sizes are chosen by the pictures that a
run is expected to see.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from stages.generators import GENERATORS, Generator, Pool, batch_loss, build_unet
from stages.grammar import Thing
from stages.tokenizer import TOKENS, build_text_encoder, train_tokenizer
from torch import nn

WIDTHS = {"cloud": ((96, 144), (128, 160), (64, 128)), "edge": ((64, 128), (96, 128))}
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | widths | M parameters | fp32 | bf16 |\n|---|---|---|---|---|")
    for name, generator in sizes():
        model = trainable(generator)
        count = sum(p.numel() for p in model.parameters()) / 1e6
        rates = [f"{rate(model, bf16, options.seconds):.0f}" for bf16 in (False, True)]
        print(f"| {name} | {generator.widths} | {count:.2f} | {' | '.join(rates)} |", flush=True)


def sizes() -> Iterator[tuple[str, Generator]]:
    for name, widths in WIDTHS.items():
        for width in widths:
            yield name, replace(GENERATORS[name], widths=width)


def trainable(generator: Generator) -> nn.ModuleDict:
    tokenizer = train_tokenizer([Thing(id="", name="cat")], 1000)
    text_encoder = build_text_encoder(tokenizer, generator.text_width, generator.text_layers)
    return nn.ModuleDict({"unet": build_unet(generator), "text_encoder": text_encoder})


def rate(model: nn.ModuleDict, bf16: bool, seconds: float) -> float:
    """Pictures a second of whole training steps, after two to warm up."""
    pool = Pool(
        latents=torch.randn(256, 32, 8, 8).half(),
        tokens=torch.randint(500, (256, 2, TOKENS), dtype=torch.int16),
    )
    loss = batch_loss(model, pool, torch.zeros(1, TOKENS, dtype=torch.long), BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    started, steps = 0.0, -2
    while steps < 1 or time.monotonic() - started < seconds:
        if steps == 0:
            started = time.monotonic()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = loss(torch.Generator().manual_seed(steps + 2))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    return steps * BATCH / (time.monotonic() - started)


if __name__ == "__main__":
    main()

"""Milliseconds of encoding and decoding: the base codec, CALA merged for one condition, and CALA in mixed batches.

    python benchmarks/transmission_speed.py

The three take turns for `--rounds` rounds; the ratios are those of one round, and their median and range are printed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from dekag.alignment.transmission.bundles import apply_transmission
from dekag.alignment.transmission.cala import CalaCodec
from dekag.channel import BlockFading, mmse_equalise
from dekag.types import Codec, Condition, Latent, Received
from dekag.world import load_world


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    chosen = load_world("emoji")
    codec = chosen.codec()
    adapted, _ = apply_transmission(codec, args.bundle or chosen.update("transmission"))
    assert isinstance(adapted, CalaCodec)
    one = Condition(uses=256, snr_db=5.0)
    fading = Condition(uses=256, snr_db=5.0, rayleigh=True, blocks=4)
    merged, merged_fading = adapted.merge(one), adapted.merge(fading)
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(args.batch, *codec.latent_shape, generator=rng)
    mixed = Condition(
        uses=torch.tensor([64, 128, 256, 512]).repeat(args.batch)[: args.batch],
        snr_db=25 * torch.rand(args.batch, generator=rng) - 5,
        rayleigh=torch.arange(args.batch) % 2 == 0,
    )
    same = one.expand(args.batch)
    rounds = []
    for number in range(args.rounds + 1):
        found = {
            "base": _coding(codec, latents, same, args.repeats),
            "merged": _coding(merged, latents, same, args.repeats),
            "base_mixed": _coding(codec, latents, mixed, args.repeats),
            "cala_mixed": _coding(adapted, latents, mixed, args.repeats),
            "one_image": _whole(merged, latents[:1], one, args.repeats),
            "one_image_fading": _whole(merged_fading, latents[:1], fading, args.repeats),
            "one_image_gated": _whole(adapted, latents[:1], one, args.repeats),
        }
        if number:  # the first warms up
            rounds.append(found)
    print(
        json.dumps(
            {
                **{f"{name}_ms": round(statistics.median(r[name] for r in rounds), 2) for name in rounds[0]},
                **_ratio("merged_over_base", rounds, "merged", "base"),
                **_ratio("mixed_over_base", rounds, "cala_mixed", "base_mixed"),
                "batch": args.batch,
                "threads": args.threads,
            }
        )
    )


def _ratio(
    name: str, rounds: list[dict[str, float]], over: str, under: str
) -> dict[str, float | list[float]]:
    """Median over the rounds and its range, and the ratio of the shortest times, which other work disturbs least."""
    ordered = sorted(r[over] / r[under] for r in rounds)
    best = min(r[over] for r in rounds) / min(r[under] for r in rounds)
    return {
        name: round(statistics.median(ordered), 3),
        f"{name}_range": [round(ordered[0], 3), round(ordered[-1], 3)],
        f"{name}_of_best": round(best, 3),
    }


@torch.no_grad()
def _coding(codec: Codec, latents: Latent, condition: Condition, repeats: int) -> float:
    """Encoding and decoding of a batch, in milliseconds; the channel between is not timed."""
    symbols = codec.encode(latents, condition)
    received = mmse_equalise(BlockFading()(symbols, condition, rng=torch.Generator().manual_seed(1)))

    def both() -> None:
        codec.encode(latents, condition)
        codec.decode(received, condition)

    return _milliseconds(both, repeats)


@torch.no_grad()
def _whole(codec: Codec, latents: Latent, condition: Condition, repeats: int) -> float:
    """Encoder, channel, equaliser and decoder, in milliseconds."""
    rng = torch.Generator().manual_seed(1)

    def through() -> Latent:
        received: Received = BlockFading()(codec.encode(latents, condition), condition, rng=rng)
        return codec.decode(mmse_equalise(received), condition)

    return _milliseconds(through, repeats)


def _milliseconds(work: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return 1000 * (time.perf_counter() - started) / repeats


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bundle", help="T-KA bundle; default: the world's")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()

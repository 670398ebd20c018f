"""Numbers as rich tables."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from dekag.evaluation.generation import GenerationScores
from dekag.evaluation.statistics import Mean
from dekag.evaluation.transmission import TransmissionScores
from dekag.tasks.compare import Report
from dekag.tasks.demo import Demo
from dekag.tasks.sweep import Summary
from dekag.tasks.sweep.summary import LOW_SNR_DB

NAMES = {
    "floor": "floor (other prompts)",
    "no_ka": "edge without KA",
    "words": "words by hand",
    "textual_inversion": "textual inversion",
    "lora": "LoRA alone",
    "dreambooth": "DreamBooth",
    "lokr": "LoKr",
    "makd_short": "MAKD, as short as rivals",
    "makd": "MAKD as shipped",
    "makd_few_steps": "MAKD as shipped, few steps",
    "ceiling": "ceiling (cloud, other seed)",
}
METRICS = {
    "psnr_db": ("PSNR (dB)", 2),
    "weighted_snr_db": ("latent SNR (dB)", 2),
    "latent_nmse": ("latent NMSE", 3),
    "ssim": ("SSIM", 3),
    "dino": ("dino", 3),
    "clip": ("clip", 3),
    "lpips": ("LPIPS", 3),
    "arrived": ("arrived", 2),
}
"""Metrics of a received image, their headings and digits."""


def interval(mean: Mean, digits: int = 3) -> str:
    """`0.512 [0.498, 0.526]`."""
    return f"{mean.mean:.{digits}f} [{mean.low:.{digits}f}, {mean.high:.{digits}f}]"


def generation_table(
    title: str, scores: GenerationScores, update_bytes: Mapping[str, int] | None = None
) -> Table:
    """Consistency with the cloud by method and judge, and how far on the way to the ceiling that is."""
    table = Table(title=f"Consistency with the cloud: {title}")
    judges = list(scores.consistency["no_ka"])
    columns = ["", *judges, "gain %", "way to ceiling", *(["bytes"] if update_bytes else [])]
    for column in columns:
        table.add_column(column, justify="left" if column == "" else "right")
    order = [method for method in NAMES if method in scores.consistency]
    for method in order + [method for method in scores.consistency if method not in NAMES]:
        means = scores.consistency[method]
        row = [NAMES.get(method, method), *(interval(means[judge]) for judge in judges)]
        if method in scores.gain_percent:
            closed = scores.gap_closed.get(method)
            row += [interval(scores.gain_percent[method], 1), "" if closed is None else interval(closed, 2)]
            row += [str(update_bytes.get(method, ""))] if update_bytes else []
        table.add_row(*row)
    return table


def comparison_tables(report: Report) -> list[Table]:
    """A table for each split and kind of noise."""
    return [
        generation_table(f"{split}, {noise} noise", scores, report.update_bytes)
        for noise, by_split in report.scores.items()
        for split, scores in by_split.items()
    ]


def transmission_table(scores: TransmissionScores) -> Table:
    """PSNR by condition and codec."""
    caption = f"gain {interval(scores.gain_db['cala'], 2)} dB"
    table = Table(title="PSNR of received images in dB", caption=caption)
    for column in ("condition", "without T-KA", "with CALA"):
        table.add_column(column, justify="left" if column == "condition" else "right")
    for cell, by_codec in scores.by_condition.items():
        table.add_row(cell, interval(by_codec["no_ka"], 2), interval(by_codec["cala"], 2))
    table.add_section()
    table.add_row("mean over the grid", *(interval(scores.overall[codec], 2) for codec in ("no_ka", "cala")))
    return table


def sweep_tables(summary: Summary) -> list[Table]:
    """Means over the grid, gains by channel and uses, and distances to the bound."""
    tables = [_means(summary)]
    if any(method.gains is not None for method in summary.methods.values()):
        tables.append(_gains(summary))
    if any(method.to_bound for method in summary.methods.values()):
        tables.append(_to_bound(summary))
    return tables


def sweep_lines(summary: Summary) -> list[str]:
    """Worst cells, what arrived of the digital methods, and the duels below 10 dB, a line each."""
    lines = []
    for label, method in summary.methods.items():
        if method.gains is not None:
            cell, gain_db = method.gains.worst
            lines.append(f"{label}: least gain over no_ka {gain_db:+.2f} dB, at {cell}")
        if method.received is not None:
            sent, arrived, images = method.received
            lines.append(
                f"{label}: {arrived} of {sent} sent images arrived, {images - sent} could not be sent;"
                f" nothing can be sent in {method.silent} cells"
            )
    for duel in summary.duels:
        share = f"{duel.won} of {duel.cells} cells below {LOW_SNR_DB:g} dB"
        lines.append(f"{duel.method} beats {duel.rival} in {share} ({100 * duel.won / duel.cells:.0f} %)")
        lines += [f"  behind by {-loss:.2f} dB at {cell}" for cell, loss in duel.losses.items()]
    return lines


def _means(summary: Summary) -> Table:
    table = Table(title=f"Mean over the grid, {summary.images} images, {summary.cells} cells")
    methods = summary.methods
    table.add_column("")
    for label in methods:
        table.add_column(label, justify="right")
    for name, (heading, digits) in METRICS.items():
        found = [method.metrics.get(name) for method in methods.values()]
        if any(found):
            table.add_row(heading, *("" if mean is None else interval(mean, digits) for mean in found))
    gains = [method.gains for method in methods.values()]
    if any(gains):
        table.add_section()
        row = ("" if gain is None else interval(gain.overall, 2) for gain in gains)
        table.add_row("gain over no_ka (dB)", *row)
    return table


def _gains(summary: Summary) -> Table:
    table = Table(title="Gain over no_ka in dB of PSNR, by channel, uses and split")
    found = {label: method.gains for label, method in summary.methods.items() if method.gains is not None}
    table.add_column("")
    for label in found:
        table.add_column(label, justify="right")
    first = next(iter(found.values()))
    for group, unit in (("by_family", ""), ("by_uses", " uses"), ("by_split", "")):
        for name in getattr(first, group):
            table.add_row(f"{name}{unit}", *(interval(getattr(g, group)[name], 2) for g in found.values()))
        table.add_section()
    return table


def _to_bound(summary: Summary) -> Table:
    caption = (
        f"spectrum of {summary.draws} latents; with few the first number is too high, the second too low"
    )
    table = Table(title="Distance to the bound in dB of weighted latent SNR, by SNR", caption=caption)
    found = {label: method.to_bound for label, method in summary.methods.items() if method.to_bound}
    table.add_column("SNR (dB)", justify="right")
    for label in found:
        table.add_column(label, justify="right")
    for snr in next(iter(found.values())):
        gaps = (by_snr[snr] for by_snr in found.values())
        table.add_row(snr, *(f"{gap.measured_db:.2f} / {gap.held_out_db:.2f}" for gap in gaps))
    return table


def demo_tables(demo: Demo) -> list[Table]:
    """Both alignments and the traffic."""
    traffic = Table(title="Traffic of one image")
    traffic.add_column("")
    traffic.add_column("", justify="right")
    for name, unit in (("image_bytes", "bytes as PNG"), ("prompt_bytes", "bytes as prompt")):
        traffic.add_row(unit, f"{demo.traffic[name]['mean']:.0f}")
    traffic.add_row("channel uses to the user", str(demo.traffic["channel_uses"]))
    for kind, size in demo.traffic["bundle_bytes"].items():
        traffic.add_row(f"bytes of the {kind} bundle, once", str(size))
    generation = [generation_table(split, scores) for split, scores in demo.generation.items()]
    return [*generation, transmission_table(demo.transmission), traffic]


def bundle_table(description: dict[str, object]) -> Table:
    """A bundle's manifest, without the list of tensors."""
    table = Table(title=f"bundle {str(description['id'])[:12]}", show_header=False)
    for key, value in description.items():
        shown = ", ".join(value) if key == "files" and isinstance(value, dict) else str(value)
        table.add_row(key, shown)
    return table


def world_lines(described: Mapping[str, Any]) -> list[str]:
    """What a world has and lacks, a line each."""
    rows = {
        "world": described["world"],
        "folder": described["folder"],
        "licence": described["licence"],
        "pictures": f"{described['pixels']} pixels, latents {described['latents']}",
        "edge": described["edge"],
        "cloud": described["cloud"],
        "codec": described["codec"],
        "updates": ", ".join(f"{kind}: {source}" for kind, source in described["updates"].items()),
        "judges": ", ".join(f"{name}: {source}" for name, source in described["judges"].items()),
        "prompts": ", ".join(f"{split} {count}" for split, count in described["prompts"].items()),
        "reported": ", ".join(described["reported"]),
        "methods": ", ".join(described["methods"]),
    }
    lines = [f"{name:<9} {value}" for name, value in rows.items() if value]
    return lines + [f"lacks     {part}: {remedy}" for part, remedy in described["lacks"].items()]

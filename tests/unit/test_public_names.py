"""The names that each package offers, one table; and what importing them costs."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import dekag
from dekag.lazy import homes

NAMES = {
    "dekag": (
        "Condition Delivery InputError Model System World align_generation align_transmission deliver "
        "evaluate_generation evaluate_transmission import_bundle load load_world material preview_bundle "
        "run_demo train_codec"
    ),
    "dekag.alignment": (
        "CalaConfig FewStepConfig MakdConfig apply_generation apply_transmission "
        "read_generation save_generation save_transmission trained_range"
    ),
    "dekag.alignment.generation": (
        "KINDS METHODS AdapterKind DistillationData GenerationMethod GenerationUpdate MakdMethod "
        "TrainingRun apply_update distil_few_steps find_method fit_noise_map method_config "
        "remove_update"
    ),
    "dekag.alignment.transmission": (
        "FAST METHODS AdaptedCodec CalaCodec ConditionRange SnrAttentionCodec TransmissionData adapt "
        "channel_importance fit load_update update_size update_tensors"
    ),
    "dekag.baseline": (
        "DigitalDelivery DigitalLedger DigitalLink LatentSource PictureSource Quality Source Thresholds "
        "best_scheme fit fit_pictures load_pictures load_source read_thresholds save_pictures save_source send "
        "shipped_thresholds"
    ),
    "dekag.bundle": (
        "LAYOUTS Bundle Card Manifest Metaword Metrics digest_folder digest_json digest_tensors "
        "export_bundle load_bundle pack reduce_rank save_bundle usual_layout"
    ),
    "dekag.channel": (
        "CHANNELS BlockFading ChannelKind ChannelSettings Erased NamedChannel Recovered erase_invalid "
        "mmse_equalise named_channel recover"
    ),
    "dekag.cli": "app main",
    "dekag.codec": (
        "CODECS AdaptableCodec CodecClass Encoded EnergyProfile Gain JsccCodec JsccConfig Klt PairDecoder Pairs "
        "QamCodec TrainableCodec TrainedRange check_codec check_latent check_payload "
        "energy_profile_of fit_klt importance_of load_codec normalise_power require_adaptable require_trainable "
        "save_codec truncate"
    ),
    "dekag.data": (
        "Account CloudImages EndpointCloud Entry Faults ImageEndpoint PictureSet Pictures draw_to_folder "
        "open_picture picture_tensor read_dataset read_folder read_prompts"
    ),
    "dekag.engine": "EngineChoice with_engine",
    "dekag.evaluation": (
        "GRIDS NAMED_JUDGES ClipJudge Drawn GenerationScores Grid Judge JudgeSizeWarning Mean "
        "TransmissionScores concept_accuracy consistency contact_sheet gap_closed load_clip load_dino "
        "load_judge mean_interval paired_relative_gain psnr_db read_grid report_figure save_figure "
        "score_accuracy score_generation score_transmission ssim transmit"
    ),
    "dekag.generation": (
        "FAMILIES DiffusersGenerator Family Metaword PipelineSource PromptTruncatedWarning Sampling "
        "check_prompts family_of load_generator prepare_metaword"
    ),
    "dekag.generation.families": (
        "FAMILIES PRX Conditioning Family Flux2Klein PixArtSigma StableDiffusion StableDiffusion3 "
        "StableDiffusionXL family_of known_family make_adaptable"
    ),
    "dekag.registry": (
        "Canary Expiry Lifetimes Listing Looked RegistryClient RegistryError Repository Shelf Shelved earliest"
    ),
    "dekag.serving": "Decoders Site TrafficReport TrafficRow canary_of export_decoders prepare running",
    "dekag.serving.cloud": "Cloud CloudClient CloudSettings create migrate open_database",
    "dekag.serving.edge": "EdgeSettings create make_canary self_test",
    "dekag.serving.http": "ApiError ServiceSettings create_app load_settings serve",
    "dekag.serving.images": "Drawing Engine ImageService Order images_router",
    "dekag.serving.page": "PageConfig PageDefaults PageLimits page_files page_router",
    "dekag.tasks": (
        "AccuracyTask CodecConfig DeliverTask Demo DemoConfig Drawing Extras GenerateTask "
        "GenerationEvaluation GenerationTask ImageSource ImportTask Imported Material Report TrainedCodec Transmission "
        "TransmissionSettings TransmissionTask conditions_of edge_latents "
        "transmission_training"
    ),
    "dekag.tasks.sweep": (
        "Engine Inline Outcome Processes RayCluster Slurm Summary SweepConfig drawer engine_named summarise "
        "sweep usable_cores write"
    ),
    "dekag.training": (
        "ALONE Diffusion Flow Progress Run StateFile Tracking TrainConfig Trained check_scheduler denoising_loss "
        "device_of from_main joined noising process_count train"
    ),
    "dekag.wire": (
        "Frame Recording png_bytes read_frame read_image read_recording staged write_frame "
        "write_images write_json write_recording"
    ),
    "dekag.world": (
        "UPDATE_NAMES Cloud DrawingMethod Model NewWorld System World card describe_world load "
        "load_world locate new_world shipped shipped_parts shipped_worlds"
    ),
}
"""Package -> what it offers. Whoever takes a name away breaks somebody's script."""


AT_ONCE = {"dekag.world": {"card", "locate", "shipped", "shipped_parts", "shipped_worlds"}}
"""Names that a package of late imports has at once, of a module that imports nothing heavy."""


def packages() -> set[str]:
    """Every package but the scripts of the database's migrations."""
    found = {module.name for module in pkgutil.walk_packages(dekag.__path__, "dekag.") if module.ispkg}
    return {"dekag", *(name for name in found if ".migrations" not in name)}


def test_every_package_is_in_the_table() -> None:
    assert packages() == NAMES.keys()


@pytest.mark.parametrize("package", NAMES)
def test_a_package_offers_what_the_table_says(package: str) -> None:
    """In its list of names and in its directory, which is what an editor completes."""
    module = importlib.import_module(package)
    offered = set(module.__all__) - {"__version__"}
    assert offered == set(NAMES[package].split())
    assert offered <= set(dir(module))


@pytest.mark.parametrize("package", NAMES)
def test_every_name_imports_and_says_what_it_is(package: str) -> None:
    """Functions and classes by a sentence of their own; dataclasses are not left with the signature as one."""
    module = importlib.import_module(package)
    for name in NAMES[package].split():
        found = getattr(module, name)
        if inspect.isclass(found) or inspect.isfunction(found):
            text = inspect.getdoc(found)
            assert text, f"{package}.{name} has no docstring"
            assert not text.startswith(f"{name}("), f"{package}.{name} has no docstring"
        else:
            assert not inspect.ismodule(found), f"{package}.{name} is hidden by a module of that name"


@pytest.mark.parametrize("package", NAMES)
def test_lists_and_imports_agree(package: str) -> None:
    """Of a package whose names are imported late: both say the same, and no name is that of a module in it."""
    module = importlib.import_module(package)
    if not homes(package):
        return
    assert homes(package).keys() == set(module.__all__) - {"__version__"} - AT_ONCE.get(package, set())
    assert not homes(package).keys() & {inner.name for inner in pkgutil.iter_modules(module.__path__)}


def test_an_unknown_name_is_the_usual_error() -> None:
    with pytest.raises(AttributeError, match="module 'dekag' has no attribute 'nonsense'"):
        dekag.nonsense  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        from dekag.bundle import nonsense  # type: ignore[attr-defined]  # noqa: F401


QUICK = {
    "dekag": 0.1,
    "dekag.alignment.config": 0.25,
    "dekag.tasks.config": 0.25,
    "dekag.cli": 0.4,
}
"""Module -> most seconds of processor time that its import may take beyond the interpreter's own start."""


def seconds(code: str) -> tuple[float, set[str]]:
    """Processor time of a fresh interpreter on a piece of code, and what it imported."""
    script = f"{code}\nimport sys, time\nprint(time.process_time(), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    taken, *modules = done.stdout.split()
    return float(taken), set(modules)


@pytest.mark.alone
@pytest.mark.parametrize("module", QUICK)
def test_importing_is_quick(module: str) -> None:
    """The best of three, since whatever else runs only adds; and torch is not among what is imported."""
    start = min(seconds("")[0] for _ in range(3))
    runs = [seconds(f"import {module}") for _ in range(3)]
    taken = min(each for each, _ in runs) - start
    print(f"import {module}: {taken:.3f} s")
    assert "torch" not in runs[0][1]
    assert taken < QUICK[module]

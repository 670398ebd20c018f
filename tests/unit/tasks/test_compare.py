"""Methods compared: what each method draws, from which noise, and how the scores are put together."""

from dataclasses import replace

import pytest
import torch

from dekag.bundle.bundle import load_bundle
from dekag.evaluation.generation import CEILING_SEED, EDGE_SEED, Drawn, score_generation
from dekag.evaluation.judges import Judge
from dekag.evaluation.preprocessing import Preprocessing
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.tasks.compare import (
    Compared,
    Drawing,
    GenerationEvaluation,
    bundle_bytes,
    compare,
    draw_references,
    drawing_methods,
    evaluate,
    scores_json,
)
from dekag.types import InputError
from dekag.world import DrawingMethod, load_world, shipped

TEXTS = {"some": ["a red apple on a blue background", "a cat face on a pink background, on the left"]}


@pytest.fixture(scope="module")
def cloud() -> DiffusersGenerator:
    return replace(load_world("emoji").cloud(), sampling=Sampling(steps=2, guidance=2.0))


@pytest.fixture(scope="module")
def edge() -> DiffusersGenerator:
    return replace(load_world("emoji").edge(), sampling=Sampling(steps=2, guidance=2.0))


def compared(
    cloud: DiffusersGenerator,
    edge: DiffusersGenerator,
    methods: dict[str, DrawingMethod],
    drawing: Drawing,
) -> Compared:
    """What was drawn for the one split of TEXTS."""
    references = draw_references(cloud, TEXTS, drawing.at_cloud)
    return compare(edge, methods, TEXTS, references, drawing)["some"]


def test_every_arm_draws_the_same_prompts_and_seeds(
    cloud: DiffusersGenerator, edge: DiffusersGenerator
) -> None:
    known = {
        "no_ka": DrawingMethod(),
        "words": DrawingMethod(words=", 3d"),
        "makd": DrawingMethod(bundles=("emoji/makd", "emoji/food")),
    }
    before = edge(TEXTS["some"], seeds=[EDGE_SEED] * 2)
    found = compared(cloud, edge, known, Drawing(seeds=2))
    assert found.drawn.prompts.tolist() == [0, 0, 1, 1]
    assert {name: len(images) for name, images in found.drawn.by_method.items()} == {
        "no_ka": 1,
        "words": 1,
        "makd": 2,
    }
    torch.testing.assert_close(found.latents["no_ka"][::2], before, atol=1e-4, rtol=1e-4)
    said = edge([text + ", 3d" for text in TEXTS["some"]], seeds=[EDGE_SEED] * 2)
    torch.testing.assert_close(found.latents["words"][::2], said, atol=1e-4, rtol=1e-4)
    again = cloud.images(TEXTS["some"], seeds=[CEILING_SEED] * 2)
    torch.testing.assert_close(found.drawn.ceiling[::2], again, atol=1e-3, rtol=1e-3)
    # nothing of an update stays on the edge
    torch.testing.assert_close(edge(TEXTS["some"], seeds=[EDGE_SEED] * 2), before)


def test_shared_noise_is_the_clouds_noise_for_every_arm(
    cloud: DiffusersGenerator, edge: DiffusersGenerator
) -> None:
    known = {"no_ka": DrawingMethod(), "makd": DrawingMethod(bundles=("emoji/makd",))}
    noise_map = load_bundle(shipped("emoji/makd")).noise_map()
    assert noise_map is not None
    found = compared(cloud, edge, known, Drawing(seeds=1, noise_map=noise_map))
    mapped = replace(edge, noise_map=noise_map)(TEXTS["some"], seeds=[0, 0])
    torch.testing.assert_close(found.latents["no_ka"], mapped, atol=1e-4, rtol=1e-4)
    own = compared(cloud, edge, known, Drawing(seeds=1))
    assert not torch.allclose(own.latents["makd"], found.latents["makd"], atol=1e-2)


def test_the_shipped_noise_map_is_orthogonal() -> None:
    noise_map = load_bundle(shipped("emoji/makd")).noise_map()
    assert noise_map is not None
    torch.testing.assert_close(noise_map @ noise_map.T, torch.eye(len(noise_map)), atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    ("methods", "names"),
    [(["makd"], {"no_ka", "makd"}), (["lora", "words"], {"no_ka", "lora", "words"})],
)
def test_arms_by_name(methods: list[str], names: set[str]) -> None:
    assert set(drawing_methods(load_world("emoji"), methods)) == names


def test_the_leading_arms_have_three_training_seeds() -> None:
    every = drawing_methods(load_world("emoji"), ["all"])
    trained = {name for name, method in every.items() if len(method.bundles) == 3}
    assert {"makd_short", "textual_inversion", "lora"} <= trained


def test_methods_are_compared_at_equal_bytes() -> None:
    """LoRA and DreamBooth send what MAKD sends within a twentieth, LoKr within a quarter."""
    sizes = bundle_bytes(drawing_methods(load_world("emoji"), ["all"]))
    for rival, margin in (("lora", 0.05), ("dreambooth", 0.05), ("lokr", 0.25)):
        assert abs(sizes[rival] - sizes["makd_short"]) < margin * sizes["makd_short"]
    assert sizes["textual_inversion"] < sizes["makd_short"]


def test_an_unknown_method_is_one_clear_line() -> None:
    with pytest.raises(InputError, match="unknown method 'dora'; known are all, makd"):
        drawing_methods(load_world("emoji"), ["makd", "dora"])


def test_a_world_says_what_it_lacks() -> None:
    with pytest.raises(InputError, match="the world emoji has no judge; name one, or train one"):
        evaluate(replace(load_world("emoji"), judge_models={}), GenerationEvaluation())


def _colour_judge() -> Judge:
    def features(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3))

    prepare = Preprocessing(resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Judge(name="colour", preprocessing=prepare, features=features, device=torch.device("cpu"))


def test_scores_average_training_seeds_and_name_the_lead() -> None:
    """Images of plain colours, judged by their mean colour, so that every score is known."""
    red, green = (torch.zeros(4, 3, 8, 8).index_fill_(1, torch.tensor([c]), 1.0) for c in (0, 1))
    mixed = (red + green) / 2
    mostly_green = 0.5 * red + green
    drawn = Drawn(
        prompts=torch.tensor([0, 0, 1, 1]),
        cloud=red,
        ceiling=red,
        by_method={"no_ka": [mostly_green], "makd": [red, mixed], "lora": [mixed, mixed]},
    )
    scores = score_generation(drawn, {"dino": _colour_judge()})
    half, low = 0.5**0.5, 0.2**0.5
    way = (half - low) / (1 - low)
    assert scores.consistency["makd"]["dino"].mean == pytest.approx((1 + half) / 2, abs=1e-4)
    assert scores.gap_closed["lora"].mean == pytest.approx(way, abs=1e-4)
    assert scores.by_training_seed["makd"] == pytest.approx([1.0, way], abs=1e-4)
    assert scores.lead["lora"].mean == pytest.approx((1 - half) / 2 / (1 - low), abs=1e-4)
    assert "makd_is_ahead_by" in scores_json(scores)["lora"]


@pytest.mark.slow
def test_the_report_has_both_noises_and_bytes() -> None:
    wanted = GenerationEvaluation(prompts=2, drawing=Drawing(seeds=1), noises=("own", "shared"))
    report = evaluate(load_world("emoji"), wanted)
    values = report.to_json()
    assert set(values) == {"world", "own", "shared", "update_bytes", "edge_bytes"}
    assert values["update_bytes"]["makd"] < 0.05 * values["edge_bytes"]
    assert len(report.tables()) == 4

"""Adapters of every kind in layers of every name: in, out, loaded, scaled, and refused where a size is wrong."""

import pytest
import torch
from diffusers.loaders.peft import PeftAdapterMixin
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from dekag.alignment.generation import adapters
from dekag.bundle.digest import digest_tensors
from dekag.types import InputError

LAYERS = r"(lo|lower|lora_block|local_attn\.(lo|to_q|weight_proj)|inner\.lokr_w1|lora_A)"
KINDS = list(adapters.KINDS)


class Odd(nn.Module, PeftAdapterMixin):  # type: ignore[misc]
    """A denoiser whose layers are named like parts of adapters."""

    _hf_peft_config_loaded = False

    def __init__(self) -> None:
        super().__init__()
        self.lo = nn.Linear(12, 16)
        self.lower = nn.Conv2d(4, 8, 3, padding=1)
        self.lora_block = nn.Linear(16, 16)
        self.local_attn = nn.ModuleDict(
            {"lo": nn.Linear(16, 8), "to_q": nn.Linear(8, 24), "weight_proj": nn.Conv2d(8, 8, 1)}
        )
        self.inner = nn.ModuleDict({"lo": nn.Linear(3, 3), "lokr_w1": nn.Linear(24, 40)})
        self.lora_A = nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.local_attn["weight_proj"](self.lower(x))
        rows = self.lora_block(self.lo(maps.flatten(2)[:, :, :12]))
        out: Tensor = self.lora_A(self.inner["lokr_w1"](self.local_attn["to_q"](self.local_attn["lo"](rows))))
        return out


def odd() -> Odd:
    torch.manual_seed(0)
    return Odd().eval()


def learned(kind: str, rank: int = 2) -> dict[str, Tensor]:
    """An update as training leaves one: every tensor is away from where it began."""
    denoiser, rng = odd(), torch.Generator().manual_seed(1)
    with adapters.fresh(denoiser, "t", adapters.config_for(kind, rank=rank, targets=LAYERS), seed=0):
        found = adapters.tensors(denoiser, "t")
    return {key: t + 0.1 * torch.randn(t.shape, generator=rng) for key, t in found.items()}


def picture() -> Tensor:
    return torch.rand(2, 4, 4, 4, generator=torch.Generator().manual_seed(2))


def drawn_with(denoiser: Odd, *names: str) -> Tensor:
    denoiser.enable_adapters()
    denoiser.set_adapter(list(names))
    with torch.no_grad():
        out: Tensor = denoiser(picture())
    denoiser.disable_adapters()
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_have_the_names_and_values_that_peft_saves(kind: str) -> None:
    """PEFT's own function is the truth where no layer's name confuses it."""
    denoiser = odd()
    targets = r"(lo|lower|local_attn\.to_q)"
    with adapters.fresh(denoiser, "t", adapters.config_for(kind, rank=2, targets=targets), seed=0):
        ours, theirs = adapters.tensors(denoiser, "t"), get_peft_model_state_dict(denoiser, adapter_name="t")
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 2, 7])
def test_an_update_is_loaded_draws_and_leaves_no_trace(kind: str, rank: int) -> None:
    denoiser, update = odd(), learned(kind, rank)
    plain = denoiser(picture()).detach()
    before = digest_tensors(dict(denoiser.state_dict()))
    adapters.load(denoiser, "one", update)
    back = adapters.tensors(denoiser, "one")
    assert all(torch.equal(back[key], update[key]) for key in update)
    assert digest_tensors(adapters.plain_state(denoiser)) == before
    assert torch.equal(denoiser(picture()), plain)
    assert not torch.allclose(drawn_with(denoiser, "one"), plain, atol=1e-3)
    adapters.remove(denoiser, "one")
    assert digest_tensors(dict(denoiser.state_dict())) == before


def test_only_the_layers_of_an_update_get_one() -> None:
    """`lo` is the end of two other paths as well."""
    denoiser = odd()
    update = {key: t for key, t in learned("lora").items() if key.startswith("lo.")}
    adapters.load(denoiser, "one", update)
    assert adapters.tensors(denoiser, "one").keys() == {"lo.lora_A.weight", "lo.lora_B.weight"}


def test_a_lora_adds_b_a_in_each_layer() -> None:
    """Its strength is that of what it adds: the closed form of a linear layer's output."""
    denoiser, update = odd(), learned("lora")
    own = {key: t for key, t in update.items() if key.startswith("lora_A.")}
    added = own["lora_A.lora_B.weight"] @ own["lora_A.lora_A.weight"]
    states = torch.rand(3, 40, generator=torch.Generator().manual_seed(3))
    expected = denoiser.lora_A(states) + 0.5 * states @ added.T
    adapters.load(denoiser, "weak", adapters.scaled(own, 0.5))
    denoiser.enable_adapters()
    denoiser.set_adapter("weak")
    torch.testing.assert_close(denoiser.lora_A(states), expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if adapters.KINDS[kind].scaled])
def test_without_strength_nothing_is_added(kind: str) -> None:
    denoiser, update = odd(), learned(kind)
    plain = denoiser(picture()).detach()
    assert adapters.can_scale(update)
    adapters.load(denoiser, "none", adapters.scaled(update, 0.0))
    torch.testing.assert_close(drawn_with(denoiser, "none"), plain)


def test_dora_has_one_strength() -> None:
    update = learned("dora")
    assert not adapters.can_scale(update)
    assert adapters.scaled(update, 1.0) == update
    with pytest.raises(InputError, match=r"no strength but 1, got 0\.5"):
        adapters.scaled(update, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_any_other_size_is_refused_before_anything_changes(kind: str) -> None:
    """Every tensor of the update in turn, one longer in every dimension in turn."""
    denoiser, update = odd(), learned(kind)
    before = list(denoiser.state_dict())
    for key, tensor in update.items():
        for dim in range(tensor.ndim):
            wrong = torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim=dim)
            with pytest.raises(InputError, match="the update is for another base: "):
                adapters.load(denoiser, "one", {**update, key: wrong})
    assert list(denoiser.state_dict()) == before
    assert not getattr(denoiser, "peft_config", {})


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_lacks_a_tensor_is_refused(kind: str) -> None:
    denoiser, update = odd(), learned(kind)
    for lost in (key for key in update if key.startswith(("lo.", "lower."))):
        if kind == "dora" and lost.endswith("vector"):
            continue  # the magnitudes of the other layers say that it is missing
        with pytest.raises(InputError, match=r"another base|lacks a tensor"):
            adapters.check_fit(denoiser, {key: t for key, t in update.items() if key != lost})


@pytest.mark.parametrize(
    ("key", "shape", "text"),
    [
        ("lo.lora_A.weight", (2, 13), "lo.lora_A.weight is 2 x 13 there, 2 x 12 here"),
        ("lo.lora_A.weight", (), "lacks a tensor of layer lo that its rank shows in"),
        ("lo.lora_A.weight", (0, 12), "has rank 0 in layer lo; it must be at least 1"),
        ("no.lora_A.weight", (2, 12), "the denoiser has no layer no"),
        ("inner.lora_A.weight", (2, 12), "inner is no single layer of the denoiser"),
        ("lo.ia3_l", (2, 12), r"has a tensor 'lo.ia3_l'; known kinds of adapters are lora, lokr, dora, loha"),
        ("lo.lokr_w1", (4, 4), "mixes several kinds"),
    ],
)
def test_what_cannot_be_an_update_of_this_base_is_one_clear_line(
    key: str, shape: tuple[int, ...], text: str
) -> None:
    update = {**learned("lora"), key: torch.ones(shape)}
    with pytest.raises(InputError, match=text) as caught:
        adapters.check_fit(odd(), update)
    assert "\n" not in str(caught.value)


def test_kinds_share_a_denoiser_if_lora_comes_first() -> None:
    denoiser, update = odd(), {kind: learned(kind) for kind in KINDS}
    for kind in ("lora", "dora", "lokr", "loha"):
        adapters.load(denoiser, kind, update[kind])
    assert digest_tensors(adapters.plain_state(denoiser)) == digest_tensors(adapters.plain_state(odd()))
    adapters.check_fit(denoiser, update["lora"])
    with pytest.raises(InputError, match="LoRA cannot be added to an update of another kind"):
        adapters.load(denoiser, "more", update["lora"])
    for kind in KINDS:
        adapters.remove(denoiser, kind)
    assert list(denoiser.state_dict()) == list(odd().state_dict())


def test_a_check_of_sizes_draws_no_random_number() -> None:
    denoiser, updates = odd(), [learned(kind) for kind in KINDS]
    before = torch.get_rng_state()
    for update in updates:
        adapters.check_fit(denoiser, update)
    assert torch.equal(torch.get_rng_state(), before)

"""What a task would buy of an endpoint, known before the first picture is bought."""

from dataclasses import dataclass

from dekag.data.bought import EndpointCloud
from dekag.data.endpoint import ImageEndpoint
from dekag.tasks.material import ImageSource
from dekag.tasks.validate import VALIDATION_SEED
from dekag.world import World


@dataclass(frozen=True)
class Purchases:
    """Pictures that an alignment would buy, and of whom; of nobody, none."""

    count: int
    endpoint: ImageEndpoint | None


def purchases(world: World, source: ImageSource) -> Purchases:
    """What an alignment would buy to train on and to validate with; nothing is bought."""
    wanted, endpoint = _to_train(world, source)
    own = world.cloud_model
    if endpoint is None and isinstance(own, ImageEndpoint):
        endpoint = own
    return Purchases(wanted + _to_validate(world, source), endpoint)


def check_budget(world: World, source: ImageSource) -> None:
    """Refuse an alignment that would buy more pictures than the budget of its account allows.

    Raises InputError before anything is bought.
    """
    wanted = purchases(world, source)
    if wanted.endpoint is not None:
        wanted.endpoint.account.require(wanted.count)


def _to_train(world: World, source: ImageSource) -> tuple[int, ImageEndpoint | None]:
    """Pictures that would be bought to train on, and of whom."""
    if source.endpoint is not None:
        cloud = EndpointCloud(endpoint=source.endpoint, folder=source.folder)
        return cloud.to_buy(source.prompts(world)), source.endpoint
    own = world.cloud_model
    if source.elsewhere or not isinstance(own, ImageEndpoint):
        return 0, None
    return world.endpoint_cloud(own).to_buy(source.prompts(world)), own


def _to_validate(world: World, source: ImageSource) -> int:
    """Pictures that would be bought of the world's endpoint to validate with."""
    own = world.cloud_model
    split = "validation" if source.domain is None else f"validation:{source.domain}"
    if source.elsewhere or not isinstance(own, ImageEndpoint) or split not in world.splits:
        return 0
    prompts = world.prompts(split)
    return world.endpoint_cloud(own).to_buy(prompts, seeds=[VALIDATION_SEED] * len(prompts))

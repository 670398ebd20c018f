"""The updates of an edge: on its shelf, in its memory, and the active ones."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from dekag.alignment.generation.adapters import own_bytes
from dekag.alignment.generation.bundles import apply_generation
from dekag.alignment.generation.update import remove_update
from dekag.alignment.transmission.bundles import apply_transmission, trained_range
from dekag.bundle.manifest import Kind
from dekag.codec import AdaptableCodec, TrainedRange
from dekag.engine.drawing import EngineChoice, engine_graphs, with_engine
from dekag.engine.graphs import exported
from dekag.generation.diffusers import DiffusersGenerator
from dekag.registry import Shelf, Shelved
from dekag.serving.edge.selftest import self_test
from dekag.serving.http.errors import ApiError
from dekag.serving.http.logs import facts
from dekag.serving.images.api import unknown_model
from dekag.serving.images.engine import Engine, Model
from dekag.types import Codec, InputError

log = logging.getLogger("dekag.serving")
KINDS: tuple[Kind, ...] = ("generation", "transmission")
MOST_MERGED = 4
"""Updates in memory up to which each has weights, and an engine, of its own; of more all share the base's weights."""


@dataclass(frozen=True, kw_only=True)
class Coder:
    """A codec with the update that it carries, if any, and the conditions that this was trained for."""

    codec: Codec
    bundle: str | None = None
    trained: TrainedRange | None = None


class Bundles:
    """Implements `images.api.Models` over a shelf.

    Updates are put into the pipeline and taken out between two batches, and one that an order waits for stays:
    changes touch no running request. generator: the edge without an update, of torch. choice: what draws, with
    however few updates in memory; more than MOST_MERGED are drawn with by torch, and share the edge's weights.
    """

    def __init__(
        self,
        *,
        generator: DiffusersGenerator,
        codec: AdaptableCodec,
        shelf: Shelf,
        engine: Engine,
        max_loaded: int,
        choice: EngineChoice,
    ) -> None:
        self.shelf = shelf
        self.codec = codec
        self.generator = generator
        self.plain = Model(generator=generator)
        self.plain_coder = Coder(codec=codec)
        self._engine = engine
        self._max_loaded = max_loaded
        self._merge = max_loaded <= MOST_MERGED
        self._choice = choice if self._merge else EngineChoice(name="torch")
        self._changing = asyncio.Lock()
        self._models: OrderedDict[str, Model] = OrderedDict()
        self._coders: OrderedDict[str, Coder] = OrderedDict()
        self._active: dict[Kind, str | None] = dict.fromkeys(KINDS)

    def active(self, kind: Kind) -> str | None:
        """Id of the update that is used unless another one is asked for."""
        return self._active[kind]

    def pinned(self, bundle_id: str) -> bool:
        """Whether an operator keeps an update, whatever a channel lists."""
        return any(bundle.pinned for bundle in self.shelf.bundles() if bundle.id == bundle_id)

    def asks_active(self, name: str | None, bundle: str | None) -> bool:
        """Whether a request is for the active update, by saying so or by naming none."""
        return name in (None, "edge") and bundle in (None, "active")

    def loaded(self, bundle_id: str) -> bool:
        """Whether an update is in memory."""
        return bundle_id in self._models or bundle_id in self._coders

    def names(self) -> list[str]:
        """The edge, without its update, and with each one on the shelf."""
        ids = [b.id for b in self.shelf.bundles() if b.kind == "generation" and b.bad is None]
        return ["edge", "edge/plain", *(f"edge/{bundle_id[:12]}" for bundle_id in ids)]

    @asynccontextmanager
    async def using(self, name: str | None, bundle: str | None) -> AsyncIterator[Model]:
        """The model of that name, or the edge with the update that is asked for."""
        model = await self._model(self._wanted(name, bundle))
        model.users += 1
        try:
            yield model
        finally:
            model.users -= 1

    async def coder(self) -> Coder:
        """The codec with the active update."""
        return await self.coder_with(self._active["transmission"])

    async def coder_with(self, wanted: str | None) -> Coder:
        """The codec with one update, or without."""
        if wanted is None:
            return self.plain_coder
        if wanted not in self._coders:
            await self.load(wanted)
        return self._coders[wanted]

    async def restore(self) -> None:
        """Take up where the last process ended: the active updates, or where one fails the one before it."""
        self.plain = await self._prepared(self.generator, None)
        for kind in KINDS:
            while (wanted := self.shelf.active(kind)) is not None:
                try:
                    await self.load(wanted)
                except InputError as error:
                    log.error(
                        "an update failed and is rolled back", extra=facts(bundle=wanted, why=str(error))
                    )
                    try:
                        # what the disk has damaged may come again, and is not bad for that
                        if wanted not in self.shelf.verify():
                            self.shelf.mark_bad(wanted, str(error))
                            self.shelf.roll_back(kind)
                    except OSError as refused:  # of a folder that is read-only
                        log.error("it cannot be rolled back", extra=facts(why=str(refused)))
                        break
                else:
                    self._active[kind] = wanted
                    break

    def find(self, start: str) -> Shelved:
        """The bundle on the shelf whose id starts so. Raises ApiError 404 if there is none, 400 for several."""
        found = [bundle for bundle in self.shelf.bundles() if bundle.id.startswith(start)]
        if not found:
            raise ApiError(404, f"there is no bundle {start[:12]}", code="bundle_not_found", param="bundle")
        if len(found) > 1:
            raise ApiError(400, f"several bundles start with {start[:12]}", param="bundle")
        return found[0]

    async def load(self, bundle_id: str) -> None:
        """Bring an update into memory. Raises InputError if it is damaged or for another model."""
        async with self._changing:
            await self._load(bundle_id)

    async def activate(self, bundle_id: str) -> None:
        """Use an update from now on, once it has passed its test; one that fails is marked, and nothing changes.

        Raises InputError if it fails.
        """
        bundle = self.find(bundle_id)
        async with self._changing:
            try:
                await self._load(bundle.id)
                await self._engine.between(self._test, bundle.id)
            except InputError as error:
                self.shelf.mark_bad(bundle.id, str(error)[:200])
                await self._unload(bundle.id)
                raise
            self.shelf.activate(bundle.id)
            self._active[bundle.kind] = bundle.id
        log.info("an update is active", extra=facts(bundle=bundle.id, kind=bundle.kind, name=bundle.name))

    async def remove(self, bundle_id: str) -> None:
        """Take a bundle off the shelf and, once nobody waits for it, out of memory.

        Raises InputError if it is pinned or active.
        """
        async with self._changing:
            self.shelf.remove(bundle_id)
            await self._unload(bundle_id)

    def _wanted(self, name: str | None, bundle: str | None) -> str | None:
        """Id of the update that a request names, by its model or by itself."""
        head, _, tail = (name or "edge").partition("/")
        if head != "edge" or (name is not None and tail == "" and name != "edge"):
            raise unknown_model(name or "")
        if tail and bundle is not None:
            raise ApiError(400, f"{name} says which update; leave out bundle", param="bundle")
        if tail == "plain" or bundle == "none":
            return None
        if tail:
            if name not in self.names():
                raise unknown_model(name or "")
            return self.find(tail).id
        if bundle is None or bundle == "active":
            return self._active["generation"]
        found = self.find(bundle)
        if found.kind != "generation":
            raise ApiError(400, f"bundle {bundle[:12]} is for {found.kind}; name one for generation")
        return found.id

    async def _model(self, wanted: str | None) -> Model:
        if wanted is None:
            return self.plain
        while wanted not in self._models:  # which another load can push out again
            await self.load(wanted)
        self._models.move_to_end(wanted)
        return self._models[wanted]

    async def _load(self, bundle_id: str) -> None:
        if self.loaded(bundle_id):
            return
        path = self.shelf.path(bundle_id)
        if self.find(bundle_id).kind == "generation":
            load = partial(apply_generation, self.generator, path, merge=self._merge)
            generator, bundle = await self._engine.between(load)
            self._models[bundle.id] = await self._prepared(generator, bundle.id)
        else:
            codec, bundle = await self._engine.between(apply_transmission, self.codec, path)
            self._coders[bundle.id] = Coder(codec=codec, bundle=bundle.id, trained=trained_range(bundle))
        await self._make_room(bundle_id)

    async def _prepared(self, generator: DiffusersGenerator, bundle_id: str | None) -> Model:
        """A model whose engine and sizes of batches are known; what has to be exported is, beside the drawing."""
        graphs = await self._engine.between(engine_graphs, generator, self._choice)
        await asyncio.to_thread(exported, self._choice.folder, graphs)
        own = own_bytes(generator.denoiser, self.generator.denoiser)
        generator = await self._engine.between(with_engine, generator, self._choice)
        model = Model(generator=generator, bundle=bundle_id)
        await self._engine.prepare(model)
        told = facts(bundle=bundle_id or "none", engine=generator.engine, own_bytes=own)
        log.info("a model is loaded", extra=told)
        return model

    async def _make_room(self, newest: str) -> None:
        """Unload what was not used for longest, but nothing that is active or waited for."""
        for held in (self._models, self._coders):
            spare = [i for i in held if i not in {newest, *self._active.values()}]
            for bundle_id in spare[: max(0, len(held) - self._max_loaded)]:
                await self._unload(bundle_id)

    async def _unload(self, bundle_id: str) -> None:
        self._coders.pop(bundle_id, None)
        model = self._models.get(bundle_id)
        if model is not None and model.users == 0:
            del self._models[bundle_id]
            await self._engine.between(remove_update, model.generator)

    def _test(self, bundle_id: str) -> None:
        """Test a loaded update, in the model's thread."""
        self_test(
            self._models.get(bundle_id, self.plain).generator,
            self._coders[bundle_id].codec if bundle_id in self._coders else None,
            self.shelf.canary(bundle_id),
        )

"""The engine: a line of at most so many images, drawn in batches of one shape by one thread.

On one machine the bytes of a picture can depend on the size of its batch, but neither on its mates nor on its place
among them. So a batch has one of the sizes that were found to agree (`shapes`), filled up with copies, and every
picture is the same however many others are asked for. All that touches a model runs in the one thread: what happens
between two batches, as the change of an update, touches none that is being drawn.
"""

import asyncio
import logging
import random
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from dekag.errors import PromptTruncatedWarning
from dekag.generation.diffusers import DiffusersGenerator
from dekag.serving.http.errors import ApiError
from dekag.serving.http.logs import facts
from dekag.serving.images.metrics import EngineMetrics
from dekag.serving.images.shapes import equal_sizes
from dekag.types import Image, Latent

log = logging.getLogger("dekag.serving")
Result = TypeVar("Result")
SMOOTHING = 0.2
"""Weight of the newest batch in the mean time of a batch."""


@dataclass(kw_only=True, eq=False)
class Model:
    """What draws: a generator with the update that it carries, if any.

    bundle: the update's id. users: orders that are under way; while there are any, the update stays loaded.
    sizes: of batches that give the same bytes, once they were measured.
    """

    generator: DiffusersGenerator
    bundle: str | None = None
    users: int = 0
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Order:
    """One prompt, drawn once with each seed. steps: the model's own if None. partials: pictures on the way.

    caller: who asks; callers have equal shares.
    """

    model: Model
    prompt: str
    seeds: tuple[int, ...]
    steps: int | None = None
    partials: int = 0
    caller: str = ""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One image [1, 3, height, width], and its latent if the model has one.

    steps: that were made. tokens: of the prompt. unread: how many of them the text encoder left out.
    """

    seed: int
    image: Image
    latent: Latent | None
    steps: int
    tokens: int
    unread: int
    queue_ms: float
    draw_ms: float


class StoppedError(Exception):
    """Nobody waits for the batch any more."""


@dataclass(kw_only=True, eq=False)
class _Ticket:
    """One image of an order, in the line or being drawn."""

    order: Order
    seed: int
    done: asyncio.Future[Drawn]
    tell: Callable[[Image], None]
    entered: float = field(default_factory=time.perf_counter)

    @property
    def group(self) -> tuple[int, int | None]:
        """Tickets of one group can share a batch."""
        return id(self.order.model), self.order.steps


class Drawing:
    """An order that was accepted. `result` waits for its images; `partials` has those on the way."""

    def __init__(self, tickets: list[_Ticket], partials: "asyncio.Queue[Image]") -> None:
        self._tickets = tickets
        self.partials = partials

    async def result(self) -> list[Drawn]:
        """The images in the order of the seeds; who stops waiting frees their places."""
        try:
            return await asyncio.gather(*(ticket.done for ticket in self._tickets))
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Free the places of what is not drawn yet."""
        for ticket in self._tickets:
            ticket.done.cancel()


class Engine:
    """Draws for its callers in turn, the orders of one first come, first served.

    Who was served longest ago is first; those of one model and as many steps share batches, an image of each caller
    at a time. batch: most images of a batch. exact: whether a picture's bytes are the same in any company. queue:
    images that wait or are drawn at a time; more are refused, but for a caller who has less than an equal share of
    them: for him there is as much room again.
    threads: of the model; the machine's choice if None.
    """

    def __init__(
        self,
        *,
        batch: int,
        queue: int,
        metrics: EngineMetrics,
        threads: int | None = None,
        exact: bool = True,
    ) -> None:
        self._batch = batch
        self._exact = exact
        self._queue = queue
        self._metrics = metrics
        self._line: deque[_Ticket] = deque()
        self._served: dict[str, int] = {}
        self._batches = 0
        self._places = Counter[str]()
        self._jobs = 0
        self._batch_seconds = 1.0
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        start = None if threads is None else lambda: torch.set_num_threads(threads)
        self._executor = ThreadPoolExecutor(1, "engine", initializer=start)
        metrics.watch(self._places.total)

    async def start(self) -> None:
        """Begin to draw."""
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stop after the batch that is being drawn."""
        for ticket in list(self._line):
            ticket.done.cancel()
        if self._worker is not None:
            self._worker.cancel()
        await asyncio.to_thread(self._executor.shutdown)

    @property
    def failure(self) -> str | None:
        """Why nothing is drawn any more, if so."""
        return "the engine does not run" if self._worker is None or self._worker.done() else None

    def submit(self, order: Order) -> Drawing:
        """Take an order into the line. Raises ApiError 429 if there is no room; it says when to come back."""
        self.require_room(len(order.seeds), order.caller)
        partials: asyncio.Queue[Image] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(image: Image) -> None:
            loop.call_soon_threadsafe(partials.put_nowait, image)

        tickets = [
            _Ticket(order=order, seed=seed, done=loop.create_future(), tell=tell) for seed in order.seeds
        ]
        for ticket in tickets:
            self._enter(ticket)
        return Drawing(tickets, partials)

    async def draw(self, order: Order) -> list[Drawn]:
        """Submit an order and wait for its images."""
        return await self.submit(order).result()

    def require_room(self, images: int, caller: str = "") -> None:
        """Raise ApiError 429 unless so many more images of a caller may wait."""
        over = self._places.total() + images - self._queue
        share = self._queue // len({*self._places, caller})
        has_share = self._places[caller] + images <= share and over <= self._queue
        if over > 0 and not has_share:
            raise self._busy(over)

    async def compute(self, work: Callable[..., Result], *args: Any) -> Result:
        """Do a client's short work in the model's thread. Raises ApiError 429 if too much of it waits."""
        if self._jobs >= self._queue:
            raise self._busy(1)
        self._jobs += 1
        try:
            return await self.between(work, *args)
        finally:
            self._jobs -= 1

    async def between(self, work: Callable[..., Result], *args: Any) -> Result:
        """Do work in the model's thread, hence between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)

    async def prepare(self, model: Model) -> None:
        """Measure which sizes of batches a model draws alike in, before it is asked for anything."""
        await self.between(self._sizes, model)

    def _sizes(self, model: Model) -> tuple[int, ...]:
        """Those of a model, in the model's thread."""
        if not model.sizes:
            most = min(self._batch, model.generator.at_once)
            model.sizes = (
                equal_sizes(model.generator, most, _drawn) if self._exact else tuple(range(1, most + 1))
            )
            log.info(
                "batches that agree", extra=facts(bundle=model.bundle or "none", sizes=list(model.sizes))
            )
        return model.sizes

    def _busy(self, over: int) -> ApiError:
        """The error for a full queue: come back when as many places are free, and not all at once."""
        self._metrics.refused.inc()
        seconds = self._batch_seconds * -(-over // self._batch) * random.uniform(1.0, 1.5)
        headers = {
            "retry-after": str(max(1, round(seconds))),
            "retry-after-ms": str(max(1, round(1000 * seconds))),
        }
        return ApiError(429, f"{self._queue} images are under way, which is the most", headers=headers)

    def _enter(self, ticket: _Ticket) -> None:
        self._places[ticket.order.caller] += 1
        ticket.order.model.users += 1
        ticket.done.add_done_callback(lambda _: self._leave(ticket))
        self._line.append(ticket)
        self._arrived.set()

    def _leave(self, ticket: _Ticket) -> None:
        caller = ticket.order.caller
        self._places[caller] -= 1
        if not self._places[caller]:
            del self._places[caller]
        ticket.order.model.users -= 1
        if ticket in self._line:
            self._line.remove(ticket)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            if batch := self._next_batch():
                await self._serve(batch)
            else:
                self._arrived.clear()

    def _next_batch(self) -> list[_Ticket]:
        """An image of each caller in turn, all of the group of the first."""
        waiting = [ticket for ticket in self._line if not ticket.done.done()]
        if not waiting:
            return []
        self._served = {caller: at for caller, at in self._served.items() if caller in self._places}
        waiting.sort(key=lambda ticket: self._served.get(ticket.order.caller, 0))
        mates = [ticket for ticket in waiting if ticket.group == waiting[0].group]
        batch = _in_turn(mates)[: self._batch]
        self._batches += 1
        for ticket in batch:
            self._served[ticket.order.caller] = self._batches
            self._line.remove(ticket)
        return batch

    async def _serve(self, batch: list[_Ticket]) -> None:
        started = time.perf_counter()
        try:
            drawn = await self.between(self._draw, batch)
        except StoppedError:
            return
        except Exception as error:
            for ticket in batch:
                if not ticket.done.done():
                    ticket.done.set_exception(error)
            return
        seconds = time.perf_counter() - started
        self._batch_seconds += SMOOTHING * (seconds - self._batch_seconds)
        self._metrics.observe(len(batch), seconds)
        for ticket, image in zip(batch, drawn, strict=True):
            if not ticket.done.done():
                ticket.done.set_result(image)

    def _draw(self, batch: list[_Ticket]) -> list[Drawn]:
        """Draw one batch, in the model's thread."""
        started = time.perf_counter()
        order = batch[0].order
        sizes = self._sizes(order.model)
        generator = _with_steps(order.model.generator, order.steps, sizes[-1])
        rest = len(batch) % sizes[-1]
        size = next(size for size in sizes if size >= rest) if rest else 0
        rows = [*batch, *[batch[0]] * (size - rest)]
        prompts, seeds = [row.order.prompt for row in rows], [row.seed for row in rows]
        with warnings.catch_warnings():
            # it would put the prompt into the log; the answer says it instead
            warnings.simplefilter("ignore", PromptTruncatedWarning)
            images, latents = _drawn(generator, prompts, seeds, _Watch(generator, rows))
        draw_ms = 1000 * (time.perf_counter() - started)
        return [
            Drawn(
                seed=ticket.seed,
                image=images[row : row + 1],
                latent=None if latents is None else latents[row : row + 1].clone(),
                steps=generator.pipeline.num_timesteps,
                **_tokens(generator, ticket.order.prompt),
                queue_ms=1000 * (started - ticket.entered),
                draw_ms=draw_ms,
            )
            for row, ticket in enumerate(batch)
        ]


def _in_turn(tickets: list[_Ticket]) -> list[_Ticket]:
    """The first of each caller, then the second of each, and so on."""
    numbers = Counter[str]()
    rounds = []
    for ticket in tickets:
        rounds.append(numbers[ticket.order.caller])
        numbers[ticket.order.caller] += 1
    return [ticket for _, ticket in sorted(zip(rounds, tickets, strict=True), key=lambda pair: pair[0])]


class _Watch:
    """Looks at each step of a batch: stops it when nobody waits, and sends the pictures on the way."""

    def __init__(self, generator: DiffusersGenerator, rows: list[_Ticket]) -> None:
        self._generator = generator
        self._rows = rows

    def __call__(self, first: int, step: int, left: Latent) -> None:
        """Report a step of the rows from `first` on."""
        if all(row.done.done() for row in self._rows):
            raise StoppedError
        total = self._generator.pipeline.num_timesteps
        rows = dict.fromkeys(self._rows[first : first + len(left)])  # without the copies
        wanted = [row for row in rows if step in _partial_steps(row.order.partials, total)]
        if wanted:
            images = self._generator.decode(left)
            for row in wanted:
                at = self._rows.index(row) - first
                row.tell(images[at : at + 1])


def _partial_steps(partials: int, total: int) -> set[int]:
    """The steps after which a picture on the way is sent."""
    return {round(total * (number + 1) / (partials + 1)) for number in range(partials)} - {0, total}


def _with_steps(generator: DiffusersGenerator, steps: int | None, batch: int) -> DiffusersGenerator:
    sampling = generator.sampling
    return replace(generator, sampling=replace(sampling, steps=steps or sampling.steps, batch=batch))


def _drawn(
    generator: DiffusersGenerator, prompts: list[str], seeds: list[int], watch: _Watch | None = None
) -> tuple[Image, Latent | None]:
    if not generator.has_family:  # a cloud that is only asked for images
        return generator.images(prompts, seeds=seeds), None
    latents = generator(prompts, seeds=seeds, on_step=watch)
    return generator.decode(latents), latents


def _tokens(generator: DiffusersGenerator, prompt: str) -> dict[str, int]:
    """How many tokens a prompt has, and how many of them are not read."""
    if not generator.has_family:
        return {"tokens": 0, "unread": 0}
    family = generator.family
    tokenizer = getattr(generator.pipeline, next(iter(family.encoders.values())))
    tokens = family.length(tokenizer, prompt)
    word = 0 if generator.metaword is None else generator.metaword.word.count
    return {"tokens": tokens, "unread": max(0, tokens + word - family.limit(tokenizer))}

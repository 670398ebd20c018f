"""The engine: same bytes in any company, first come first served, and nothing is drawn for nobody."""

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from prometheus_client import CollectorRegistry
from running_service import RunningService

from dekag.alignment.generation.bundles import apply_generation
from dekag.engine.drawing import EngineChoice, with_engine
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.serving.http.errors import ApiError
from dekag.serving.images.engine import Drawn, Engine, Model, Order
from dekag.serving.images.metrics import EngineMetrics
from dekag.types import InputError
from dekag.world import load_world, shipped

PROMPTS = ("a red apple on a blue background", "a cat face on a pink background", "a ghost")


@pytest.fixture(scope="module")
def plain() -> DiffusersGenerator:
    return load_world("emoji").edge()


@asynccontextmanager
async def running(*, batch: int = 4, queue: int = 32) -> AsyncIterator[Engine]:
    engine = Engine(batch=batch, queue=queue, metrics=EngineMetrics(CollectorRegistry()))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def order(model: Model, prompt: str = PROMPTS[0], *, seeds: tuple[int, ...] = (0,), steps: int = 2) -> Order:
    return Order(model=model, prompt=prompt, seeds=seeds, steps=steps)


def same(one: Drawn, other: Drawn) -> bool:
    return torch.equal(one.image, other.image) and torch.equal(one.latent, other.latent)


def test_a_picture_has_the_same_bytes_in_any_company(plain: DiffusersGenerator) -> None:
    """Two models and two numbers of steps in one line, at random places: each as if it were alone."""

    async def test() -> None:
        aligned, bundle = apply_generation(plain, shipped("emoji/makd"))
        models = [Model(generator=plain), Model(generator=aligned, bundle=bundle.id)]
        kinds = [(m, p, s, n) for m in models for p in PROMPTS for s in (1, 2) for n in (2, 3)]
        async with running() as engine:
            alone = [(await engine.draw(order(m, p, seeds=(s,), steps=n)))[0] for m, p, s, n in kinds]
            places = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(0)).tolist()
            waits = {
                at: engine.draw(order(m, p, seeds=(s,), steps=n))
                for at in places
                for m, p, s, n in [kinds[at]]
            }
            among = dict(zip(waits, await asyncio.gather(*waits.values()), strict=True))
        assert all(same(alone[at], among[at][0]) for at in places)
        assert len({image.image.numpy().tobytes() for image in alone}) == len(kinds)

    run(test)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_orders_of_three_updates_in_random_company(
    name: str, plain: DiffusersGenerator, tmp_path: Path
) -> None:
    """300 orders of one to three images, eight at a time: every picture has the bytes that it has alone."""
    choice = EngineChoice(name=name, folder=tmp_path)
    models = []
    for update in ("makd", "food", "animals"):
        merged, bundle = apply_generation(plain, shipped(f"emoji/{update}"), merge=True)
        models.append(Model(generator=with_engine(merged, choice), bundle=bundle.id))
    kinds = [(m, p, s, n) for m in models for p in PROMPTS for s in range(4) for n in (2, 3)]
    rng = random.Random(0)

    async def test() -> None:
        async with running() as engine:
            for model in models:
                await engine.prepare(model)
            alone = {}
            for m, p, s, n in kinds:
                (alone[m.bundle, p, s, n],) = await engine.draw(order(m, p, seeds=(s,), steps=n))
            at_once = asyncio.Semaphore(8)

            async def among() -> None:
                m, p, _, n = rng.choice(kinds)
                seeds = tuple(rng.sample(range(4), rng.randint(1, 3)))
                async with at_once:
                    drawn = await engine.draw(order(m, p, seeds=seeds, steps=n))
                assert all(
                    same(found, alone[m.bundle, p, s, n]) for s, found in zip(seeds, drawn, strict=True)
                )

            await asyncio.gather(*(among() for _ in range(300)))
            print(f"sizes that agree: {[model.sizes for model in models]}")
        assert len({image.image.numpy().tobytes() for image in alone.values()}) == len(kinds)

    run(test)


def test_first_come_is_first_served_and_mates_share_a_batch(plain: DiffusersGenerator) -> None:
    async def test() -> None:
        one, other = Model(generator=plain), Model(generator=replace(plain, sampling=Sampling(guidance=2.0)))
        ended: list[str] = []

        async def draw(engine: Engine, name: str, model: Model) -> None:
            await engine.draw(order(model))
            ended.append(name)

        async with running(batch=2) as engine:
            names = [("first", one), ("a1", one), ("b1", other), ("a2", one), ("b2", other), ("a3", one)]
            await asyncio.gather(*(draw(engine, name, model) for name, model in names))
        # the line holds first, a1, b1, a2, b2, a3
        assert ended == ["first", "a1", "b1", "b2", "a2", "a3"]

    run(test)


def test_callers_take_turns(plain: DiffusersGenerator) -> None:
    """Beside four callers of ten images each, one who asks for one at a time waits for twice his time and a batch.

    Counted in batches, so nothing depends on the machine: the one that is being drawn, at most one whose callers were
    served longer ago, and his own, also where his orders cannot share a batch with theirs.
    """

    async def test() -> None:
        registry = CollectorRegistry()
        model = Model(generator=plain)
        engine = Engine(batch=4, queue=32, metrics=EngineMetrics(registry))
        await engine.start()
        over = asyncio.Event()

        async def greedy(name: str) -> None:
            while not over.is_set():
                with suppress(ApiError):
                    await engine.draw(replace(order(model, seeds=tuple(range(10))), caller=name))
                await asyncio.sleep(0)

        others = [asyncio.create_task(greedy(f"greedy-{number}")) for number in range(4)]
        await asyncio.sleep(0.5)
        waited = []
        for number in range(6):
            before = registry.get_sample_value("dekag_batch_seconds_count")
            await engine.draw(replace(order(model, steps=2 + number % 2), caller="modest"))
            after = registry.get_sample_value("dekag_batch_seconds_count")
            assert before is not None
            assert after is not None
            waited.append(after - before)
        over.set()
        await asyncio.gather(*others)
        await engine.stop()
        print(f"batches until his image was there: {waited}")
        assert max(waited) <= 3

    run(test)


def test_a_full_line_has_room_for_who_has_nothing_in_it(plain: DiffusersGenerator) -> None:
    """An equal share, and together at most as much again; whoever has his share is refused."""

    async def test() -> None:
        model = Model(generator=plain)
        async with running(queue=10) as engine:
            full = engine.submit(replace(order(model, seeds=tuple(range(10))), caller="greedy"))
            with pytest.raises(ApiError):
                engine.submit(replace(order(model), caller="greedy"))
            others = [
                engine.submit(replace(order(model, seeds=tuple(range(10 // n))), caller=f"caller-{n}"))
                for n in (2, 3)
            ]
            with pytest.raises(ApiError):
                engine.submit(replace(order(model, seeds=tuple(range(3))), caller="caller-4"))
            others.append(engine.submit(replace(order(model, seeds=(0, 1)), caller="caller-4")))
            with pytest.raises(ApiError):
                engine.submit(replace(order(model), caller="caller-5"))
            for drawing in (full, *others):
                drawing.cancel()

    run(test)


def test_a_full_line_refuses_and_says_when_to_come_back(plain: DiffusersGenerator) -> None:
    async def test() -> None:
        model = Model(generator=plain)
        async with running(queue=10) as engine:
            waiting = [engine.submit(order(model, seeds=(0, 1, 2, 3))) for _ in range(2)]
            with pytest.raises(ApiError) as refused:
                engine.submit(order(model, seeds=(0, 1, 2)))
            assert refused.value.status_code == 429
            assert int(refused.value.headers["retry-after-ms"]) > 0
            assert model.users == 8
            for drawing in waiting:
                await drawing.result()
            assert len(await engine.draw(order(model, seeds=tuple(range(10))))) == 10
            assert model.users == 0

    run(test)


def test_who_leaves_frees_the_place_within_one_step(plain: DiffusersGenerator) -> None:
    """Of 50 steps at most one begins after nobody waits any more; places that wait are free at once."""

    async def test() -> None:
        calls: list[float] = []
        model = Model(generator=plain, sizes=(4,))
        hook = plain.denoiser.register_forward_hook(lambda *_: calls.append(time.perf_counter()))
        async with running(queue=10) as engine:
            drawing = asyncio.create_task(engine.draw(order(model, seeds=tuple(range(10)), steps=50)))
            while len(calls) < 3:
                await asyncio.sleep(0.005)
            drawing.cancel()
            begun = len(calls)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            engine.require_room(10)
            await engine.between(lambda: None)
            print(
                f"{len(calls) - begun} steps were made after the client had gone, of {50 - begun} that were left"
            )
            assert len(calls) - begun <= 1
            hook.remove()
            assert len(await engine.draw(order(model))) == 1

    run(test)


def test_a_batch_goes_on_for_those_who_stay(plain: DiffusersGenerator) -> None:
    async def test() -> None:
        model = Model(generator=plain)
        async with running() as engine:
            (alone,) = await engine.draw(order(model, seeds=(5,), steps=4))
            leaver, stayer = (
                asyncio.create_task(engine.draw(order(model, seeds=(s,), steps=4))) for s in (4, 5)
            )
            await asyncio.sleep(0.02)
            leaver.cancel()
            (stayed,) = await stayer
            assert same(alone, stayed)

    run(test)


def test_a_failure_is_told_to_those_it_concerns_and_the_engine_goes_on(plain: DiffusersGenerator) -> None:
    async def test() -> None:
        model = Model(generator=plain)
        async with running() as engine:
            with pytest.raises(InputError, match="is empty"):
                await engine.draw(order(model, " "))
            assert engine.failure is None
            assert len(await engine.draw(order(model))) == 1
        assert engine.failure is not None

    run(test)


def test_pictures_on_the_way_come_in_their_order(plain: DiffusersGenerator) -> None:
    async def test() -> None:
        model = Model(generator=plain)
        async with running() as engine:
            drawing = engine.submit(replace(order(model, steps=8), partials=3))
            (drawn,) = await drawing.result()
            partials = [drawing.partials.get_nowait() for _ in range(drawing.partials.qsize())]
        distances = [float((image - drawn.image).square().mean()) for image in partials]
        assert len(partials) == 3
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] > 0

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_place(edge: RunningService, stream: bool) -> None:
    """Over HTTP: ten pictures of 100 steps, given up after a few; the place is free before they could be drawn."""
    body = b'{"prompt": "x", "steps": 100, "partial_images": 3, "stream": true}'
    if not stream:
        body = b'{"prompt": "x", "steps": 100, "n": 10}'
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    drawn = edge.number("dekag_images_drawn_total")
    errors = edge.errors
    with socket.create_connection(("127.0.0.1", edge.port)) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        while edge.number("dekag_images_under_way") == 0:
            time.sleep(0.01)
    started = time.perf_counter()
    while edge.number("dekag_images_under_way") > 0:
        time.sleep(0.005)
    seconds = time.perf_counter() - started
    answer = httpx2.post(f"{edge.url}/v1/images/generations", json={"prompt": "x", "steps": 1}, timeout=60)
    assert answer.status_code == 200
    assert edge.number("dekag_images_drawn_total") == drawn + 1
    assert edge.errors == errors
    print(f"the place was free {1000 * seconds:.0f} ms after the client had gone")

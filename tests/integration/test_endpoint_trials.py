"""No picture is bought twice: random lists, edited and interrupted, at servers that behave as real ones do."""

import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from endpoint_client import INTERRUPTED, Buy, buyers
from image_server import BEHAVIOURS, MODEL, RealServer, Server, colour

from dekag.data.images import read_folder

WORDS = ["a cat", "a red apple", "a pool of blood", "two boats", "a bloodhound", "rain", "a hat", "size seed"]


def edited(prompts: list[str], rng: random.Random) -> list[str]:
    """A list of prompts as somebody edits it: one more, one less, another order."""
    prompts = list(prompts)
    kind = rng.randrange(4)
    if kind == 0 or not prompts:
        prompts.insert(rng.randint(0, len(prompts)), f"{rng.choice(WORDS)} {rng.randrange(4)}")
    elif kind == 1 and len(prompts) > 1:
        prompts.pop(rng.randrange(len(prompts)))
    elif kind == 2:
        rng.shuffle(prompts)
    return list(dict.fromkeys(prompts))


class Trial:
    """Runs of one folder at one server, edited between and interrupted; what was charged is compared at the end.

    A kill comes where a request has arrived and nothing else is under way, or at a server that keeps
    Idempotency-Keys: no client can have what was drawn, and not yet sent, when it died.
    """

    def __init__(self, number: int, server: Server, folder: Path, buy: Buy) -> None:
        self.rng = random.Random(number)
        self.server, self.folder, self.buy = server, folder, buy
        behaviours = self.rng.sample(BEHAVIOURS, self.rng.randint(0, 4))
        if "no size" in behaviours and "wrong size" in behaviours:
            behaviours.remove("wrong size")
        self.real = RealServer(
            state=server,
            behaviours=frozenset(behaviours),
            # another size is another order, of which such a server knows nothing
            keeps_keys=self.rng.random() < 0.5 and "wrong size" not in behaviours,
            rng=random.Random(number),
        )
        server.answer = self.real
        self.most: Counter[str] = Counter()
        self.size, self.stopped = "16x16", 0

    def run(self, prompts: Sequence[str], draws: int, stop: signal.Signals | None) -> int:
        """One run, stopped at a random request; returns its exit code."""
        listed = list(prompts) * draws
        self.most |= Counter(listed)
        at, start = self.rng.randint(1, len(listed) + 1), self.real.count
        known, pid = threading.Event(), 0

        def tell(process: int) -> None:
            nonlocal pid
            pid = process
            known.set()

        def before(number: int) -> bool:
            if stop is None or number - start != at:
                return False
            known.wait()
            os.kill(pid, stop)
            return alone

        self.real.before = before
        alone = stop is signal.SIGKILL and not self.real.keeps_keys
        endpoint = {"base_url": self.server.url, "model": MODEL, "size": self.size}
        settings = {"concurrency": 1 if alone else 3, "retries": 8, "timeout_s": 60.0}
        task = {"endpoint": endpoint | settings, "folder": str(self.folder), "prompts": listed}
        code = self.buy(task, tell)
        self.stopped += code in {-signal.SIGKILL, INTERRUPTED}
        if "wrong size" in self.real.behaviours and code > 0:
            self.size = "24x24"  # as the message asks for
        return code

    def check(self, prompts: Sequence[str], draws: int) -> None:
        """The folder has all pictures that are not refused, in their order, and nothing was charged twice."""
        refused = [p for p in prompts if "moderation" in self.real.behaviours and "blood" in p]
        left = [p for p in list(prompts) * draws if p not in refused]
        code = 1
        for _ in range(50):  # HTML ends a run, and each goes on where the last one ended
            if (code := self.run(prompts, draws, None)) == 0:
                break
        assert code == 0 or not left, (self.folder.parent / "log").read_text()[-400:]
        twice = self.real.charged - self.most
        assert not twice, f"{sorted(self.real.behaviours)}: {twice}"
        if left:
            index = json.loads((self.folder / "index.json").read_text())
            assert [row["prompt"] for row in index["images"]] == left
            data = read_folder(self.folder)
            found = (255 * data.images[:][:, :, 0, 0]).round().int().tolist()
            assert found == [list(colour(prompt, None)) for prompt in left]


def trial(number: int, server: Server, folder: Path, buy: Buy) -> Trial:
    """Some edits and interruptions, then the check."""
    made = Trial(number, server, folder, buy)
    rng, prompts = made.rng, [f"{word} {number}" for number, word in enumerate(WORDS[:5])]
    draws = 1
    for _ in range(rng.randint(2, 4)):
        made.run(prompts, draws, rng.choice([None, signal.SIGINT, signal.SIGKILL, signal.SIGKILL]))
        prompts, draws = edited(prompts, rng), rng.choice([draws, draws, 1, 2])
    made.check(prompts, draws)
    return made


def trials(numbers: range, server: Server, folder: Path) -> Iterator[Trial]:
    with buyers(folder / "log") as buy:
        for number in numbers:
            yield trial(number, server, folder / str(number), buy)


def test_no_picture_is_bought_twice(server: Server, tmp_path: Path) -> None:
    """The first of the 200 that the slow test has."""
    stopped = sum(made.stopped for made in trials(range(6), server, tmp_path))
    assert stopped >= 4


@pytest.mark.slow
def test_no_picture_is_bought_twice_in_200_trials(server: Server, tmp_path: Path) -> None:
    """0 of 200 random sequences of edits and interruptions, at servers of ten behaviours in all mixtures."""
    made = list(trials(range(200), server, tmp_path))
    assert len(made) == 200
    assert set().union(*(each.real.behaviours for each in made)) == set(BEHAVIOURS)
    print(
        sum(each.stopped for each in made),
        "interrupted;",
        sum(each.real.charged.total() for each in made),
        "bought",
    )

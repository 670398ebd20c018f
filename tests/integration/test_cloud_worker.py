"""What a worker tells of its job, and what a runner knows of the workers of others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from dekag.serving.cloud.database import migrate, open_database
from dekag.serving.cloud.runner import Identity
from dekag.serving.cloud.spec import JobSpec
from dekag.serving.cloud.store import PUBLISHING, Claim, JobStore
from dekag.serving.cloud.worker import Reporter
from dekag.training.loop import Progress

SPEC = JobSpec(name="a", prompts=["a cat"], metaword_steps=10, steps=20, frozen_steps=0)


def progress(step: int, steps: int) -> Progress:
    return Progress(step=step, steps=steps, loss=0.5, steps_per_second=1.0)


def test_steps_of_all_stages_are_counted_together_and_told_once_a_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new stage and the last step of one are always told; while the database is away, nothing stops."""
    engine = open_database(f"sqlite:///{tmp_path}/cloud.db")
    migrate(engine)
    store = JobStore(engine)
    job = store.submit(SPEC.name, SPEC.model_dump(), most=1).id
    store.claim("host/1/a")
    reporter = Reporter(store, Claim(job=job, attempt=1), SPEC.stages())
    reporter.on_stage("cloud draws 2 images")
    for step in range(1, 11):
        reporter.on_step("metaword", progress(step, 10))
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE jobs RENAME TO away"))
    reporter.on_step("joint", progress(1, 20))
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO jobs"))
    assert "step 11 was not told" in capsys.readouterr().err
    for step in range(2, 21):
        reporter.on_step("joint", progress(step, 20))
    reporter.on_stage("write")
    reporter.publishing()
    told = [event.data for event in store.events(job) if event.kind == "progress"]
    assert [(each["stage"], each["step"]) for each in told] == [
        ("cloud draws 2 images", 0),
        ("metaword", 1),
        ("metaword", 10),
        ("joint", 30),
        ("write", 30),
        (PUBLISHING, 30),
    ]
    assert {each["steps"] for each in told} == {30}
    # the next worker begins with what is known
    again = Reporter(store, Claim(job=job, attempt=1), SPEC.stages())
    again.on_stage("cloud draws 2 images")
    assert store.get(job).step == 30
    engine.dispose()


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({}, {"metaword": 10, "joint": 20}),
        ({"method": "lora"}, {"joint": 30}),
        ({"method": "dreambooth", "frozen_steps": 5}, {"joint": 30, "frozen": 5}),
        ({"method": "textual_inversion"}, {"metaword": 30}),
        ({"few_steps": 4}, {"metaword": 10, "joint": 20, "few steps": 400}),
    ],
)
def test_every_method_has_its_stages(change: dict[str, object], stages: dict[str, int]) -> None:
    assert SPEC.model_copy(update=change).stages() == stages


def test_only_what_is_known_to_be_gone_is_gone() -> None:
    """A process of this host that is no more, or one of our own number: what restarts in a container."""
    own = Identity.of_this_process()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert own.is_gone(f"{own.host}/{ended.pid}/x")
    assert own.is_gone(f"{own.host}/{os.getpid()}/x")
    assert not own.is_gone(str(own))
    assert not own.is_gone(f"{own.host}/{os.getppid()}/x")
    assert not own.is_gone(f"another/{ended.pid}/x")

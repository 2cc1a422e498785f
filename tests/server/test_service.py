"""The service: what is accepted is drawn, kept and told of, whatever happens to clients, disks and processes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unstir.config import to_dict
from unstir.metadata import recipe_in
from unstir.pipeline import Pipeline, Request, Result
from unstir.server.asking import Asked, AskedEdit, AskedWay, Limits
from unstir.server.jobs import Event, Job, Status
from unstir.server.service import Busy, ModelFacts, Refused, Service, Unknown
from unstir.server.store import Store
from unstir.server.worker import Counts, Listener, Work

NOWHERE = "0" * 32


class Hand:
    """In the place of the worker: nothing is drawn but what a test draws."""

    def __init__(self, pipes: Mapping[str, Pipeline], listener: Listener) -> None:
        self.pipes, self.listener = pipes, listener
        self.works: dict[str, Work] = {}
        self.cancelled: list[str] = []
        self.counts = Counts()
        self.is_alive = False
        self.is_stuck = False

    def start(self) -> None:
        self.is_alive = True

    def submit(self, work: Work) -> None:
        self.works[work.job] = work

    def cancel(self, job: str) -> None:
        self.cancelled.append(job)

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        if not self.is_stuck:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)
        return future

    def stop(self) -> None:
        self.is_alive = False

    def draw(self, job: str, index: int, colour: str = "red") -> None:
        request = self.works[job].requests[index]
        picture = Image.new("RGB", (16, 16), colour)
        self.listener.drawn(job, index, Result(request=request, picture=picture, seconds=0.5, warnings=("w --size",)))

    def finish(self, job: str) -> None:
        for index in self.works[job].todo:
            self.draw(job, index)
        self.listener.ended(job)


@pytest.fixture
def with_hand(make_service: Any) -> Callable[..., None]:
    """(test, options) runs ``await test(service, hand)``."""

    def run(test: Callable[[Service, Hand], Awaitable[None]], **options: Any) -> None:
        async def main() -> None:
            hands: list[Hand] = []

            def make(pipes: Mapping[str, Pipeline], listener: Listener) -> Hand:
                hands.append(Hand(pipes, listener))
                return hands[0]

            async with make_service(make_worker=make, **options) as service:
                await test(service, hands[0])

        asyncio.run(main())

    return run


@pytest.fixture
def with_worker(make_service: Any) -> Callable[..., None]:
    """(test, options) runs ``await test(service)`` with a worker that draws."""

    def run(test: Callable[[Service], Awaitable[None]], **options: Any) -> None:
        async def main() -> None:
            async with make_service(**options) as service:
                await test(service)

        asyncio.run(main())

    return run


def asked(**fields: Any) -> Asked:
    return Asked(**{"prompt": "red cat", "seed": 5, **fields})


def content(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(seed: int = 0, width: int = 16, height: int = 16) -> Image.Image:
    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8))


def drawn_alone(pipe: Pipeline, request: Request, album: Any = None) -> numpy.ndarray[Any, Any]:
    item = next(item for item in pipe.run([request], album=album) if isinstance(item, Result))
    return numpy.array(item.picture).astype(int)


def far(first: Any, second: Any) -> int:
    return int(abs(first.astype(int) - second.astype(int)).max())


def test_pictures_are_those_of_the_pipeline_with_their_recipe(with_worker: Any, pipe: Pipeline, pixels: Any) -> None:
    async def main(service: Service) -> None:
        job = await service.accept(asked(number=3, settings={"negative": "blue", "steps": 5}))
        assert job.requests == tuple(pipe.requests(["red cat"], n=3, seed=5, negative="blue", steps=5))
        status = await service.settled(job.id)
        assert (status.job.state, status.drawn, status.step, status.steps) == ("done", (0, 1, 2), 15, 15)
        for index, request in enumerate(job.requests):
            data = await service.picture(job.id, index)
            assert far(pixels(data), drawn_alone(pipe, request)) <= 1
            recipe = recipe_in(data)
            assert recipe.request == service.picture_facts(job.id, index).request
            assert replace(recipe.request, row=0, rows=1) == request
            assert (recipe.model, recipe.checksum, recipe.device) == ("tiny", pipe.model.checksum, "cpu")
            assert str(Path(pipe.name).parent).encode() not in data

    with_worker(main)


def test_previews_come_before_pictures_and_the_end_is_the_last(with_worker: Any) -> None:
    async def main(service: Service) -> None:
        job = await service.accept(asked(number=2, settings={"steps": 30}))
        events = [event async for event in service.watch(job.id)]
        kinds = [event.kind for event in events]
        assert kinds[0] == "status"
        assert kinds[-1] == "end"
        assert kinds.count("end") == 1
        assert sorted(event.index for event in events if event.kind == "picture") == [0, 1]
        previews = [event for event in events if event.kind == "preview"]
        assert previews
        for event in previews:
            assert event.pixels is not None
            assert event.pixels.shape == (16, 16, 3)
            assert event.index not in event.status.drawn
        steps = [event.status.step for event in events]
        assert steps == sorted(steps)
        assert [event.kind async for event in service.watch(job.id)] == ["status", "end"]

    with_worker(main)


def test_a_job_is_kept_before_its_id_is_given(with_hand: Any, tmp_path: Path) -> None:
    async def main(service: Service, hand: Hand) -> None:
        job = await service.accept(asked(number=2), key="k")
        assert service._store.job(job.id) == job
        assert service.status(job.id).job.state == "queued"
        assert hand.works[job.id].todo == (0, 1)
        assert (service.waiting, service.running) == (1, 0)
        hand.listener.started(job.id)
        hand.draw(job.id, 1)
        hand.listener.moved(job.id, 0, 2, None)
        hand.draw(job.id, 0)
        hand.listener.ended(job.id)
        status = await service.settled(job.id)
        assert (status.job.state, status.drawn) == ("done", (0, 1))
        assert service._store.unended() == []
        facts = service.picture_facts(job.id, 1)
        assert (facts.seconds, facts.warnings) == (0.5, ("w width and height",))

    with_hand(main)


def test_how_far_a_job_is_after_a_restart(with_hand: Any, pipe: Pipeline) -> None:
    before: list[Status] = []

    async def first(service: Service, hand: Hand) -> None:
        for state in ("done", "failed", "cancelled"):
            job = await service.accept(asked(number=2))
            hand.draw(job.id, 0)
            if state == "done":
                hand.draw(job.id, 1)
                hand.listener.ended(job.id)
            elif state == "failed":
                hand.listener.failed(job.id, "use --size")
            else:
                await service.cancel(job.id)
            before.append(await service.settled(job.id))
            assert before[-1].job.state == state
            assert before[-1].drawn == ((0, 1) if state == "done" else (0,))
        assert before[1].job.error == "use width and height"

    async def second(service: Service, hand: Hand) -> None:
        assert not hand.works
        for status in before:
            assert service.status(status.job.id) == status
            assert await service.settled(status.job.id) == status
            assert await service.cancel(status.job.id) == status
            assert [event.kind async for event in service.watch(status.job.id)] == ["status", "end"]

    with_hand(first)
    with_hand(second)


def test_a_restart_goes_on_in_order_with_what_is_missing(with_hand: Any) -> None:
    jobs: list[Job] = []

    async def first(service: Service, hand: Hand) -> None:
        jobs.extend([await service.accept(asked(number=3, seed=seed)) for seed in range(3)])
        await service.accept(asked(is_draft=True))
        hand.draw(jobs[1].id, 1)
        hand.draw(jobs[1].id, 2)
        for index in range(3):
            hand.draw(jobs[2].id, index)
        await until(service, jobs[1], 2)
        await until(service, jobs[2], 3)
        await service.delete(jobs[1].id, 2)

    async def second(service: Service, hand: Hand) -> None:
        assert list(hand.works) == [job.id for job in jobs]
        assert [work.todo for work in hand.works.values()] == [(0, 1, 2), (0,), ()]
        assert [work.requests for work in hand.works.values()] == [job.requests for job in jobs]
        assert [service.status(job.id).position for job in jobs] == [0, 1, 2]
        for job in jobs:
            hand.finish(job.id)
        assert [(await service.settled(job.id)).drawn for job in jobs] == [(0, 1, 2), (0, 1), (0, 1, 2)]

    with_hand(first)
    with_hand(second)


async def until(service: Service, job: Job, count: int) -> None:
    """Waits until so many pictures of a job are there."""
    async for event in service.watch(job.id):
        if len(event.status.drawn) >= count:
            return


def test_a_model_that_is_another_one_now_does_not_go_on(with_hand: Any, pipe: Pipeline) -> None:
    jobs: list[Job] = []

    async def first(service: Service, hand: Hand) -> None:
        jobs.append(await service.accept(asked(model="gone")))
        jobs.append(await service.accept(asked(model="other")))

    async def second(service: Service, hand: Hand) -> None:
        assert not hand.works
        errors = [(await service.settled(job.id)).job.error for job in jobs]
        assert "gone" in errors[0]
        assert "not served any more" in errors[0]
        assert "is another one now" in errors[1]

    with_hand(first, pipes={"gone": pipe, "other": pipe})
    other = Pipeline(replace(pipe.model, checksum="f" * 64), name="other", device="cpu", precision="float32")
    with_hand(second, pipes={"other": other})


def test_the_same_key_is_the_same_job(with_hand: Any) -> None:
    jobs: list[Job] = []

    async def first(service: Service, hand: Hand) -> None:
        question = asked(seed=None)
        jobs.extend(await asyncio.gather(*(service.accept(question, key="k") for _ in range(5))))
        assert len({job.id for job in jobs}) == 1
        assert list(hand.works) == [jobs[0].id]
        with pytest.raises(Refused, match="another request") as caught:
            await service.accept(asked(seed=6), key="k")
        assert caught.value.field == "key"
        assert (await service.accept(question, key="K")).id != jobs[0].id
        assert (await service.accept(question)).id != jobs[0].id
        with pytest.raises(Refused, match="at most 200 characters"):
            await service.accept(question, key="k" * 201)

    async def second(service: Service, hand: Hand) -> None:
        assert (await service.accept(asked(seed=None), key="k")).requests == jobs[0].requests
        assert len(hand.works) == 3

    with_hand(first)
    with_hand(second)


def test_a_key_whose_question_was_refused_is_free(with_hand: Any) -> None:
    async def main(service: Service, hand: Hand) -> None:
        with pytest.raises(Refused):
            await service.accept(asked(prompt=""), key="k")
        assert (await service.accept(asked(), key="k")).id in hand.works

    with_hand(main)


def test_a_full_queue_takes_nothing_more_until_something_ends(with_hand: Any) -> None:
    async def main(service: Service, hand: Hand) -> None:
        uploaded = (await service.keep(content(noise()))).name
        kinds = [asked(), asked(edit=AskedEdit(source=uploaded))] * 4  # edits take a while to be accepted
        results = await asyncio.gather(*(service.accept(each) for each in kinds), return_exceptions=True)
        accepted = [each for each in results if isinstance(each, Job)]
        busy = [each for each in results if isinstance(each, Busy)]
        assert (len(accepted), len(busy)) == (3, 5)
        assert len(hand.works) == 3
        assert all(each.seconds >= 1 for each in busy)
        hand.finish(accepted[0].id)
        await service.settled(accepted[0].id)
        await service.accept(asked())
        with pytest.raises(Busy, match="3 jobs"):
            await service.accept(asked())

    with_hand(main, limits=Limits(queue=3))


def test_how_long_it_takes_is_told_from_what_was_drawn(with_hand: Any) -> None:
    async def main(service: Service, hand: Hand) -> None:
        question = asked(settings={"steps": 10, "guidance_scale": 1.0})
        first = await service.accept(question)
        hand.finish(first.id)
        await service.settled(first.id)
        jobs = [await service.accept(question) for _ in range(3)]
        hand.counts = Counts(busy_seconds=20.0)
        assert service.seconds_ahead == pytest.approx(60)
        with pytest.raises(Busy) as caught:
            await service.accept(question)
        assert caught.value.seconds == 20
        for job in jobs:
            hand.finish(job.id)
            await service.settled(job.id)
        assert service.seconds_ahead == 0

    with_hand(main, limits=Limits(queue=3))


def test_of_the_drafts_of_a_page_only_the_last_is_drawn(with_hand: Any) -> None:
    async def main(service: Service, hand: Hand) -> None:
        other = await service.accept(asked(is_draft=True), draft_of="other page")
        job = await service.accept(asked(), draft_of="page")
        first = await service.accept(asked(is_draft=True), draft_of="page")
        second = await service.accept(asked(is_draft=True), draft_of="page")
        states = [service.status(each.id).job.state for each in (other, job, first, second)]
        assert states == ["queued", "queued", "cancelled", "queued"]
        assert hand.works[second.id].is_draft
        # One that takes long to be accepted is too late if another was asked for meanwhile.
        uploaded = (await service.keep(content(noise()))).name
        slow, quick = await asyncio.gather(
            service.accept(asked(is_draft=True, edit=AskedEdit(source=uploaded)), draft_of="page"),
            service.accept(asked(is_draft=True), draft_of="page"),
        )
        assert [service.status(each.id).job.state for each in (slow, quick)] == ["cancelled", "queued"]

    with_hand(main)


def test_a_draft_is_shown_and_kept_nowhere(with_hand: Any, tmp_path: Path, pixels: Any) -> None:
    async def main(service: Service, hand: Hand) -> None:
        job = await service.accept(asked(is_draft=True, number=2), key="k")
        assert (await service.accept(asked(is_draft=True, number=2), key="k")).id == job.id
        hand.finish(job.id)
        await service.settled(job.id)
        assert far(pixels(await service.picture(job.id, 1)), numpy.array([255, 0, 0])) == 0
        assert service.picture_facts(job.id, 1).request == job.requests[1]
        assert service.pictures() == []
        assert service._store.job(job.id) is None
        assert not list((tmp_path / "data" / "pictures").iterdir())
        edit = await service.accept(asked(edit=AskedEdit(source=f"{job.id}/1")))  # it can be gone on with
        await service.delete(job.id, 1)
        with pytest.raises(Unknown):
            await service.picture(job.id, 1)
        assert dict(hand.works[edit.id].album)

    with_hand(main)


def test_a_draft_is_forgotten(with_hand: Any) -> None:
    async def main(service: Service, hand: Hand) -> None:
        job = await service.accept(asked(is_draft=True), draft_of="page", key="k")
        hand.finish(job.id)
        await service.settled(job.id)
        while job.id in service._live:
            await asyncio.sleep(0)
        with pytest.raises(Unknown):
            service.status(job.id)
        assert (await service.accept(asked(is_draft=True), draft_of="page", key="k")).id != job.id

    with_hand(main, limits=Limits(draft_seconds=0.0))


def test_a_cancelled_job_keeps_what_it_has_and_gets_no_more(with_hand: Any) -> None:
    async def main(service: Service, hand: Hand) -> None:
        job = await service.accept(asked(number=3))
        events = service.watch(job.id)
        await anext(events)
        hand.listener.started(job.id)
        hand.draw(job.id, 0)
        await until(service, job, 1)
        status = await service.cancel(job.id)
        assert (status.job.state, status.drawn) == ("cancelled", (0,))
        assert hand.cancelled == [job.id]
        hand.draw(job.id, 1)
        hand.listener.ended(job.id)
        assert [event.kind async for event in events][-1] == "end"
        assert service.status(job.id) == status
        assert [each.index for each in service.pictures()] == [0]
        assert await service.cancel(job.id) == status
        assert service._store.unended() == []
        assert service.waiting == service.running == 0

    with_hand(main)


def test_a_running_job_is_cancelled_for_good(with_worker: Any) -> None:
    async def main(service: Service) -> None:
        job = await service.accept(asked(number=4, settings={"steps": 200}))
        async for event in service.watch(job.id):
            if event.kind == "preview":
                break
        assert (await service.cancel(job.id)).job.state == "cancelled"
        other = await service.accept(asked())
        assert (await service.settled(other.id)).job.state == "done"

    with_worker(main)


def test_edits_and_ways(with_worker: Any, pipe: Pipeline, pixels: Any) -> None:
    source, target, mask = noise(1), noise(2), Image.fromarray(numpy.eye(16, dtype=numpy.uint8) * 255)

    async def main(service: Service) -> None:
        names = [(await service.keep(content(image))).name for image in (source, target, mask)]
        edit = await service.accept(asked(edit=AskedEdit(source=names[0], mask=names[2]), settings={"steps": 4}))
        expected, album = pipe.edit_requests(source, "red cat", seed=5, mask=mask, steps=4)
        await service.settled(edit.id)
        assert far(pixels(await service.picture(edit.id, 0)), drawn_alone(pipe, expected[0], album)) <= 1
        way = await service.accept(
            asked(edit=AskedEdit(source=names[0]), way=AskedWay(to_source=names[1], frames=3), settings={"steps": 4})
        )
        expected, album = pipe.between_requests("red cat", pictures=(source, target), frames=3, seed=5, steps=4)
        await service.settled(way.id)
        for index, request in enumerate(expected):
            assert far(pixels(await service.picture(way.id, index)), drawn_alone(pipe, request, album)) <= 1
        # A finished picture can be gone on with, even if it is deleted before its turn.
        job = await service.accept(asked(edit=AskedEdit(source=f"{edit.id}/0", strength=0.5)))
        before = Image.open(io.BytesIO(await service.picture(edit.id, 0)))
        await service.delete(edit.id, 0)
        await service.settled(job.id)
        expected, album = pipe.edit_requests(before, "red cat", seed=5, strength=0.5)
        assert far(pixels(await service.picture(job.id, 0)), drawn_alone(pipe, expected[0], album)) <= 1
        again = job.requests[0].edit  # the name in the request can be asked for once more
        assert again is not None
        await service.accept(asked(edit=AskedEdit(source=again.source.name)))

    with_worker(main)


def test_an_edit_is_gone_on_with_after_a_restart(
    with_hand: Any, with_worker: Any, pipe: Pipeline, pixels: Any, tmp_path: Path
) -> None:
    jobs: list[Job] = []

    async def first(service: Service, hand: Hand) -> None:
        for seed in (1, 2):
            name = (await service.keep(content(noise(seed)))).name
            jobs.append(await service.accept(asked(edit=AskedEdit(source=name, strength=0.6))))

    async def second(service: Service) -> None:
        await service.settled(jobs[0].id)
        expected, album = pipe.edit_requests(noise(1), "red cat", seed=5, strength=0.6)
        assert far(pixels(await service.picture(jobs[0].id, 0)), drawn_alone(pipe, expected[0], album)) <= 1
        status = await service.settled(jobs[1].id)
        assert (status.job.state, status.job.error) == (
            "failed",
            "the picture that this is drawn from is not there any more; upload it again",
        )

    with_hand(first)
    edit = jobs[1].requests[0].edit
    assert edit is not None
    (tmp_path / "data" / "uploads" / edit.source.name).unlink()
    with_worker(second)


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../jobs.sqlite", "0" * 64, f"{NOWHERE}/0", f"{NOWHERE}/-1", f"{NOWHERE}/x", f"{NOWHERE}/²"],
)
def test_an_edit_of_what_is_not_there(with_hand: Any, name: str) -> None:
    async def main(service: Service, hand: Hand) -> None:
        uploaded = (await service.keep(content(noise()))).name
        questions = {
            "edit.source": asked(edit=AskedEdit(source=name)),
            "edit.mask": asked(edit=AskedEdit(source=uploaded, mask=name)),
            "way.to_source": asked(edit=AskedEdit(source=uploaded), way=AskedWay(to_source=name, frames=2)),
        }
        if not name:  # no mask, and no picture at the other end
            questions = {"edit.source": questions["edit.source"]}
        for field, question in questions.items():
            with pytest.raises(Refused, match="no picture") as caught:
                await service.accept(question)
            assert caught.value.field == field
        assert not hand.works

    with_hand(main)


def test_what_the_pipeline_refuses_is_refused(with_hand: Any) -> None:
    async def main(service: Service, hand: Hand) -> None:
        uploaded = (await service.keep(content(noise(width=20)))).name
        for question, field in [
            (asked(prompt=""), "prompt"),
            (asked(settings={"steps": 0}), "steps"),
            (asked(number=17), "number"),
            (asked(edit=AskedEdit(source=uploaded)), "width"),
        ]:
            with pytest.raises(Refused) as caught:
                await service.accept(question)
            assert caught.value.field == field
        assert not hand.works
        assert service.waiting == 0

    with_hand(main)


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        content(noise())[:100],
        content(noise(), "BMP"),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        bomb(60_000, 60_000),
        bomb(101, 100),
        b"\x89PNG" + b"\0" * 20_000,
    ],
)
def test_uploads_that_are_refused(with_hand: Any, data: bytes, tmp_path: Path) -> None:
    async def main(service: Service, hand: Hand) -> None:
        with pytest.raises(Refused):
            await service.keep(data)
        assert not list((tmp_path / "data" / "uploads").iterdir())

    with_hand(main, limits=Limits(upload_pixels=10_000, upload_bytes=10_000))


def test_uploads(with_hand: Any, pipe: Pipeline) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side

    async def main(service: Service, hand: Hand) -> None:
        data = content(noise(width=20, height=10))
        kept = await service.keep(data)
        assert (kept.width, kept.height, kept.recipe) == (20, 10, None)
        assert await service.keep(data) == kept
        assert await service.kept(kept.name) == data
        upright = await service.keep(content(noise(width=20, height=10), "JPEG", exif=turned))
        assert (upright.width, upright.height) == (10, 20)
        job = await service.accept(asked())
        hand.finish(job.id)
        await service.settled(job.id)
        again = await service.keep(await service.picture(job.id, 0))
        assert again.recipe is not None
        assert again.recipe.request == job.requests[0]
        for name in ("0" * 64, "", "../jobs.sqlite"):
            with pytest.raises(Unknown):
                await service.kept(name)

    with_hand(main)


def test_the_gallery(with_hand: Any, tmp_path: Path) -> None:
    async def main(service: Service, hand: Hand) -> None:
        for prompt in ("red cat", "blue cat"):
            job = await service.accept(asked(prompt=prompt, number=2))
            hand.finish(job.id)
            await service.settled(job.id)
        assert [each.request.prompt for each in service.pictures(search="CAT")] == ["blue cat"] * 2 + ["red cat"] * 2
        last = service.pictures(limit=3)[-1]
        assert len(service.pictures(before=f"{last.job}/{last.index}")) == 1
        assert service.pictures(search="\ud800 red") == service.pictures(search="red")
        for index in (0, 1):
            await service.delete(job.id, index)
            with pytest.raises(Unknown):
                await service.picture(job.id, index)
            with pytest.raises(Unknown):
                service.picture_facts(job.id, index)
            with pytest.raises(Unknown):
                await service.delete(job.id, index)
            assert not (tmp_path / "data" / "pictures" / f"{job.id}-{index}.png").exists()
        with pytest.raises(Unknown):
            service.status(job.id)  # nothing is left of it
        assert len(service.pictures()) == 2
        for limit in (0, 201):
            with pytest.raises(Refused, match="limit"):
                service.pictures(limit=limit)
        with pytest.raises(Unknown):
            service.pictures(before="nobody/0")
        with pytest.raises(Refused, match="search"):
            service.pictures(search="x" * 5000)

    with_hand(main)


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "SURROGATE", "no json"])
def test_an_upload_with_a_recipe_that_cannot_be_read_is_a_picture_without_one(with_hand: Any, text: str) -> None:
    async def main(service: Service, hand: Hand) -> None:
        job = await service.accept(asked())
        hand.finish(job.id)
        await service.settled(job.id)
        recipe = recipe_in(await service.picture(job.id, 0))
        told = json.dumps(to_dict(recipe))
        for said, is_read in [(text.replace("SURROGATE", told.replace("red cat", "\\ud800")), False), (told, True)]:
            info = PngInfo()
            info.add_itxt("unstir", said)
            kept = await service.keep(content(noise(), pnginfo=info))
            assert (kept.recipe is not None) == is_read

    with_hand(main)


@pytest.mark.parametrize("job", [NOWHERE, "", "../x", "\ud800"])
def test_nobody_knows_a_job_that_never_was(with_hand: Any, job: str) -> None:
    async def main(service: Service, hand: Hand) -> None:
        for ask in (service.status, service.look, service.watch, lambda name: service.picture_facts(name, 0)):
            with pytest.raises(Unknown):
                ask(job)
        for wait in (
            service.cancel(job),
            service.settled(job),
            service.picture(job, 0),
            service.preview(job, 0),
            service.level(job, 0, 0.5),
            service.delete(job, 0),
        ):
            with pytest.raises(Unknown):
                await wait

    with_hand(main)


def test_previews_for_those_who_poll(with_hand: Any, pixels: Any) -> None:
    async def main(service: Service, hand: Hand) -> None:
        job = await service.accept(asked())
        assert not hand.listener.is_watched(job.id)
        with pytest.raises(Unknown, match="no preview"):
            await service.preview(job.id, 0)
        assert hand.listener.is_watched(job.id)
        seen = numpy.full((16, 16, 3), 7, dtype=numpy.uint8)
        hand.listener.moved(job.id, 0, 1, seen)
        while service.look(job.id).previews == (0,):
            await asyncio.sleep(0)
        assert far(pixels(await service.preview(job.id, 0)), seen) == 0

    with_hand(main)


def test_levels_of_a_finished_picture(with_worker: Any, pixels: Any) -> None:
    async def main(service: Service) -> None:
        job = await service.accept(asked())
        await service.settled(job.id)
        picture = pixels(await service.picture(job.id, 0))
        seen = [pixels(await service.level(job.id, 0, t)) for t in (0.0, 0.3, 1.0)]
        assert [far(each, picture) > 0 for each in seen] == [False, True, True]
        for t in (-0.1, 1.1, float("nan")):
            with pytest.raises(Refused, match="level"):
                await service.level(job.id, 0, t)

    with_worker(main)


def test_a_full_disk_fails_the_job_and_nothing_else(with_hand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    async def main(service: Service, hand: Hand) -> None:
        job, next_one = await service.accept(asked(number=2)), await service.accept(asked())
        told = "the server cannot write to its folder (No space left on device)"
        with monkeypatch.context() as broken:
            broken.setattr(Store, "add_picture", full)
            broken.setattr(Store, "end", full)
            hand.finish(job.id)
            status = await service.settled(job.id)
            assert (status.job.state, status.job.error, status.drawn) == ("failed", told, ())
            assert hand.cancelled == [job.id] * 2
        with monkeypatch.context() as broken:
            for name in ("add", "keep", "delete"):
                broken.setattr(Store, name, full)
            for attempt in (service.accept(asked()), service.keep(content(noise())), service.delete(job.id, 0)):
                with pytest.raises(Busy, match="No space left") as caught:
                    await attempt
                assert caught.value.seconds > 1
        hand.finish(next_one.id)
        assert (await service.settled(next_one.id)).job.state == "done"
        assert service.waiting == 0
        await service.accept(asked())

    with_hand(main)


def test_whoever_goes_while_a_job_is_accepted_leaves_no_job_that_waits_forever(with_hand: Any) -> None:
    async def main(service: Service, hand: Hand) -> None:
        for steps in range(20):  # of the event loop, after which the client goes
            accepting = asyncio.ensure_future(service.accept(asked()))
            for _ in range(steps):
                await asyncio.sleep(0)
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
        await asyncio.gather(*service._tasks)
        assert {job.id for job, _ in service._store.unended()} == set(hand.works)
        assert service.waiting == len(hand.works)

    with_hand(main)


def test_at_a_stop_nobody_is_left_hanging(with_hand: Any, tmp_path: Path) -> None:
    async def main(service: Service, hand: Hand) -> None:
        job = await service.accept(asked(number=2))
        name = (await service.keep(content(noise()))).name
        hand.is_stuck = True
        hand.draw(job.id, 0)
        await until(service, job, 1)
        hand.draw(job.id, 1)  # it is kept, though the end comes at once
        events = service.watch(job.id)
        waiting = [
            asyncio.ensure_future(each)
            for each in (
                service.settled(job.id),
                service.accept(asked(edit=AskedEdit(source=name))),
                service.level(job.id, 0, 0.5),
                collected(events),
            )
        ]
        while len(service._calls) < 2:
            await asyncio.sleep(0)
        await service.stop()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in results] == [Busy, Busy, Busy, list]
        assert all(event.kind != "end" for event in results[3])
        for attempt in (service.accept(asked()), service.keep(b"")):
            with pytest.raises(Busy):
                await attempt
        assert not service.is_alive
        await service.stop()
        store = Store(tmp_path / "data")
        assert store.drawn(job.id) == (0, 1)
        assert [each.id for each, _ in store.unended()] == [job.id]
        store.close()

    with_hand(main)


async def collected(events: Any) -> list[Event]:
    return [event async for event in events]


def test_a_second_service_on_the_same_folder_is_refused(make_service: Any) -> None:
    async def main() -> None:
        async with make_service() as service:
            with pytest.raises(ValueError, match="another server"):
                async with make_service():
                    pass
            assert service.is_alive
            job = await service.accept(asked())
            assert (await service.settled(job.id)).job.state == "done"

    asyncio.run(main())


def test_what_clients_are_told_of_models(with_hand: Any, pipe: Pipeline) -> None:
    async def main(service: Service, hand: Hand) -> None:
        assert list(service.models) == ["tiny", "second"]
        facts = service.models["tiny"]
        assert (facts.size, facts.multiple, facts.is_one_size, facts.tuned) == (16, pipe.multiple, True, ())
        assert facts.checksum == pipe.model.checksum
        assert "ddim" in facts.samplers
        assert "tuned" not in facts.samplers
        assert facts.fewest == 3
        assert replace(facts, tuned=(8, 6)).fewest == 6
        assert (await service.accept(asked())).model == "tiny"
        assert (await service.accept(asked(model="second"))).model == "second"
        assert isinstance(facts, ModelFacts)

    with_hand(main, pipes={"tiny": pipe, "second": pipe})


def test_a_service_needs_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model"):
        Service({}, tmp_path)


# Processes that are killed.

SERVER = """
import asyncio, json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from unstir.pipeline import load
from unstir.server import store
from unstir.server.asking import Asked, AskedEdit
from unstir.server.service import Service

model, folder, moment, first, count = sys.argv[1:]
kills = 0

def dying(function, name):
    def run(*given):
        global kills
        kills += 1
        if moment == f"before {name}" and kills >= 5:
            os.kill(os.getpid(), signal.SIGKILL)
        function(*given)
        if moment == f"after {name}" and kills >= 5:
            os.kill(os.getpid(), signal.SIGKILL)
    return run

store._write_whole = dying(store._write_whole, "the file")
store.Store.end = dying(store.Store.end, "the end") if "the end" in moment else store.Store.end

async def main():
    service = Service({"tiny": load(model, device="cpu", precision="float32")}, Path(folder))
    await service.start()
    print("ready", flush=True)
    for seed in range(int(first), int(first) + int(count)):
        recent = service.pictures(limit=1)
        edit = AskedEdit(source=f"{recent[0].job}/{recent[0].index}", strength=0.5) if seed % 3 == 2 and recent else None
        asked = Asked(prompt="red cat", seed=100 * seed, number=4, settings={"steps": 3 + seed % 5}, edit=edit)
        job = await service.accept(asked)
        print(job.id, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def serve(pipe: Pipeline, folder: Path, moment: str, first: int, count: int) -> subprocess.Popen[str]:
    arguments = [pipe.name, str(folder), moment, str(first), str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SERVER, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )


async def require_all_drawn(service: Service, ids: list[str], pipe: Pipeline, pixels: Any) -> None:
    """Every job that was accepted ends, with the pictures that come out without any interruption."""
    for job in ids:
        status = await service.settled(job)
        assert (status.job.state, status.drawn) == ("done", (0, 1, 2, 3)), status.job.error
        for index, request in enumerate(status.job.requests):
            album: dict[str, Any] = {}
            if request.edit is not None:
                source = Image.open(io.BytesIO(await service.kept(request.edit.source.name)))
                album = dict(pipe.edit_requests(source, "x", seed=0)[1])
            assert far(pixels(await service.picture(job, index)), drawn_alone(pipe, request, album)) <= 1


@pytest.mark.parametrize(
    "moment",
    [
        "after the file",
        pytest.param("before the file", marks=pytest.mark.slow),
        pytest.param("after the end", marks=pytest.mark.slow),
    ],
)
def test_a_killed_server_loses_no_job(
    make_service: Any, pipe: Pipeline, pixels: Any, tmp_path: Path, moment: str
) -> None:
    """It dies by SIGKILL at the worst moments: while a picture is written, between its file and its row."""
    process = serve(pipe, tmp_path / "data", moment, 0, 6)
    said = process.communicate(timeout=120)[0].split()
    assert process.returncode == -9
    ids = said[1:]
    assert ids

    async def main() -> None:
        async with make_service() as service:
            assert service._store.unended() or service.waiting
            await require_all_drawn(service, ids, pipe, pixels)
            assert len(service.pictures(limit=200)) == 4 * len(
                service._store._read.execute("select 1 from jobs").fetchall()
            )

    asyncio.run(main())


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_loses_no_job(
    make_service: Any, pipe: Pipeline, pixels: Any, tmp_path: Path
) -> None:
    """Twenty kills at random moments, most of them while it goes on with what was interrupted before."""
    moments, ids = random.Random(0), list[str]()
    for number in range(20):
        with serve(pipe, tmp_path / "data", "", 10 * number, 10) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "ready\n"
                time.sleep(moments.uniform(0.0, 0.3))
            finally:
                process.kill()
            ids += process.stdout.read().split("\n")[:-1]

    async def main() -> None:
        async with make_service() as service:
            await require_all_drawn(service, ids, pipe, pixels)
            assert service.waiting == service.running == 0

    asyncio.run(main())
    assert len(ids) > 20

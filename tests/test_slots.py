"""Slots are given in the order of arrival, to as many as may wait, and none is lost."""

import asyncio
from collections.abc import Iterable

import pytest

import app.slots
from app.slots import STALL_TIMEOUT, PoolTerminatedError, PoolUnavailableError, Slots


def in_seconds(seconds: float) -> float:
    """Return a time of the event loop."""
    return asyncio.get_running_loop().time() + seconds


async def take_all(slots: Slots) -> None:
    while slots.free:
        await slots.take(until=None)


async def waiting(slots: Slots, names: Iterable[str], served: list[str], **options: bool) -> list[asyncio.Task[None]]:
    """Let a task for each name wait for a slot and note that it has it."""

    async def wait(name: str) -> None:
        await slots.take(until=in_seconds(60), **options)
        served.append(name)

    tasks = [asyncio.create_task(wait(name)) for name in names]
    await asyncio.sleep(0)
    return tasks


async def test_those_who_wait_are_served_in_the_order_of_their_arrival() -> None:
    slots, served = Slots(1, queue_size=10), list[str]()
    await take_all(slots)
    tasks = await waiting(slots, "abc", served) + await waiting(slots, "d", served, first=True)
    for _ in range(4):
        slots.give_back()
    await asyncio.gather(*tasks)
    assert served == ["d", "a", "b", "c"]
    assert slots.free == 0


async def test_a_slot_that_nobody_waits_for_is_free() -> None:
    slots = Slots(2, queue_size=0)
    await take_all(slots)
    slots.give_back()
    assert slots.free == 1


async def test_the_queue_is_full_when_as_many_wait_as_may() -> None:
    slots = Slots(1, queue_size=1)
    assert not slots.is_full
    await take_all(slots)
    tasks = await waiting(slots, "a", [])
    assert slots.is_full
    slots.give_back()
    await asyncio.gather(*tasks)
    assert not slots.is_full


async def test_slots_without_a_queue_are_full_when_all_are_taken() -> None:
    slots = Slots(1, queue_size=0)
    assert not slots.is_full
    await take_all(slots)
    assert slots.is_full


async def test_who_waits_for_too_long_is_refused_and_takes_no_slot() -> None:
    slots = Slots(1, queue_size=1)
    await take_all(slots)
    with pytest.raises(PoolUnavailableError, match="Timed out"):
        await slots.take(until=in_seconds(0.01))
    assert not slots.is_full
    slots.give_back()
    assert slots.free == 1


async def test_a_slot_whose_taker_is_cancelled_in_the_same_moment_goes_to_the_next() -> None:
    slots, served = Slots(1, queue_size=10), list[str]()
    await take_all(slots)
    cancelled, task = await waiting(slots, "ab", served)
    slots.give_back()
    cancelled.cancel()
    await task
    assert served == ["b"]
    assert cancelled.cancelled()


async def test_who_is_cancelled_while_waiting_leaves_the_queue() -> None:
    slots = Slots(1, queue_size=1)
    await take_all(slots)
    (task,) = await waiting(slots, "a", [])
    task.cancel()
    await asyncio.wait({task})
    assert not slots.is_full
    slots.give_back()
    assert slots.free == 1


async def test_all_who_wait_can_be_refused() -> None:
    slots = Slots(1, queue_size=10)
    await take_all(slots)
    tasks = await waiting(slots, "ab", [])
    slots.refuse_all(PoolTerminatedError("gone"))
    assert [str(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == ["gone", "gone"]
    slots.give_back()
    assert slots.free == 1


async def test_who_is_cancelled_in_the_moment_of_a_refusal_gives_no_slot_back() -> None:
    slots = Slots(1, queue_size=10)
    await take_all(slots)
    (task,) = await waiting(slots, "a", [])
    slots.refuse_all(PoolTerminatedError("gone"))
    task.cancel()
    await asyncio.wait({task})
    assert slots.free == 0


class Clock:
    """Takes the place of the module `time`. The test moves it on."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class TestStalledQueue:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = Clock()
        monkeypatch.setattr(app.slots, "time", clock)
        return clock

    async def test_a_queue_that_does_not_move_is_stalled_after_the_timeout(self, clock: Clock) -> None:
        slots = Slots(1, queue_size=10)
        await take_all(slots)
        clock.now += 60
        assert not slots.is_stalled
        tasks = await waiting(slots, "a", [])
        assert not slots.is_stalled
        clock.now += STALL_TIMEOUT
        assert not slots.is_stalled
        clock.now += 0.1
        assert slots.is_stalled
        tasks += await waiting(slots, "b", [])
        assert slots.is_stalled
        slots.refuse_all(PoolTerminatedError("gone"))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not slots.is_stalled

    async def test_only_a_slot_with_a_connection_moves_the_queue(self, clock: Clock) -> None:
        slots = Slots(1, queue_size=10)
        await take_all(slots)
        tasks = await waiting(slots, "abc", [])
        clock.now += STALL_TIMEOUT + 1
        slots.give_back()
        assert slots.is_stalled
        slots.give_back(moved=True)
        assert not slots.is_stalled
        slots.give_back()
        await asyncio.gather(*tasks)

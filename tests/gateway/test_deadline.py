"""The deadline of a request: over in time or not at all, and never mistaken for another cancellation."""

import asyncio

import pytest

from gateway.deadline import Deadline


async def test_what_takes_too_long_is_cut_off() -> None:
    cleaned = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cleaned.append("up")

    with pytest.raises(TimeoutError), Deadline(0.01):
        await work()
    task = asyncio.current_task()
    assert task is not None
    assert (cleaned, task.cancelling()) == (["up"], 0)


async def test_what_ends_in_time_is_left_alone() -> None:
    with Deadline(0.01):
        await asyncio.sleep(0)
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, later.set)
    await later.wait()  # its time is over meanwhile, and nothing happens


async def test_an_error_of_its_own_passes() -> None:
    with pytest.raises(KeyError), Deadline(5):
        raise KeyError


async def test_a_cancellation_from_outside_stays_one() -> None:
    async def work() -> None:
        with Deadline(5):
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_of_two_the_earlier_strikes_whichever_is_inside() -> None:
    for outer_s, inner_s in ((0.01, 5.0), (5.0, 0.01)):
        outside = False
        try:
            with Deadline(outer_s):
                try:
                    with Deadline(inner_s):
                        await asyncio.get_running_loop().create_future()
                except TimeoutError:
                    assert inner_s < outer_s
        except TimeoutError:
            outside = True
        assert outside == (outer_s < inner_s)


async def test_a_cancellation_beside_the_deadline_goes_before_it() -> None:
    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        with Deadline(0.005):
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                task.cancel()  # another one, in the same moment
                raise

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())

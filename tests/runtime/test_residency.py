"""How adapters come and go: leases, rows, eviction, claims. Through the engine, over a fake device."""

from runtime.adapter import Way
from runtime.protocol import Failure, TierVisit
from tests.runtime.fakes import WAY, answer, packed, ref, submit
from tests.runtime.rig import Rig


def resident(rig: Rig) -> set[str]:
    return {status.digest for status in rig.engine.adapters()}


def test_the_load_starts_at_arrival_before_any_step() -> None:
    rig = Rig(max_running=1)
    rig.submit(submit(1, max_tokens=50))
    rig.submit(submit(2, adapter=ref("x")))
    assert set(rig.loads.started) == {"x"}


def test_one_adapter_is_loaded_once_for_all_who_wait() -> None:
    rig = Rig()
    requests = [submit(i, account=f"a{i}", adapter=ref("x"), seed=i) for i in range(5)]
    for request in requests:
        rig.submit(request)
    rig.run()
    assert [rig.tokens(i) for i in range(5)] == [answer(request) for request in requests]
    assert [status.digest for status in rig.statuses] == ["x"]


def test_leases_are_bounded_and_the_rest_is_warmed() -> None:
    rig = Rig(max_leases=2)
    for i in range(5):
        rig.submit(submit(i, adapter=ref(f"x{i}")))
    rig.step()
    assert set(rig.loads.started) == {"x0", "x1"}
    assert set(rig.loads.warming) == {"x2", "x3", "x4"}
    rig.engine.adapter_warmed("x2", WAY)
    rig.run()
    assert all(rig.last(i).finish_reason == "length" for i in range(5))
    assert not rig.loads.leased
    news = {status.digest: status for status in rig.statuses if status.digest == "x2"}
    assert news["x2"].resident == "device"


def test_the_longer_way_is_told_when_a_warm_up_did_the_work() -> None:
    rig = Rig(max_leases=1)
    rig.submit(submit(1, adapter=ref("x")))
    rig.submit(submit(2, adapter=ref("y")))
    rig.engine.adapter_warmed("y", WAY)
    rig.load("x")
    rig.step()
    rig.step()
    del rig.loads.started["y"]
    rig.loads.leased.add("y")
    rig.engine.adapter_loaded("y", packed("y"), Way((TierVisit("memory", 0.0, 400),), "memory"))
    rig.run()
    timing = rig.last(2).timing
    assert timing is not None
    assert timing.adapter_source == "object"


def test_idle_adapters_make_room_the_least_recently_used_first() -> None:
    rig = Rig(rows=16)
    for name in ("x", "y"):
        rig.submit(submit(1, adapter=ref(name)))
        rig.run()
        rig.outputs.clear()
    rig.submit(submit(1, adapter=ref("x")))
    rig.run()
    rig.submit(submit(2, adapter=ref("z")))
    rig.run()
    assert resident(rig) == {"x", "z"}
    assert rig.engine.stats().evictions == 1


def test_an_adapter_in_use_is_not_evicted_and_others_do_not_wait_for_the_newcomer() -> None:
    rig = Rig(rows=8)
    rig.submit(submit(1, adapter=ref("x"), max_tokens=30))
    rig.step()
    rig.load("x")
    rig.step()
    rig.submit(submit(2, adapter=ref("y")))
    rig.load("y")
    for _ in range(10):
        rig.step()
    assert resident(rig) == {"x"}
    assert len(rig.tokens(1)) == 11
    rig.run()
    assert rig.tokens(2) == answer(submit(2, adapter=ref("y")))


def test_a_starving_adapter_gets_its_rows_although_requests_for_the_others_never_cease() -> None:
    rig = Rig(rows=16, starve_after_s=2.0)
    big = submit(0, account="patient", adapter=ref("big", rank=16))

    def keep_busy(i: int) -> None:
        rig.submit(submit(i, account=f"busy{i % 2}", adapter=ref("xy"[i % 2]), max_tokens=8))

    for i in range(1, 5):
        keep_busy(i)
    for _ in range(4):
        for name in list(rig.loads.started):
            rig.load(name)
        rig.step()
    rig.submit(big)
    begun = rig.clock.now
    i = 5
    while not rig.outputs[1, 0]:
        for name in list(rig.loads.started):
            rig.load(name)
        keep_busy(i)
        i += 1
        rig.step(seconds=0.1)
        assert rig.clock.now - begun < 20, "starved"
    assert rig.clock.now - begun >= 2.0


def test_a_claim_that_is_no_longer_needed_sets_the_owners_free() -> None:
    rig = Rig(rows=8, starve_after_s=1.0)
    rig.submit(submit(1, adapter=ref("x"), max_tokens=40))
    rig.step()
    rig.load("x")
    rig.step()
    rig.submit(submit(2, adapter=ref("y")))
    rig.load("y")
    rig.step(seconds=2.0)
    rig.step()
    rig.submit(submit(3, adapter=ref("x")))
    rig.step()
    assert not rig.outputs[1, 3], "a draining adapter admits nobody"
    rig.engine.abort(1, 2)
    rig.step()
    rig.step()
    assert rig.outputs[1, 3]
    assert not rig.loads.leased


def test_small_adapters_pass_a_claim_outside_its_range() -> None:
    rig = Rig(rows=24, starve_after_s=1.0)
    for i, name in enumerate(("x", "y")):
        rig.submit(submit(i, adapter=ref(name), max_tokens=60))
    rig.step()
    rig.load("x")
    rig.load("y")
    rig.step()
    rig.submit(submit(2, adapter=ref("big", rank=16)))
    rig.load("big")
    rig.step(seconds=2.0)
    rig.step()
    rig.submit(submit(3, adapter=ref("small")))
    rig.load("small")
    rig.step()
    rig.step()
    # Rows 0..15 are claimed, 16..23 are free.
    assert "small" in resident(rig)


def test_an_adapter_that_somebody_waits_for_is_not_evicted_before_it_served() -> None:
    rig = Rig(rows=8, num_blocks=12, max_running=1)
    rig.submit(submit(1, max_tokens=30))
    rig.step()
    rig.submit(submit(2, adapter=ref("x")))
    rig.load("x")
    rig.step()
    rig.submit(submit(3, adapter=ref("y")))
    rig.load("y")
    for _ in range(5):
        rig.step()
    assert resident(rig) == {"x"}
    rig.run()
    assert rig.tokens(3) == answer(submit(3, adapter=ref("y")))


def test_an_unwanted_load_gives_its_lease_back() -> None:
    rig = Rig()
    rig.submit(submit(1, adapter=ref("x")))
    rig.engine.abort(1, 1)
    rig.load("x")
    rig.step()
    assert not rig.loads.leased
    assert rig.engine.stats().adapter_rows_used == 0
    assert [status.resident for status in rig.statuses] == ["memory"]


def test_the_last_one_who_leaves_stops_the_load_and_a_deadline_does_not() -> None:
    rig = Rig()
    for number in (1, 2):
        rig.submit(submit(number, adapter=ref("x")))
    rig.submit(submit(3, adapter=ref("late"), timeout_s=0.5))
    rig.engine.abort(1, 1)
    rig.step(1.0)
    rig.step()
    assert rig.last(3).failure is not None
    assert rig.loads.stopping == [], "one waits for x, and whoever asked for the other will ask again"
    rig.engine.abort_owner(1)
    assert rig.loads.stopping == ["x"]
    rig.submit(submit(4, adapter=ref("x")))
    rig.stop_load("x")
    assert set(rig.loads.started) == {"late"}
    rig.step()
    assert set(rig.loads.started) == {"late", "x"}, "for the one who has come meanwhile"
    rig.run()
    assert rig.tokens(4) == answer(submit(4, adapter=ref("x")))


def test_the_last_one_who_leaves_stops_a_warm_up() -> None:
    rig = Rig(max_leases=1)
    for number, name in ((1, "x"), (2, "y"), (3, "y")):
        rig.submit(submit(number, adapter=ref(name)))
    assert set(rig.loads.warming) == {"y"}
    rig.engine.abort(1, 2)
    assert rig.loads.stopping == []
    rig.engine.abort(1, 3)
    assert rig.loads.stopping == ["y"]
    del rig.loads.warming["y"]
    rig.submit(submit(4, adapter=ref("y")))
    assert set(rig.loads.warming) == {"y"}, "and the next one has it warmed again"
    rig.engine.adapter_warmed("y", WAY)
    rig.engine.abort(1, 4)
    assert rig.loads.stopping == ["y"], "what has come needs no stop"


def test_what_was_deleted_while_it_loaded_for_nobody_is_forgotten() -> None:
    rig = Rig(max_leases=1)
    rig.submit(submit(1, adapter=ref("x")))
    rig.engine.abort(1, 1)
    rig.engine.forget_adapter("x")
    rig.stop_load("x")
    assert rig.loads.forgotten == ["x"]
    rig.submit(submit(2, adapter=ref("y")))
    assert set(rig.loads.started) == {"y"}, "its lease is free again"


def test_a_larger_rank_in_the_file_than_promised_is_refused_when_the_pool_is_too_small() -> None:
    rig = Rig(rows=16)
    rig.submit(submit(1, adapter=ref("x", rank=8)))
    rig.load("x", rank=32)
    rig.step()
    failure = rig.last(1).failure
    assert failure is not None
    assert failure.kind == "adapter_too_large"
    assert not rig.loads.leased


def test_forget_waits_for_the_last_user() -> None:
    rig = Rig()
    rig.submit(submit(1, adapter=ref("x"), max_tokens=5))
    rig.run(steps=1000)
    rig.submit(submit(2, adapter=ref("x"), max_tokens=20))
    rig.step()
    rig.engine.forget_adapter("x")
    rig.step()
    assert resident(rig) == {"x"}
    assert not rig.loads.forgotten
    rig.run()
    assert rig.tokens(2) == answer(submit(2, adapter=ref("x"), max_tokens=20))
    assert resident(rig) == set()
    assert rig.loads.forgotten == ["x"]


def test_forget_of_an_unknown_or_loading_adapter() -> None:
    rig = Rig()
    rig.engine.forget_adapter("nobody")
    assert rig.loads.forgotten == ["nobody"]
    rig.submit(submit(1, adapter=ref("x")))
    rig.engine.abort(1, 1)
    rig.engine.forget_adapter("x")
    rig.load("x")
    rig.step()
    assert rig.loads.forgotten == ["nobody", "x"]
    rig.submit(submit(2, adapter=ref("y")))
    rig.engine.forget_adapter("y")
    rig.fail_load("y", Failure("adapter_missing", "gone"))
    rig.step()
    assert rig.loads.forgotten == ["nobody", "x", "y"]


def test_an_adapter_that_is_wanted_again_is_not_forgotten() -> None:
    rig = Rig()
    rig.submit(submit(1, adapter=ref("x"), max_tokens=20))
    for name in list(rig.loads.started):
        rig.load(name)
    rig.step()
    rig.engine.forget_adapter("x")
    rig.submit(submit(2, adapter=ref("x")))
    rig.run()
    assert resident(rig) == {"x"}
    assert not rig.loads.forgotten

import pytest

from tests.faults.soak import Sample, Soak, slope


@pytest.mark.journey
@pytest.mark.slow
async def test_memory_and_descriptors_stay_flat_under_mixed_load() -> None:
    soak = Soak(minutes=2.0)
    await soak.run()
    print(f"\n{soak.told()}")
    assert not soak.faulty, soak.told()


def test_a_slope_is_what_most_pairs_of_samples_say() -> None:
    assert slope([(60.0 * x, 5.0 + 2.0 * x) for x in range(10)]) == pytest.approx(2.0)
    burst = [(60.0 * x, 500.0 if x == 4 else 5.0) for x in range(10)]
    assert slope(burst) == 0.0


@pytest.mark.parametrize(
    ("a_minute", "descriptors", "grown"),
    [(0.0, 0, []), (0.3, 0, ["RSS at rest", "RSS under load", "PSS at rest"]), (0.0, 1, ["more"])],
)
def test_a_soak_tells_what_grows(a_minute: float, descriptors: int, grown: list[str]) -> None:
    soak = Soak(minutes=30.0)
    for minute in range(30):
        for at_rest in (False, True):
            mib = 50.0 + a_minute * minute
            soak.samples.append(
                Sample(
                    at=60.0 * minute + at_rest,
                    pid=1,
                    at_rest=at_rest,
                    rss=mib,
                    pss=mib,
                    descriptors=20 + descriptors * minute,
                )
            )
    told = list(soak._grown())
    assert len(told) == len(grown), told
    assert all(what in line for what, line in zip(grown, told, strict=True))


def test_a_process_that_was_replaced_is_told() -> None:
    soak = Soak(minutes=30.0)
    soak.samples.append(Sample(at=10.0, pid=1, at_rest=True, rss=50.0, pss=None, descriptors=None))
    assert list(soak._grown()) == ["process 1 was not there for long enough"]

"""What the benchmarks do by the million, in small: a stream under swaps and kills, and malformed sources."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    """The benchmarks' modules can be imported."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for name in ("client_soak", "client_fuzz", "client_served"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_stream_outlasts_swaps_and_a_kill(benchmarks, tmp_path, triton_wheel):
    """60,000 samples, a new version every second, one kill -9: each answered once, rightly and in order."""
    import client_soak

    figures = client_soak.soak(tmp_path, count=60_000, swap_every_s=1.0, kills=1, seconds=6.0)
    assert client_soak.is_good(figures, kills=1), figures
    assert figures["versions that answered"] > 1


@pytest.mark.slow
def test_malformed_sources_are_one_sentence_each(benchmarks, tmp_path, triton_wheel):
    """300 damaged files, folders and arrays: none a traceback, none a hang, and some of them still good."""
    import client_fuzz
    import client_served

    repository, bad = tmp_path / "repository", []
    for name in client_served.DIMS:
        client_served.publish(repository, name)
    with client_served.served(repository, *client_served.DIMS) as server:
        counts = client_fuzz.fuzz(server.url, tmp_path, cases=300, seed=1, tell=bad.append)
    assert not bad, bad[0]
    assert {name.partition(" ")[2] for name in counts} == {"0", "1"}
    assert sum(counts.values()) == 300

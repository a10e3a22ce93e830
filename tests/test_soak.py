"""Training under kills beside a twin that nobody disturbs, the short form of `make soak`."""

import pytest

from benchmarks.soak import faults_found, soak, table


@pytest.mark.long
def test_a_short_soak_ends_with_the_bits_of_its_twin(tmp_path):
    result = soak(minutes=0.1, ranks=1, seed=0, folder=tmp_path)
    assert result["differences"] == []
    assert result["kills"] == 1
    assert result["steps"] >= 1000
    assert result["growth"][0] >= 0  # how much, in a second, says nothing


def test_memory_that_moves_and_bits_that_differ_are_told():
    result = {"minutes": 60, "ranks": 2, "kills": 50, "steps": 12_000, "environment": {"commit": "abc"}}
    result |= {
        "memory_mb": [[80.0, 81.0], [80.0, 84.0]],
        "growth": [0.0125, 0.05],
        "differences": ["result.json"],
    }
    assert faults_found(result) == ["rank 1: memory moved by 5.0%", "differs: result.json"]
    text = table(result, "command")
    assert "| memory, settled | rank 0: 80.0 to 81.0 MB, rank 1: 80.0 to 84.0 MB |" in text
    assert "| moved by, at most | 5.00% |" in text
    assert "| different from the undisturbed run | result.json |" in text

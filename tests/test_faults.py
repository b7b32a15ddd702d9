"""The campaigns of injected faults, a few faults of each; `python -m tests.faults`."""

import types

import pytest
from faults import campaigns

from keras_fa.lab import run_folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [("flips", 1), ("inputs", 12)],
)
def test_nothing_passes_in_silence(tmp_path, name, count):
    campaign, _ = campaigns.CAMPAIGNS[name]
    report = campaign(count, tmp_path)
    assert report.wrong == []
    assert report["noticed"] > 0


@pytest.mark.slow
def test_a_campaign_counts_what_passes(tmp_path, monkeypatch):
    """Of a log that is not checked it says so."""
    constant = types.SimpleNamespace(crc32=lambda data, value=0: 0)
    monkeypatch.setattr(run_folder, "zlib", constant)
    # The run that is over alone.
    monkeypatch.setattr(campaigns, "interrupted", lambda folder: folder)
    report = campaigns.flips(4, tmp_path)
    assert any(line.startswith("silent: whole/metrics.jsonl") for line in report.wrong)

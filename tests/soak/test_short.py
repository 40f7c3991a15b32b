"""A short soak: processes are killed and cut off, and every client gets what an uninterrupted run gives."""

from e2e.soak.drive import Wanted, soak
from e2e.soak.ledger import load


async def test_no_token_is_lost_doubled_or_changed_and_nothing_leaks(tmp_path):
    (tmp_path / "logs").mkdir()
    wanted = Wanted(
        interruptions=6, streams=8, tokens=100, kills=0.5, state=tmp_path / "soak.json", check_every=6,
        longest_notice_s=1.0, longest_fault_s=1.5, idle_s=1.0, say=lambda line: None,
    )  # fmt: skip
    ledger = await soak(wanted, tmp_path / "logs")
    assert ledger.failures == []
    assert ledger.clean
    assert ledger.interruptions == sum(ledger.notices.values()) == 6
    assert ledger.sigkills > 0
    assert ledger.streams >= wanted.streams
    assert sum(ledger.resumes.values()) > 0
    again = await soak(wanted, tmp_path / "logs")  # as many as wanted are there: nothing is started
    assert again == ledger
    assert load(wanted.state, "stub") == ledger

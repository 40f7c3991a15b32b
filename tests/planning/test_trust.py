"""No process is ever cut off by a change of certificates, however the operator and the kubelets run."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from medley.core.identity import Role
from medley.planning.trust import (
    AUTHORITY_LIFE,
    AUTHORITY_RENEWAL,
    CERTIFICATE_LIFE,
    CERTIFICATE_RENEWAL,
    SPREAD,
    Authority,
    Certificate,
    Drop,
    Found,
    Issue,
    Settled,
    Trust,
    due,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def done(trust: Trust, step, now: datetime) -> Trust:
    """Return what there is after the handler did one step."""
    match step:
        case Found():
            made = Authority(f"ca{len(trust.authorities)}-{now.timestamp()}", now, now + AUTHORITY_LIFE)
            return replace(trust, authorities=(*trust.authorities, made))
        case Drop(fingerprints):
            return replace(trust, authorities=tuple(a for a in trust.authorities if a.fingerprint not in fingerprints))
        case Issue(roles, signer, trusted):
            ends = next(a.expires for a in trust.authorities if a.fingerprint == signer)
            new = [Certificate(role, signer, now, min(now + CERTIFICATE_LIFE, ends), trusted) for role in roles]
            return replace(trust, certificates=(*(c for c in trust.certificates if c.role not in roles), *new))


def settled(trust: Trust, now: datetime, limit: int = 10) -> tuple[Trust, list[str]]:
    steps = []
    while not isinstance(step := due(trust, now), Settled):
        steps.append(type(step).__name__)
        assert len(steps) <= limit, steps
        trust = done(trust, step, now)
    return trust, steps


def test_a_service_begins_with_one_authority_and_a_certificate_per_role():
    trust, steps = settled(Trust(), NOW)
    assert steps == ["Found", "Issue"]
    (authority,) = trust.authorities
    assert trust.certificates == tuple(
        Certificate(role, authority.fingerprint, NOW, NOW + CERTIFICATE_LIFE, frozenset({authority.fingerprint}))
        for role in Role
    )


def test_certificates_are_renewed_by_the_same_authority_long_before_they_end():
    trust, _ = settled(Trust(), NOW)
    then = NOW + CERTIFICATE_LIFE - CERTIFICATE_RENEWAL
    assert settled(trust, then) == (trust, [])
    renewed, steps = settled(trust, then + timedelta(seconds=1))
    assert steps == ["Issue"]
    assert renewed.authorities == trust.authorities
    assert {each.issued for each in renewed.certificates} == {then + timedelta(seconds=1)}


def test_an_authority_is_followed_in_three_steps_with_time_between():
    trust, _ = settled(Trust(), NOW)
    old = trust.authorities[0].fingerprint
    then = NOW + AUTHORITY_LIFE - AUTHORITY_RENEWAL + timedelta(seconds=1)
    trust, steps = settled(trust, then)
    assert steps == ["Found", "Issue"]  # both trusted, the old one issues
    new = trust.authorities[1].fingerprint
    assert {(c.issuer, c.trusts) for c in trust.certificates} == {(old, frozenset({old, new}))}
    assert settled(trust, then + SPREAD - timedelta(seconds=1)) == (trust, [])
    trust, steps = settled(trust, then + SPREAD)
    assert steps == ["Issue"]  # both trusted, the new one issues
    assert {(c.issuer, c.trusts) for c in trust.certificates} == {(new, frozenset({old, new}))}
    trust, steps = settled(trust, then + SPREAD * 2)
    assert steps == ["Drop", "Issue"]
    assert {(c.issuer, c.trusts) for c in trust.certificates} == {(new, frozenset({new}))}
    assert settled(trust, then + SPREAD * 3) == (trust, [])


def test_a_secret_that_a_person_deletes_comes_back_from_the_same_authority():
    trust, _ = settled(Trust(), NOW)
    lost = replace(trust, certificates=tuple(c for c in trust.certificates if c.role is not Role.ROUTER))
    healed, steps = settled(lost, NOW + DAY)
    assert steps == ["Issue"]
    assert [c.role for c in healed.certificates if c not in trust.certificates] == [Role.ROUTER]


def test_without_its_authority_a_service_begins_anew():
    trust, _ = settled(Trust(), NOW)
    healed, steps = settled(replace(trust, authorities=()), NOW + DAY)
    assert steps == ["Found", "Issue"]
    assert {c.issuer for c in healed.certificates} == {healed.authorities[0].fingerprint}


def test_an_authority_that_ended_while_the_operator_was_away_is_dropped():
    trust, _ = settled(Trust(), NOW)
    healed, steps = settled(trust, NOW + AUTHORITY_LIFE)
    assert steps == ["Found", "Drop", "Issue"]
    assert len(healed.authorities) == 1


waits = st.one_of(
    st.timedeltas(timedelta(0), timedelta(minutes=40)),
    st.timedeltas(timedelta(0), 40 * DAY),
    st.just(AUTHORITY_LIFE / 3),
)


def almost_renewed():
    """Return a trust whose authority is about to get a successor, and the time."""
    now, end = NOW, NOW + AUTHORITY_LIFE - AUTHORITY_RENEWAL
    trust, _ = settled(Trust(), now)
    while now + 25 * DAY < end:
        now += 25 * DAY
        trust, _ = settled(trust, now)
    return trust, end


ALMOST = almost_renewed()


@given(st.lists(st.tuples(waits, st.lists(st.integers(1, 3), max_size=4)), min_size=1, max_size=60))
def test_no_two_processes_ever_refuse_each_other(passes):
    """Each pass may die after any write; a process has what its Secret held at some moment of the last SPREAD."""
    trust, now = ALMOST
    written = {each.role: [(now, each)] for each in trust.certificates}
    expiry = {a.fingerprint: a.expires for a in trust.authorities}
    for wait, steps in passes:
        now += wait
        for writes in steps:
            step = due(trust, now)
            if isinstance(step, Settled):
                break
            if isinstance(step, Issue):
                step = replace(step, roles=step.roles[:writes])
            trust = done(trust, step, now)
            for each in trust.certificates:
                if written[each.role][-1][1] != each:
                    written[each.role].append((now, each))
        # Held by some process of the role: what is written, and what was until less than SPREAD ago.
        held = {
            role: [
                certificate
                for n, (_, certificate) in enumerate(history)
                if n + 1 == len(history) or history[n + 1][0] + SPREAD > now
            ]
            for role, history in written.items()
        }
        expiry |= {a.fingerprint: a.expires for a in trust.authorities}
        for one in (c for role in held for c in held[role]):
            for other in (c for role in held for c in held[role]):
                alive = one.expires > now and other.expires > now and expiry[one.issuer] > now
                assert not alive or one.issuer in other.trusts, (one, other)


@given(st.lists(waits, max_size=80))
def test_an_operator_that_runs_now_and_then_keeps_every_certificate_alive(passes):
    trust, now = settled(Trust(), NOW)[0], NOW
    for wait in passes:
        now += min(wait, CERTIFICATE_RENEWAL)
        assert all(each.expires > now for each in trust.certificates)
        trust, _ = settled(trust, now)
        assert len(trust.authorities) <= 2

"""Only a fresh message of the operator to this very agent is obeyed."""

from __future__ import annotations

import json

import pytest
from hotstart.exchange.signing import RefusedMessage, Stamp, make_jwks, make_signing_key, sign, verify
from hypothesis import given
from hypothesis import strategies as st

KEY, NEXT_KEY, STRANGER = make_signing_key(), make_signing_key(), make_signing_key()
JWKS = json.loads(make_jwks((KEY, NEXT_KEY)))
NOW = 1_800_000_000.0
FIRST, STAMP = Stamp(-1, -1), Stamp(3, 7)


def signed(body: bytes = b"{}", *, key=KEY, audience="pod-1", stamp=STAMP, now=NOW) -> str:
    return sign(body, key=key, audience=audience, stamp=stamp, now=now)


@pytest.mark.parametrize("key", [KEY, NEXT_KEY], ids=["the current key", "the next key"])
def test_a_good_message_gives_its_stamp(key) -> None:
    token = signed(b"body", key=key)
    assert verify(token, b"body", jwks=JWKS, audience="pod-1", newest=Stamp(3, 6), now=NOW) == Stamp(3, 7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token": signed(b"body", key=STRANGER)}, "unknown key id"),
        ({"token": "no token"}, "Not enough segments"),
        ({"token": ""}, "Not enough segments"),
        ({"body": b"other"}, "not the one that was signed"),
        ({"audience": "pod-2"}, "Audience"),
        ({"newest": Stamp(3, 7)}, "not newer"),
        ({"newest": Stamp(4, 0)}, "not newer"),
        ({"now": NOW + 31}, "too old"),
        ({"now": NOW - 31}, "too old"),
        ({"jwks": {"keys": []}}, "unknown key id"),
    ],
)
def test_anything_else_is_refused(changes, said) -> None:
    good = {"token": signed(b"body"), "body": b"body", "jwks": JWKS, "audience": "pod-1", "newest": FIRST, "now": NOW}
    call = {**good, **changes}
    with pytest.raises(RefusedMessage, match=said):
        verify(call.pop("token"), call.pop("body"), **call)


def test_a_forged_algorithm_is_refused() -> None:
    import jwt

    public = next(entry for entry in JWKS["keys"] if entry["kid"] == KEY.kid)["x"]
    forged = jwt.encode({"aud": "pod-1", "iat": NOW, "exp": NOW + 9}, public.ljust(64, "="), headers={"kid": KEY.kid})
    with pytest.raises(RefusedMessage):
        verify(forged, b"", jwks=JWKS, audience="pod-1", newest=FIRST, now=NOW)


@given(st.tuples(st.integers(0, 9), st.integers(0, 9)), st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_stamps_are_ordered_by_epoch_then_sequence(newest, stamp) -> None:
    token = signed(stamp=Stamp(*stamp))
    if stamp > newest:
        assert verify(token, b"{}", jwks=JWKS, audience="pod-1", newest=Stamp(*newest), now=NOW) == Stamp(*stamp)
    else:
        with pytest.raises(RefusedMessage):
            verify(token, b"{}", jwks=JWKS, audience="pod-1", newest=Stamp(*newest), now=NOW)


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_a_body_is_bound_to_its_token(body, other) -> None:
    token = signed(body)
    if body == other:
        verify(token, other, jwks=JWKS, audience="pod-1", newest=FIRST, now=NOW)
    else:
        with pytest.raises(RefusedMessage):
            verify(token, other, jwks=JWKS, audience="pod-1", newest=FIRST, now=NOW)

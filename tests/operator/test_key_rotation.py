"""The exchange's keys: the decision as a table, then months of it against agents that see their ConfigMap late."""

from __future__ import annotations

import asyncio
import base64
import json
from types import SimpleNamespace

import pytest
from hotstart.exchange.names import KEYS_CONFIGMAP, SIGNING_SECRET
from hotstart.exchange.signing import RefusedMessage, Stamp, make_signing_key, sign, verify
from hotstart.operator.adapters.signing_keys import ensure_signing_keys, read_secret
from hotstart.operator.app.key_keeper import LOOK_SECONDS, REPUBLISH_SECONDS, KeyKeeper
from hotstart.operator.core.errors import BadSettings, Conflict, Forbidden, Terminal
from hotstart.operator.core.key_rotation import (
    ANNOTATION_ROTATE,
    PUBLISH_SECONDS,
    RETIRE_SECONDS,
    DatedKey,
    decide_keys,
)
from hotstart.operator.reconcile.observed import Key, Observed
from hotstart.operator.settings import read_key_rotation
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.operator.doubles import START, Clock, FakeCluster

PERIOD = 720 * 3600.0
KUBELET_SECONDS = 90.0
OLD, NEW, OLDEST = (make_signing_key() for _ in range(3))
NOW = START
ONE = (DatedKey(OLD, NOW - 10),)
AGED = (DatedKey(OLD, NOW - PERIOD),)
TWO = (DatedKey(NEW, NOW - 9000), DatedKey(OLD, NOW - PERIOD))
SETTLED, RETIRED = NOW - PUBLISH_SECONDS, NOW - PUBLISH_SECONDS - RETIRE_SECONDS


@pytest.mark.parametrize(
    ("keys", "published", "forced", "signs", "kept", "next_due"),
    [
        pytest.param(ONE, None, False, OLD, ONE, False, id="a lone key signs before anybody has seen it: it must"),
        pytest.param(ONE, NOW, False, OLD, ONE, False, id="a young key stays"),
        pytest.param(ONE, NOW, True, OLD, ONE, True, id="a young key is replaced where somebody wants it"),
        pytest.param(AGED, NOW, False, OLD, AGED, True, id="an old key is replaced"),
        pytest.param(TWO, None, False, OLD, TWO, False, id="the next key is not published yet: the old one signs"),
        pytest.param(TWO, SETTLED + 1, False, OLD, TWO, False, id="the next key is not seen everywhere yet"),
        pytest.param(TWO, SETTLED, False, NEW, TWO, False, id="the next key is seen everywhere: it signs"),
        pytest.param(TWO, RETIRED + 1, False, NEW, TWO, False, id="messages of the old one may be on their way"),
        pytest.param(TWO, RETIRED, False, NEW, TWO[:1], False, id="the old key goes"),
        pytest.param(TWO, SETTLED, True, NEW, TWO, False, id="one rotation after the other"),
        pytest.param(
            (*TWO, DatedKey(OLDEST, 0)), None, False, OLD, TWO, False, id="a third key that somebody put there goes"
        ),
    ],
)
def test_which_key_signs(keys, published, forced, signs, kept, next_due) -> None:
    plan = decide_keys(keys, published, NOW, period=PERIOD, forced=forced)
    assert (plan.signing, plan.kept, plan.next_due) == (signs, kept, next_due)


class Queue:
    def __init__(self) -> None:
        self.keys: list[Key] = []

    def add(self, key: Key) -> None:
        self.keys.append(key)


class Cluster(FakeCluster):
    """With what the keys need beside the port, and namespaces that refuse."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.refusing: set[str] = set()

    async def replace(self, body):
        standing = self.objects[self._place(body)]
        if body["metadata"]["resourceVersion"] != standing["metadata"]["resourceVersion"]:
            raise Conflict("changed meanwhile")
        self.writes.append(f"replace {body['kind']}/{body['metadata']['name']}")
        return self._store(json.loads(json.dumps(body)))

    async def apply(self, body):
        if body["metadata"]["namespace"] in self.refusing:
            raise Forbidden("no ConfigMaps here")
        return await super().apply(body)


class Life:
    """Leaders one after the other, and an agent in each namespace whose kubelet shows it the ConfigMap late."""

    NAMESPACES = ("system", "team", "other")

    def __init__(self) -> None:
        self.clock = Clock()
        self.cluster = Cluster(self.clock)
        self.epoch = 0
        self.seen: dict[str, str] = {}  # JWKS by namespace, as agents see it
        self.shown: dict[str, tuple[str, float]] = {}  # what the kubelet will show, and since when it stands
        self.newest = dict.fromkeys(self.NAMESPACES, Stamp(-1, -1))
        self.refused: list[str] = []
        self.lead()

    def lead(self) -> None:
        """Another process leads."""
        observed = Observed()
        for namespace in self.NAMESPACES[1:]:
            observed.put(
                {"kind": "CompletionModel", "metadata": {"name": "m", "namespace": namespace, "uid": namespace}}
            )
        self.client = SimpleNamespace(sign_with=lambda key: setattr(self.client, "key", key))
        secret = asyncio.run(ensure_signing_keys(self.cluster, "system", self.clock.now()))
        self.epoch, self.sequence, self.queue = self.epoch + 1, 0, Queue()
        self.keeper = KeyKeeper(
            self.cluster, "system", self.clock, PERIOD, self.client, observed, self.queue, secret.keys
        )

    def run(self, seconds: float) -> None:
        """Look after look; after each, a message to every agent that has a ConfigMap at all."""
        asyncio.run(self._run(self.clock.seconds + seconds))

    async def _run(self, end: float) -> None:
        while self.clock.seconds < end:
            await self.keeper.turn_quietly()
            for namespace in self.NAMESPACES:
                self._sync(namespace)
                self._ask(namespace)
            self.clock.seconds += LOOK_SECONDS

    def age(self, seconds: float) -> None:
        """The leader sleeps, and the kubelets do not."""
        self.clock.seconds += seconds
        for namespace in self.NAMESPACES:
            self._sync(namespace)

    def _sync(self, namespace: str) -> None:
        standing = self.cluster.objects.get(("ConfigMap", namespace, KEYS_CONFIGMAP))
        if standing is None:
            return
        jwks = standing["data"]["jwks.json"]
        if namespace not in self.seen:  # a pod starts with what stands
            self.seen[namespace] = jwks
        if self.shown.get(namespace, ("", 0))[0] != jwks:
            self.shown[namespace] = (jwks, self.clock.now())
        elif self.clock.now() - self.shown[namespace][1] >= KUBELET_SECONDS:
            self.seen[namespace] = jwks

    def _ask(self, namespace: str) -> None:
        if namespace not in self.seen:
            return
        self.sequence += 1
        stamp, now = Stamp(self.epoch, self.sequence), self.clock.now()
        token = sign(b"{}", key=self.client.key, audience=namespace, stamp=stamp, now=now)
        jwks = json.loads(self.seen[namespace])
        try:
            self.newest[namespace] = verify(
                token, b"{}", jwks=jwks, audience=namespace, newest=self.newest[namespace], now=now
            )
        except RefusedMessage as refusal:
            self.refused.append(f"{now - START:.0f} s, {namespace}: {refusal}")

    def kids(self) -> list[str]:
        return [dated.key.kid for dated in read_secret(self.secret(), "system").keys]

    def secret(self) -> dict:
        return self.cluster.objects["Secret", "system", SIGNING_SECRET]

    def force(self) -> None:
        self.cluster.change(
            "Secret", SIGNING_SECRET, {"metadata": {"annotations": {ANNOTATION_ROTATE: "yes"}}}, "system"
        )


def test_a_forced_rotation_replaces_the_key_and_no_agent_refuses_a_message() -> None:
    life = Life()
    life.run(60)
    (first,) = life.kids()
    life.force()
    life.run(60)
    assert len(life.kids()) == 2 and life.kids()[1] == first == life.client.key.kid
    assert ANNOTATION_ROTATE not in life.secret()["metadata"]["annotations"], "spent"
    life.run(PUBLISH_SECONDS + RETIRE_SECONDS + 60)
    assert life.kids() == [life.client.key.kid] != [first]
    assert first not in "".join(life.seen.values()), "agents no longer take the old key"
    assert life.refused == []


def test_a_key_is_replaced_at_its_age_and_not_before() -> None:
    life = Life()
    life.run(60)
    before = life.kids()
    life.age(PERIOD - 3600)
    life.run(60)
    assert life.kids() == before
    life.age(3600)
    life.run(60)
    assert len(life.kids()) == 2


def test_a_key_that_an_older_version_left_without_a_date_is_replaced() -> None:
    life = Life()
    entries = json.loads(base64.b64decode(life.secret()["data"]["keys.json"]))
    undated = [{name: text for name, text in entry.items() if name != "created"} for entry in entries]
    data = {"keys.json": base64.b64encode(json.dumps(undated).encode()).decode()}
    life.cluster.change("Secret", SIGNING_SECRET, {"data": data}, "system")
    life.lead()
    life.run(60)
    assert len(life.kids()) == 2


def test_a_leader_that_dies_in_the_middle_leaves_a_next_key_that_nobody_has_seen() -> None:
    life = Life()
    life.run(60)
    life.force()
    life.cluster.refusing = set(life.NAMESPACES)
    life.run(30)
    life.clock.seconds += 3600  # nobody leads for an hour
    life.cluster.refusing = set()
    life.lead()
    life.run(PUBLISH_SECONDS + RETIRE_SECONDS + 60)
    assert len(life.kids()) == 1
    assert life.refused == []


def test_a_namespace_that_takes_no_keys_holds_the_next_one_back() -> None:
    life = Life()
    life.run(60)
    (first,) = life.kids()
    life.cluster.refusing = {"other"}
    life.force()
    life.run(3600)
    assert life.client.key.kid == first
    life.cluster.refusing = set()
    life.run(PUBLISH_SECONDS + 60)
    assert life.client.key.kid != first
    assert life.refused == []


def test_a_deleted_configmap_comes_back() -> None:
    life = Life()
    life.run(60)
    for namespace in life.NAMESPACES:
        life.cluster.drop("ConfigMap", KEYS_CONFIGMAP, namespace)
    life.run(REPUBLISH_SECONDS + LOOK_SECONDS)
    assert all(("ConfigMap", namespace, KEYS_CONFIGMAP) in life.cluster.objects for namespace in life.NAMESPACES)


def test_a_deleted_secret_is_an_emergency_stop_for_its_key() -> None:
    """Agents hear nothing until their kubelets have synced; then only of the new key."""
    life = Life()
    life.run(60)
    (first,) = life.kids()
    life.cluster.drop("Secret", SIGNING_SECRET, "system")
    life.run(KUBELET_SECONDS + 2 * LOOK_SECONDS)
    assert first not in "".join(life.seen.values())
    before = len(life.refused)
    life.run(600)
    assert len(life.refused) == before


def test_a_second_look_writes_nothing_and_models_hear_of_new_keys() -> None:
    life = Life()
    life.run(30)
    life.cluster.writes.clear()
    life.queue.keys.clear()
    life.run(300)
    assert life.cluster.writes == [] and life.queue.keys == []
    life.force()
    life.run(30)
    assert [key.namespace for key in life.queue.keys] == ["other", "team"]


def test_a_secret_with_something_else_is_named_and_the_keys_stay(caplog) -> None:
    life = Life()
    life.run(30)
    life.cluster.change("Secret", SIGNING_SECRET, {"data": {"keys.json": "bm9uZQ=="}}, "system")
    life.run(60)
    assert "holds no signing keys in keys.json" in caplog.text
    assert life.refused == []
    with pytest.raises(Terminal):
        life.lead()


EVENTS = st.lists(
    st.tuples(st.sampled_from(["force", "lead", "refuse", "allow", "age"]), st.integers(1, 40)), max_size=8
)


@hypothesis_settings(max_examples=12, deadline=None)
@given(EVENTS)
def test_whatever_happens_no_agent_refuses_a_message(events) -> None:
    life = Life()
    life.run(30)
    for event, looks in events:
        if event == "force":
            life.force()
        elif event == "lead":
            life.lead()
        elif event == "age":
            life.age(PERIOD)
        else:
            life.cluster.refusing = {"other"} if event == "refuse" else set()
        life.run(looks * LOOK_SECONDS)
        assert 1 <= len(life.kids()) <= 2
    assert life.refused == []


def test_a_private_key_is_not_shown_with_its_object() -> None:
    assert "PRIVATE" not in repr(DatedKey(OLD, NOW))


@pytest.mark.parametrize("text", ["59m", "0h", "a month"])
def test_a_period_too_short_is_refused(text: str) -> None:
    with pytest.raises(BadSettings, match="HOTSTART_KEY_ROTATION"):
        read_key_rotation(text)
    assert read_key_rotation("720h") == PERIOD

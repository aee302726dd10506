"""Learned policies on disk: what is written comes back, what is damaged is refused with its reason."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies_rows import COLUMNS, network, write_checkpoint
from policies_rows import rows as rows_of
from safetensors.numpy import load_file, save

from saga_rl.errors import UserError
from saga_rl.policies.features import (
    E_ENDED,
    E_QUEUE_LOG,
    E_TOKENS,
    E_WAITING,
    LEARNED_EVICTION,
    LEARNED_PLACEMENT,
)
from saga_rl.policies.learned import checkpoint_checks
from saga_rl.policies.learned.checkpoint import load_checkpoint, save_checkpoint
from saga_rl.policies.learned.mlp import forward, mlp_score, pack, scratch_size
from saga_rl.policies.learned.settled import settled_score
from saga_rl.policies.registry import make

F = len(LEARNED_EVICTION)


def compiled(layers, mean, std, rows):
    params, scratch = pack(layers, mean, std), np.full(scratch_size(layers), np.nan)
    return np.array([mlp_score(r, params, scratch) for r in rows])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.lists(st.integers(1, 33), max_size=3), st.integers(0, 9))
def test_compiled_network_equals_numpy(n_in, hidden, seed):
    layers, mean, std = network(n_in, tuple(hidden), seed)
    rows = np.random.default_rng(seed).normal(size=(5, n_in + 3)) * 30
    np.testing.assert_allclose(compiled(layers, mean, std, rows), forward(layers, mean, std, rows[:, :n_in]),
                               rtol=1e-10, atol=1e-9)


def test_compiled_network_equals_torch():
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(F, 24), torch.nn.ReLU(), torch.nn.Linear(24, 1)).double()
    rng = np.random.default_rng(0)
    mean, std, rows = rng.normal(size=F), rng.uniform(0.5, 2, F), rng.normal(size=(20, F))
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in net if isinstance(m, torch.nn.Linear)]
    want = net(torch.from_numpy((rows - mean) / std)).detach().numpy()[:, 0]
    np.testing.assert_allclose(compiled(layers, mean, std, rows), want, atol=1e-12)


def test_a_nan_or_overflow_scores_zero_and_inputs_are_clipped():
    layers, mean, std = network(4)
    rows = np.zeros((4, 4))
    rows[0, 2], rows[1, 2], rows[2, 2], rows[3, 2] = np.nan, np.inf, 1e300, 1e6
    got = compiled(layers, mean, std, rows)
    assert got[0] == 0.0
    assert got[1] == got[2] == got[3] == pytest.approx(forward(layers, mean, std, rows[3:])[0])
    huge = [(w * np.float64(1e200), b) for w, b in layers]
    assert compiled(huge, mean, std, np.ones((1, 4)))[0] == 0.0


@pytest.mark.parametrize(("decision", "features"), [("eviction", LEARNED_EVICTION), ("placement", LEARNED_PLACEMENT)])
def test_round_trip(tmp_path, decision, features):
    layers, mean, std = network(len(features))
    others = {"ordering": "afs", "admission": "none", "eviction": "lru", "placement": "saga:theta=1.5"}
    del others[decision]
    card = "# Card: tuned on Bélády\n"
    save_checkpoint(tmp_path / "c", decision, layers, mean, std, card, {"seed": 3}, others)
    got = load_checkpoint(tmp_path / "c")
    assert (got.decision, got.others, got.meta, got.card) == (decision, others, {"seed": 3}, card)
    for (w, b), (w2, b2) in zip(layers, got.layers, strict=True):
        np.testing.assert_array_equal(w, w2)
        np.testing.assert_array_equal(b, b2)
    policy = got.policy()
    rows = np.random.default_rng(1).uniform(size=(4, len(COLUMNS[decision])))
    if decision == "eviction":  # neither waiting nor ended, and all of use: the network's to rank
        rows[:, [E_WAITING, E_ENDED, E_TOKENS]] = 0.0
    scores = [policy.score(r, policy.params, np.zeros(policy.scratch)) for r in rows]
    np.testing.assert_allclose(scores, forward(layers, mean, std, rows[:, :len(features)]), rtol=1e-12)
    assert policy.doc["sha256"] == got.sha256
    names = {s: spec.partition(":")[0] for s, spec in others.items()} | {decision: "learned"}
    assert got.policies().names() == names


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99), scale=st.sampled_from([1.0, 1e3, 1e30]), data=st.data())
def test_no_weights_reach_beyond_what_is_known(seed, scale, data):
    """Ended before idle before waiting; farther back in the queue before nearer: for any network."""
    layers, mean, std = network(F, seed=seed)
    params = pack([(w * np.float64(scale), b) for w, b in layers], mean, std)
    scratch = np.zeros(scratch_size(layers))
    ended, idle, far, near = (data.draw(rows_of("eviction")) for _ in range(4))
    for row, waiting, end in ((ended, 0, 1), (idle, 0, 0), (far, 1, 0), (near, 1, 0)):
        row[E_WAITING], row[E_ENDED], row[E_TOKENS] = waiting, end, 0.0
    far[E_QUEUE_LOG], near[E_QUEUE_LOG] = np.log1p(7), np.log1p(6)
    scores = [settled_score(row, params, scratch) for row in (ended, idle, far, near)]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 4


def test_saving_twice_gives_the_same_bytes_and_replaces(tmp_path):
    a, b = write_checkpoint(tmp_path / "a"), write_checkpoint(tmp_path / "b")
    write_checkpoint(tmp_path / "a", card="# Newer")
    assert load_checkpoint(a).card == "# Newer"
    for name in ("policy.safetensors", "policy.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_failed_save_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "c")
    write = Path.write_bytes

    def full_disk(self, data):
        if self.name == "CARD.md":
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint(folder, card="# Newer")
    assert load_checkpoint(folder).card == "# A test policy"
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_save_refuses_what_load_would(tmp_path):
    layers, mean, std = network(F)
    others = {"placement": "saga", "ordering": "fcfs", "admission": "none"}

    def refused(match, decision="eviction", layers=layers, std=std, meta=None, others=others, to="c"):
        with pytest.raises(UserError, match=match):
            save_checkpoint(tmp_path / to, decision, layers, mean, std, "", meta or {}, others)

    refused("cannot be learned", decision="routing")
    refused("layer 0 has shapes", layers=[(w.T, b) for w, b in layers])
    refused("NaN or infinity", layers=[(w * np.nan, b) for w, b in layers])
    refused("last layer has 8 outputs", layers=layers[:-1])
    refused("tensors are not those", layers=[])
    refused("std is not above 0", std=std * 0)
    refused("meta cannot be written", meta={"loss": float("nan")})
    refused("policies for the other decisions are", others={"placement": "saga"})
    refused("no placement policy named 'sagaa'", others=others | {"placement": "sagaa"})
    refused("does not exist", to="no/where")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    refused("is not a checkpoint", to="mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def edit(**changes):
    def damage(folder):
        path = folder / "policy.json"
        manifest = json.loads(path.read_text())
        for key, value in changes.items():
            manifest[key] = value
        path.write_text(json.dumps(manifest))
    return damage


def reweigh(change):
    """Alter the tensors and sign them anew, as a careless or hostile writer would."""
    def damage(folder):
        tensors = load_file(folder / "policy.safetensors")
        change(tensors)
        data = save(tensors)
        (folder / "policy.safetensors").write_bytes(data)
        edit(sha256=hashlib.sha256(data).hexdigest())(folder)
    return damage


def truncate(folder):
    path = folder / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def flip(folder):
    path = folder / "policy.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def poison(t):
    t["1.bias"] = t["1.bias"] * np.float32(np.nan)


DAMAGE = {
    "no-weights": (lambda f: (f / "policy.safetensors").unlink(), "holds no policy.safetensors"),
    "no-json": (lambda f: (f / "policy.json").unlink(), "holds no policy.json"),
    "no-card": (lambda f: (f / "CARD.md").unlink(), "holds no CARD.md"),
    "not-json": (lambda f: (f / "policy.json").write_text('{"format": '), "is not JSON"),
    "not-text": (lambda f: (f / "policy.json").write_bytes(b"\xff\xfe\x00"), "is not JSON"),
    "deep-json": (lambda f: (f / "policy.json").write_text("[" * 100_000), "is not JSON"),
    "a-list": (lambda f: (f / "policy.json").write_text("[]"), "format is not"),
    "format": (edit(format="other"), "format is not 'saga-rl-policy'"),
    "future": (edit(version=2), "version is 2, this release reads 1"),
    "no-hash": (edit(feature_hash=None), "feature_hash is missing or not a str"),
    "seam": (edit(seam="routing"), "cannot be learned"),
    "odd-features": (edit(features=[1, 2]), "features are not all names"),
    "features": (edit(features=["idle_log", "mood"]), r"other features \(.*mood"),
    "order": (edit(features=list(LEARNED_EVICTION[::-1])), "in another order"),
    "hash": (edit(feature_hash="0" * 64), "features that are computed otherwise.*retrain it, or use the release"),
    "companions": (edit(others={"eviction": "lru"}), "policies for the other decisions are"),
    "companion-type": (edit(others={"placement": 1, "ordering": "fcfs", "admission": "none"}), "policies for the other decisions are"),
    "sizes": (edit(sizes=[F, 1]), "says sizes"),
    "truncated": (truncate, "not a safetensors file, or is cut short"),
    "pickle": (lambda f: (f / "policy.safetensors").write_bytes(b"\x80\x04N."), "not a safetensors file"),
    "bit-flip": (flip, "sha256 differs"),
    "nan": (reweigh(poison), "'1.bias' holds NaN or infinity"),
    "missing-tensor": (reweigh(lambda t: t.pop("1.bias")), "tensors are not those of a network"),
    "extra-tensor": (reweigh(lambda t: t.update(extra=np.zeros(3, np.float32))), r"network \(extra\)"),
    "shape": (reweigh(lambda t: t.update({"0.weight": np.zeros((8, 3), np.float32)})), "layer 0 has shapes"),
    "rank": (reweigh(lambda t: t.update({"0.weight": np.zeros(8, np.float32)})), "layer 0 has shapes"),
    "empty": (reweigh(lambda t: t.update({"0.weight": np.zeros((0, F), "f4"), "0.bias": np.zeros(0, "f4")})),
              "layer 0 has shapes"),
    "mean-shape": (reweigh(lambda t: t.update(mean=np.zeros(3))), "mean has shape"),
    "std-zero": (reweigh(lambda t: t.update(std=np.zeros(F))), "std is not above 0"),
    "double-weights": (reweigh(lambda t: t.update({"0.weight": t["0.weight"].astype(float)})), "is float64"),
    "dtype": (reweigh(lambda t: t.update({"0.weight": t["0.weight"].astype(np.float16)})), "is F16"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_with_its_reason(tmp_path, kind):
    damage, message = DAMAGE[kind]
    folder = write_checkpoint(tmp_path / "c")
    damage(folder)
    with pytest.raises(UserError, match=message) as e:
        make("eviction", f"learned:{folder}")
    assert str(folder) in e.value.where and e.value.mend


def test_too_large_is_refused_unread(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "c")
    monkeypatch.setattr(checkpoint_checks, "MAX_WEIGHTS", 100)
    with pytest.raises(UserError, match="more than 100"):
        load_checkpoint(folder)
    with open(folder / "policy.safetensors", "ab") as f:
        f.truncate(checkpoint_checks.MAX_BYTES + 1)
    with pytest.raises(UserError, match="more than a policy may"):
        load_checkpoint(folder)


def test_wrong_decision_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "c", "placement")
    with pytest.raises(UserError, match="is a checkpoint of placement, not of eviction"):
        make("eviction", f"learned:{folder}")

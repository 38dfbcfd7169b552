"""The cache by digest: bounded, indexed by subject, and silent about its keys."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.auth.token_cache import TokenCache

ENTRIES_MAX = 4
digests = st.integers(0, 7).map(lambda number: bytes([number]) * 32)
subjects = st.tuples(st.sampled_from(["token", "user", "org"]), st.sampled_from("abc"))


class CacheBesideAModel(RuleBasedStateMachine):
    """A list of entries, the least recently used first, does what the cache does."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: TokenCache[int] = TokenCache(entries_max=ENTRIES_MAX)
        self.model: list[tuple[bytes, int, frozenset[tuple[str, str]]]] = []

    def forget(self, digest: bytes) -> None:
        self.model = [entry for entry in self.model if entry[0] != digest]

    @rule(digest=digests, value=st.integers(), its=st.lists(subjects, max_size=3))
    def put(self, digest: bytes, value: int, its: list[tuple[str, str]]) -> None:
        self.cache.put(digest, value, subjects=its)
        self.forget(digest)
        self.model.append((digest, value, frozenset(its)))
        self.model = self.model[-ENTRIES_MAX:]

    @rule(digest=digests)
    def get(self, digest: bytes) -> None:
        entry = next((entry for entry in self.model if entry[0] == digest), None)
        assert self.cache.get(digest) == (entry and entry[1])
        if entry is not None:
            self.forget(digest)
            self.model.append(entry)

    @rule(digest=digests)
    def discard(self, digest: bytes) -> None:
        self.cache.discard(digest)
        self.forget(digest)

    @rule(subject=subjects)
    def evict(self, subject: tuple[str, str]) -> None:
        self.cache.evict(subject)
        self.model = [entry for entry in self.model if subject not in entry[2]]

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model = []

    @invariant()
    def holds_what_the_model_holds_and_no_index_beyond(self) -> None:
        assert len(self.cache) == len(self.model)
        index: dict[tuple[str, str], set[bytes]] = {}
        for digest, _, its in self.model:
            for subject in its:
                index.setdefault(subject, set()).add(digest)
        assert self.cache._by_subject == index


TestTheCacheBesideAModel = CacheBesideAModel.TestCase


def test_its_repr_shows_no_digest() -> None:
    cache: TokenCache[int] = TokenCache(entries_max=1)
    cache.put(b"\xabsecret", 1, subjects=[])
    assert repr(cache) == "<TokenCache of 1 entries>"

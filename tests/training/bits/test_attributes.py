"""Each shard has the plain attributes of a user's modules for itself."""

from __future__ import annotations

from torch import nn

from training.bits.attributes import ShardAttributes


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps, self.weight, self.cache = 0, 1.0, None
        self.inner = nn.Linear(1, 1)

    cache: dict[str, int] | None
    name: str

    def step(self, shard: int) -> None:
        self.steps += 1
        self.weight *= shard + 2
        if self.cache is None:
            self.cache = {"shard": shard}


def test_shards_that_take_turns_count_for_themselves() -> None:
    module = Counter()
    attributes = ShardAttributes(module, 2)
    for _ in range(3):
        attributes.begin()
        for shard in (0, 1):
            attributes.enter(shard)
            module.step(shard)
        for shard in (1, 0):  # they go on after a meeting
            attributes.enter(shard)
            assert module.cache == {"shard": shard}
            module.weight += shard
        attributes.leave()

    assert (module.steps, module.weight, module.cache) == (3, 8.0, {"shard": 0})
    attributes.enter(1)
    assert (module.steps, module.weight, module.cache) == (3, ((3 + 1) * 3 + 1) * 3 + 1, {"shard": 1})


def test_what_is_set_between_steps_all_shards_get() -> None:
    module = Counter()
    attributes = ShardAttributes(module, 2)
    attributes.begin()
    for shard in (0, 1):
        attributes.enter(shard)
        module.step(shard)
    attributes.leave()
    module.weight, module.name = 0.5, "set in a hook"
    del module.cache

    attributes.begin()

    for shard in (0, 1):
        attributes.enter(shard)
        assert (module.steps, module.weight, module.name) == (1, 0.5, "set in a hook")
        assert not hasattr(module, "cache")

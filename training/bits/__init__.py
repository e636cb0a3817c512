"""Training to the last bit: the same weights, bit by bit, on any number of workers.

A batch is cut into shards, whose number does not depend on the workers. Whatever a model computes, it
computes shard by shard, so that each kernel gets the same shapes wherever a shard lies; and whatever is added
over shards is added in an order, or in numbers, in which the sum does not depend on where they lie.

May import `callbacks`, `errors`, `internals`, `loading`, `metric_internals`, `model`, `sync_bn`, `versions`.
"""

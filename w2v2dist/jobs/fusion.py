"""Element-wise chains as one pass over memory: what a compiler makes of a graph's operators."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from w2v2dist.jobs.graph import Operator


@dataclass(slots=True)
class _Chain:
    first: int  # place of its first operator
    numel: int
    places: list[int]


def fused(operators: Sequence[Operator]) -> list[Operator]:
    """The kernels after fusion. An element-wise operator, a norm or a sum joins the chain that made
    one of its inputs, where both go over tensors of one size and its other inputs were there before
    the chain began (so that it need not wait for a kernel that waits for the chain). A chain reads
    each tensor from outside once and writes only what others read, or nobody yet (a gradient of a
    parameter, a result). Products, convolutions, attention and copies that turn memory stay."""
    made_by: dict[int, int] = {}  # storage -> place of what wrote it last
    chain_of: dict[int, _Chain] = {}  # place -> its chain
    chains: list[_Chain] = []
    for place, op in enumerate(operators):
        chain = None
        if op.joined:
            makers = {made_by[s] for s in op.reads if s in made_by}
            near = [chain_of[m] for m in sorted(makers, reverse=True) if m in chain_of]
            fitting = (c for c in near if _fits(c, op, makers, chain_of, operators))
            chain = next(fitting, None)
        if chain is None:
            chain = _Chain(place, op.numel, [])
            chains.append(chain)
        chain.places.append(place)
        if op.joined:
            chain_of[place] = chain
        made_by |= dict.fromkeys(op.writes, place)
    readers: dict[int, list[int]] = defaultdict(list)
    for place, op in enumerate(operators):
        for storage in op.reads:
            readers[storage].append(place)
    return [_kernel(chain, operators, readers) for chain in chains]


def _fits(
    chain: _Chain,
    op: Operator,
    makers: set[int],
    chain_of: dict[int, _Chain],
    operators: Sequence[Operator],
) -> bool:
    alike = operators[chain.first].backward == op.backward and chain.numel == op.numel
    return alike and all(m < chain.first or chain_of.get(m) is chain for m in makers)


def _kernel(
    chain: _Chain, operators: Sequence[Operator], readers: dict[int, list[int]]
) -> Operator:
    """A chain as one operator."""
    members = [operators[place] for place in chain.places]
    if len(members) == 1:
        return members[0]
    inside, places = {s for op in members for s in op.writes}, {*chain.places}
    reads: dict[int, float] = {}
    writes: dict[int, float] = {}
    written: set[int] = set()
    for op in members:
        for storage, size in op.reads.items():
            if storage not in written:
                reads[storage] = max(size, reads.get(storage, 0.0))
        written |= {*op.writes}
        writes |= op.writes
    kept = {
        s: size
        for s, size in writes.items()
        if s in inside and (not (others := readers[s]) or not {*others} <= places)
    }
    largest = max(members, key=lambda op: op.bytes)
    return replace(largest, name="+".join(op.name for op in members), reads=reads, writes=kept)

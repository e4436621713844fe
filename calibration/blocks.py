"""Layer blocks against full blocks: a block of KV cache copied whole, by layers, or by a gather kernel.

A full block comes from the host's memory and goes back there. Copies are checked, after the timing, to
have arrived in every way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibration import fit
from calibration.clock import Clock, Point, Work, in_rounds
from calibration.device import WORD_BYTES, check_arrived, copy_work, most_bytes, random_words, wait
from calibration.rooms import Measured, Tell
from dualpath_model.profile import Estimate, Series

if TYPE_CHECKING:
    import torch

WAYS = ("one", "layers", "gather")
DIRECTIONS = ("load", "save")

_DOUBTFUL_SHARE = 1.5
_BLOCK_POOL_BYTES = 2**27
_MOST_BLOCKS = 32


class Blocks:
    """Full blocks on the host, whole, and on the device: whole, and as layer blocks in scattered slots.

    A full block is [layers, words]; ``many`` of them, each word 8 bytes. Slot ``order[b, l]`` on the
    device belongs to layer l of block b.
    """

    def __init__(self, layers: int, words: int, many: int, device: torch.device, seed: int) -> None:
        """Fill the host's blocks with random words, and take the rest of the memory."""
        import torch

        pinned = device.type == "cuda"
        shape = (many, layers, words)
        host = torch.device("cpu")
        self.sent = random_words(many * layers * words, host, seed, pinned=pinned).view(shape)
        self.fetched = torch.zeros(shape, dtype=torch.int64, pin_memory=pinned)
        self.whole = torch.zeros(shape, dtype=torch.int64, device=device)
        self.slots = torch.zeros((many * layers, words), dtype=torch.int64, device=device)
        self.gathered = torch.zeros((layers, words), dtype=torch.int64, device=device)
        shuffled = torch.randperm(many * layers, generator=torch.Generator().manual_seed(seed))
        self.order = shuffled.view(many, layers)
        self._order = self.order.to(device)

    def works(self, direction: str, way: str) -> list[Work]:
        """Return works that each move one block: "load" from the host, "save" to it.

        ``way``: "one" copy of the whole block, a copy for each of its "layers" blocks, or one copy
        and one "gather" kernel between it and the slots.
        """
        blocks = range(len(self.sent))
        if way == "one":
            return [self._one(direction, block) for block in blocks]
        if way == "layers":
            return [self._layers(direction, block) for block in blocks]
        return [self._gather(direction, block) for block in blocks]

    def _one(self, direction: str, block: int) -> Work:
        if direction == "load":
            return copy_work(self.sent[block], self.whole[block])
        return copy_work(self.whole[block], self.fetched[block])

    def _layers(self, direction: str, block: int) -> Work:
        # Views are made before: an engine's loop is no slower for being written in Python.
        slots = [self.slots[slot] for slot in self.order[block].tolist()]
        host = self.sent[block] if direction == "load" else self.fetched[block]
        pairs = list(zip(host, slots, strict=True))
        if direction == "load":
            return lambda: [slot.copy_(layer, non_blocking=True) for layer, slot in pairs]
        return lambda: [layer.copy_(slot, non_blocking=True) for layer, slot in pairs]

    def _gather(self, direction: str, block: int) -> Work:
        import torch

        order, gathered, slots = self._order[block], self.gathered, self.slots
        sent, fetched = self.sent[block], self.fetched[block]

        def load() -> None:
            gathered.copy_(sent, non_blocking=True)
            slots.index_copy_(0, order, gathered)

        def save() -> None:
            torch.index_select(slots, 0, order, out=gathered)
            fetched.copy_(gathered, non_blocking=True)

        return load if direction == "load" else save

    def check(self) -> None:
        """Load and save the blocks in every way, and see that the same bytes come back.

        Raises DualPathError where they do not.
        """
        for way in WAYS:
            for buffer in (self.whole, self.slots, self.gathered):
                buffer.zero_()
            self.fetched.zero_()
            for work in [*self.works("load", way), *self.works("save", way)]:
                work()
            wait(self.slots.device)
            held = self.whole if way == "one" else self.slots[self._order]
            check_arrived(f"block_copy load {way}", self.sent, held)
            check_arrived(f"block_copy save {way}", self.sent, self.fetched)


def measure_blocks(
    room: Measured,
    layers: int,
    words: int,
    device: torch.device,
    seconds: float,
    tell: Tell,
    seed: int,
) -> None:
    """Add to ``room`` the rates of full blocks of ``layers`` times ``words`` of 8 bytes, in every way.

    Series: ``block_copy``; figures: ``layer_block_share`` and ``gather_share``. Where such blocks do
    not fit into memory, a warning instead. Raises DualPathError where a copy did not arrive.
    """
    import torch

    host = torch.device("cpu")
    block_bytes = layers * words * WORD_BYTES
    # On the host two pools, on the device two and the gathered block; on a CPU they are all one's.
    share = [(3, device), (2, host)] if device.type == "cuda" else [(5, device)]
    room_for = int(min([_BLOCK_POOL_BYTES, *(most_bytes(d) / n for n, d in share)]) // block_bytes)
    many = max(2, min(_MOST_BLOCKS, room_for))
    if any(n * many * block_bytes > most_bytes(d) for n, d in share):
        room.warnings.append(
            f"layer_block_share and gather_share are left out: full blocks of {block_bytes:,} bytes do "
            f"not fit into a quarter of the free memory"
        )
        return
    blocks = Blocks(layers, words, many, device, seed)
    points = [
        Point({"direction": direction, "way": way}, block_bytes, blocks.works(direction, way))
        for direction in DIRECTIONS
        for way in WAYS
    ]
    clock = Clock(device)
    samples = in_rounds(clock, points, seconds=seconds, tell=tell, left_out=room.warnings, most=50)
    blocks.check()
    series = Series(
        name="block_copy",
        unit="B",
        meaning=(
            f"a full block of {layers} layers x {words * WORD_BYTES} bytes, loaded from host memory or "
            f"saved to it"
        ),
        samples=samples,
    )
    room.series.append(series)
    rates: dict[str, Estimate] = {}
    for direction in DIRECTIONS:
        for way in WAYS:
            at = [
                i
                for i, sample in enumerate(samples)
                if (sample.at["direction"], sample.at["way"]) == (direction, way)
            ]
            name = f"block_{direction}_{way}"
            found = fit.typical(name, series, at, parameter="bytes_per_s")
            room.fits.append(found)
            rates[name] = found.parameters["bytes_per_s"]
    for way, figure in (("layers", "layer_block_share"), ("gather", "gather_share")):
        name = f"block_load_{way}"
        found_share = fit.share(rates[name], rates["block_load_one"], source=name)
        room.figures[figure] = found_share
        if found_share.value > _DOUBTFUL_SHARE:
            room.warnings.append(
                f"{figure} is {found_share.value:.1f} times a whole block's rate, which waiting threads "
                f"of the whole copy can do and copies cannot; measure again on an idle machine"
            )

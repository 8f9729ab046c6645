"""Keys and values of several answers at once, each in a slot of its own, for any decoder of transformers.

H = key-value heads, D = head size, S = slots, C = tokens that a slot holds.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

# Without a batch size, keys and values take at most this much of a CPU's memory, or half of what a GPU has free.
ROOM_ON_CPU = 4 << 30
MOST_SLOTS = 64  # more rows make each of them little faster


def slots_that_fit(model: Any, *, capacity: int) -> int:
    """Number of slots, 1 to `MOST_SLOTS`; one takes 2 x layers x H x D x bytes per value x `capacity` bytes."""
    config, device = model.config, model.device
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    needed = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize * capacity
    room = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else ROOM_ON_CPU
    return max(1, min(MOST_SLOTS, room // needed))


class SlotCache(Cache):
    """Keys and values of every layer, each [S, H, C, D], allocated when the layer writes for the first time.

    Before each forward pass, :meth:`prefill` or :meth:`decode` says which tokens it will write, and gives the mask that
    belongs to it. Slots hold their tokens from place 0 on, so nothing is padded on the left.
    """

    def __init__(self, *, slots: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        self._slots, self._capacity, self._device, self._dtype = slots, capacity, device, dtype
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._rows: slice | Tensor = slice(0)
        self._places: slice | Tensor = slice(0)
        self._seen = 0

    def prefill(self, slots: list[int], *, start: int, length: int) -> Tensor:
        """The next pass writes `length` tokens to each of `slots`, from place `start` on.

        Returns:
            The mask to add, [1, 1, length, start + length].
        """
        first, number = slots[0], len(slots)
        # a slice gives views, a list copies
        adjacent = slots == list(range(first, first + number))
        self._rows = slice(first, first + number) if adjacent else torch.tensor(slots, device=self._device)
        self._places, self._seen = slice(start, start + length), start + length
        places = torch.arange(self._seen, device=self._device)
        return self._mask(places <= places[start:, None])[None, None]

    def decode(self, places: list[int]) -> Tensor:
        """The next pass writes one token to each of the first slots, slot i's at `places[i]`.

        Returns:
            The mask to add, [slots, 1, 1, the furthest place + 1].
        """
        self._rows, self._seen = slice(len(places)), max(places) + 1
        self._places = torch.tensor(places, device=self._device)
        return self._mask(torch.arange(self._seen, device=self._device) <= self._places[:, None])[:, None, None]

    def copy(self, source: int, target: int, *, length: int) -> None:
        """Copy the first `length` tokens of a slot to another."""
        for layer in self._layers:
            for values in layer:
                values[target, :, :length] = values[source, :, :length]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Called by the model's attention: write the new keys and values, return all that they may see."""
        if layer_idx == len(self._layers):
            # zeros: masked places get the weight 0, and 0 times an uninitialised NaN would be NaN
            shapes = [(self._slots, one.shape[1], self._capacity, one.shape[3]) for one in (key_states, value_states)]
            keys, values = (torch.zeros(shape, device=self._device, dtype=self._dtype) for shape in shapes)
            self._layers.append((keys, values))
        keys, values = self._layers[layer_idx]
        for held, new in ((keys, key_states), (values, value_states)):
            if isinstance(self._places, slice):
                held[self._rows, :, self._places] = new
            else:
                held[torch.arange(len(new), device=self._device), :, self._places] = new[:, :, 0]
        return keys[self._rows, :, : self._seen], values[self._rows, :, : self._seen]

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Tokens that the pass sees, apart from its own; models ask before they call :meth:`update`."""
        return self._seen

    def get_max_cache_shape(self) -> int:
        return self._capacity

    def _mask(self, visible: Tensor) -> Tensor:
        """0 where `visible`, else the least finite number: softmax of -inf alone would be NaN."""
        least = torch.finfo(self._dtype).min
        return torch.zeros(visible.shape, device=self._device, dtype=self._dtype).masked_fill_(~visible, least)

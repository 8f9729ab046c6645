"""Token arrays from pairs given as token lists."""

import numpy as np

from nemo_minordpo.core.pair_packing import num_shared_tokens
from nemo_minordpo.pairs.tokens import TokenArrays
from nemo_minordpo.train.data.dataset import PairBatches

# prompt, chosen, rejected; the sequences share 3, 1, 3 and 4 tokens and take 4, 4, 5 and 5 positions
PAIRS = [
    ([1, 2], [3, 4, 5], [3, 6]),
    ([7], [8], [9, 10, 11, 12]),
    ([13, 14, 15], [16, 17], [18, 19]),
    ([20], [21, 22, 23], [21, 22, 23, 24, 25]),
]


def arrays_of(pairs):
    sequences = [np.asarray(prompt + side) for prompt, *sides in pairs for side in sides]
    return TokenArrays(
        tokens=np.concatenate(sequences).astype(np.int32),
        starts=np.cumsum([0, *map(len, sequences)]),
        prompt_lengths=np.asarray([len(prompt) for prompt, *_ in pairs], dtype=np.int32),
        shared_lengths=np.asarray(
            [num_shared_tokens(*sequences[2 * number : 2 * number + 2]) for number in range(len(pairs))], dtype=np.int32
        ),
        reward_margins=np.arange(len(pairs), dtype=np.float32),
    )


def batches_of(pairs, *, global_batch=4, capacity=64, multiple=1, rank=0, size=1, references=None):
    return PairBatches(
        arrays_of(pairs),
        global_batch_size=global_batch,
        row_capacity=capacity,
        row_multiple=multiple,
        data_parallel_rank=rank,
        data_parallel_size=size,
        pad_id=0,
        reference_log_probs=references,
    )

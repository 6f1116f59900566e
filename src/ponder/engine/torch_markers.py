"""Which tokens complete a text, whatever way it was cut into tokens: an automaton over bytes, lifted to tokens.

The states are the prefixes of the texts: "the longest end of what was said that begins one of them". A token moves
from state to state by all its bytes at once, in a table (states, vocabulary) that is made once and looked up on
the device at each step. The last state is reached where a text is complete, and is never left.

Sources: Knuth, Morris and Pratt, Fast Pattern Matching in Strings (1977); Aho and Corasick, Efficient String
Matching (1975), for several texts; Willard and Louf, Efficient Guided Generation for Large Language Models (2023),
section 4, for the lifting.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def automaton(texts: Sequence[bytes], pieces: Sequence[bytes]) -> npt.NDArray[np.int16]:
    """The table (states, vocabulary): the state after `pieces[token]` in each state. 0 is the beginning.

    Where a text is complete the state is `states - 1`. Raises ValueError for an empty text.
    """
    if not all(texts):
        raise ValueError("an empty text is complete before it begins")
    moves = _moves(texts)
    return _lifted(moves, pieces)


def _moves(texts: Sequence[bytes]) -> npt.NDArray[np.int16]:
    """The state (states, 256) after each byte in each state."""
    prefixes = sorted({text[:length] for text in texts for length in range(len(text))}, key=lambda p: (len(p), p))
    number = {prefix: place for place, prefix in enumerate(prefixes)}
    done = len(prefixes)
    moves = np.zeros((done + 1, 256), np.int16)
    moves[done] = done
    for prefix, state in number.items():
        for byte in {text[length] for text in texts for length in range(len(text))}:
            said = prefix + bytes([byte])
            if said.endswith(tuple(texts)):
                moves[state, byte] = done
            else:
                moves[state, byte] = next(number[said[i:]] for i in range(len(said) + 1) if said[i:] in number)
    return moves


def _lifted(moves: npt.NDArray[np.int16], pieces: Sequence[bytes]) -> npt.NDArray[np.int16]:
    """Byte after byte, for all tokens that have so many and all states together."""
    states, lengths = len(moves), np.array([len(piece) for piece in pieces])
    table = np.repeat(np.arange(states, dtype=np.int16)[:, None], len(pieces), axis=1)
    starts = np.cumsum(lengths) - lengths
    everything = np.frombuffer(b"".join(pieces), np.uint8)
    for place in range(int(lengths.max(initial=0))):
        (longer,) = np.nonzero(lengths > place)
        table[:, longer] = moves[table[:, longer], everything[starts[longer] + place]]
    return table

"""Names of adapted modules -> (layer, matrix of the paper).

The paper adapts six matrices per layer: W_q, W_k, W_v, W_o (attention) and W_f1, W_f2 (feed-forward). Backbones name
them differently; DeBERTa's and BERT's names (RoBERTa, ELECTRA and MiniLM share BERT's) are known here.
"""

from __future__ import annotations

import re

MATRICES = ("W_q", "W_k", "W_v", "W_o", "W_f1", "W_f2")

_SUFFIXES = (
    (r"attention\.self\.query(_proj)?", "W_q"),
    (r"attention\.self\.key(_proj)?", "W_k"),
    (r"attention\.self\.value(_proj)?", "W_v"),
    (r"attention\.output\.dense", "W_o"),
    (r"intermediate\.dense", "W_f1"),
    (r"output\.dense", "W_f2"),
)
# Anchored at the layer's number: `output.dense` alone is a suffix of `attention.output.dense`.
_PATTERNS = tuple((re.compile(rf"layer\.(\d+)\.{suffix}$"), matrix) for suffix, matrix in _SUFFIXES)


def locate(name: str) -> tuple[int, str] | None:
    """Layer index (from 0) and matrix of a module, None if it is none of the six.

    >>> locate("deberta.encoder.layer.3.attention.output.dense")
    (3, 'W_o')
    """
    for pattern, matrix in _PATTERNS:
        match = pattern.search(name)
        if match:
            return int(match.group(1)), matrix
    return None

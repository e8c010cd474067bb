"""Texts compared without a model: normal form, refusals, closeness of words.

Standard library and scikit-learn's TF-IDF; what needs a server (embeddings, a judge) is asked by
`tasks/` and arrives here as numbers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SPACE = re.compile(r"\s+")
_REFUSAL = re.compile(
    r"\b(i|we)( am|'m| are|'re)? (sorry|afraid|unable|not able)\b"
    r"|\b(i|we) (can ?not|can't|could not|couldn't|won't|will not|must decline|don't know|do not know)\b"
    r"|\bas an ai\b|\b(not|isn't) (something|anything) (i|we) can\b",
    re.IGNORECASE,
)
_REFUSAL_WITHIN_CHARS = 200


def normalised(text: str) -> str:
    """Unicode's compatible form, lower case, single spaces, no final full stops."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    return _SPACE.sub(" ", plain).strip().rstrip(".!").rstrip()


def refuses(text: str) -> bool:
    """Whether an answer declines to answer: one of the usual openings within its first 200 characters.

    A heuristic, English only. It reads words, not intentions.
    """
    return bool(_REFUSAL.search(text.replace("\u2019", "'")[:_REFUSAL_WITHIN_CHARS]))


def contains(text: str, wanted: Sequence[str], *, ignore_case: bool) -> bool:
    """Whether a text holds every one of the wanted texts (an empty list is held by none)."""
    if ignore_case:
        text, wanted = normalised(text), [normalised(one) for one in wanted]
    return bool(wanted) and all(one in text for one in wanted)


def closeness(ours: str, theirs: str) -> float:
    """Share of words in the same order, in [0, 1] (Ratcliff-Obershelp on words): 1 for the same text."""
    a, b = normalised(ours).split(), normalised(theirs).split()
    return 1.0 if a == b else SequenceMatcher(None, a, b, autojunk=False).ratio()


def word_similarity(ours: Sequence[str], theirs: Sequence[str]) -> NDArray[np.float64]:
    """Cosine of TF-IDF vectors of words, pair by pair, shape (n,), in [0, 1].

    The weights are taken from these texts alone, so they are comparable within one call only.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [normalised(text) or "(empty)" for text in (*ours, *theirs)]
    vectorizer: Any = TfidfVectorizer  # its analyzer may be a callable, which some of its stubs do not know
    vectors = vectorizer(analyzer=str.split).fit_transform(texts)
    products = vectors[: len(ours)].multiply(vectors[len(ours) :]).sum(axis=1)
    return np.clip(np.asarray(products, np.float64).ravel(), 0.0, 1.0)


def least_cosine(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float | None:
    """The least cosine of two lists of vectors, one by one; None where their numbers or sizes differ."""
    if [len(vector) for vector in ours] != [len(vector) for vector in theirs]:
        return None
    pairs = zip(ours, theirs, strict=True)
    cosines = [cosine(np.array([one], np.float64), np.array([other], np.float64))[0] for one, other in pairs]
    return float(np.nan_to_num(cosines).min())


def cosine(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of embeddings, row by row, shapes (n, d) to (n,); 0 where a vector is null."""
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    products = np.einsum("ij,ij->i", ours, theirs)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)

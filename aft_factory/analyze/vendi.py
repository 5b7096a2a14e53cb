"""The Vendi score of texts (Friedman and Dieng, 2023): how many different ones there are.

1 for equal texts, K for K texts that share nothing. Likeness is that of vendi-score's
`ngram_vendi_score`, the mean over n = 1 to 4 of the cosine of n-gram counts, or the cosine of an
encoder's embeddings: its pooled output, else the state of the first token (that package's too).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from aft_factory.errors import UsageError, needing

NGRAMS = (1, 2, 3, 4)
TOKENS = r"\w+|[^\w\s]"  # words and signs; the package's own tokenizer takes a download


def need_vendi(embedding: str | None) -> None:
    """Check, before anything is paid for, that scores can be computed.

    Raises:
        MissingPackage: If vendi-score is not installed, or what its embeddings need.
        UsageError: If there is no such embedding model.
    """
    with needing("a Vendi score", '"aft-factory[analysis]"'):
        import vendi_score.vendi  # noqa: F401
    if embedding is not None:
        _embedder(embedding)


def vendi_scores(
    texts: Sequence[str], groups: Sequence[Sequence[int]], embedding: str | None = None
) -> list[float]:
    """Return the score of each group of texts.

    Args:
        texts: All texts.
        groups: Places in `texts`.
        embedding: Folder or hub name of an encoder whose embeddings tell how alike texts are; None
            counts n-grams.
    """
    import numpy
    from vendi_score import vendi

    alike = ngram_similarities(texts) if embedding is None else _embedded(texts, embedding)
    return [float(vendi.score_K(alike[numpy.ix_(group, group)])) for group in groups]


def ngram_similarities(texts: Sequence[str]) -> Any:
    """Return how alike texts are, from 0 to 1; shape (texts, texts).

    Where a text is too short for an n-gram, it is like none but its equals.
    """
    import numpy
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import normalize

    equal = numpy.array([[float(a == b) for b in texts] for a in texts])
    total = numpy.zeros_like(equal)
    for n in NGRAMS:
        counter = CountVectorizer(token_pattern=TOKENS, ngram_range=(n, n), lowercase=False)
        try:
            counts = normalize(counter.fit_transform(texts).astype(float))
        except ValueError:  # no text is so long
            total += equal
            continue
        alike = (counts @ counts.T).toarray()
        short = alike.diagonal() == 0
        total += numpy.where(short[:, None] & short[None, :], equal, alike)
    return total / len(NGRAMS)


def _embedded(texts: Sequence[str], embedding: str) -> Any:
    from sklearn.preprocessing import normalize
    from vendi_score.text_utils import get_embeddings

    network, tokenizer = _embedder(embedding)
    # In one batch: the package loses the shape of a last batch of one.
    vectors = get_embeddings(
        *(list(texts), network, tokenizer), batch_size=len(texts), device=network.device
    )
    vectors = normalize(vectors.reshape(len(texts), -1).astype(float))
    return vectors @ vectors.T


@functools.cache
def _embedder(name: str) -> tuple[Any, Any]:
    with needing("--embedding", '"vendi-score[text]"'):
        import vendi_score.text_utils  # noqa: F401
        from transformers import AutoModel, AutoTokenizer
    try:
        network = AutoModel.from_pretrained(name, trust_remote_code=False).eval()
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # its readers raise anything
        raise UsageError(f"embedding: cannot load {name!r}: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return network, tokenizer

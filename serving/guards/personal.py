"""Personal data in texts: Presidio's recognisers of patterns, without any model.

Only recognisers that check what they find (checksums, known suffixes, phone plans) are used, so no
language model is downloaded and nothing is sent anywhere. Names and addresses are not found: that
needs a model, and a policy that wants it names a callable of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

KINDS = ("email", "credit_card", "iban", "phone", "ip_address", "us_ssn")
"""What can be looked for. `phone` costs about 5 ms a text, all others together under 0.5 ms."""


@dataclass(frozen=True, slots=True)
class Span:
    """One find: its kind and where it stands, as positions of characters."""

    kind: str
    start: int
    end: int


def find_personal(text: str, kinds: Sequence[str] = KINDS) -> list[Span]:
    """Personal data in a text, in its order. Overlapping finds are joined into the first one's kind.

    Raises ImportError where Presidio is not installed (the extra `llm`).
    """
    found: list[Span] = []
    for kind in kinds:
        recogniser = _recogniser(kind)
        found += [
            Span(kind, int(one.start), int(one.end))
            for one in recogniser.analyze(text, recogniser.supported_entities, None)
            if one.score >= _SCORE_MIN.get(kind, 0.4)
        ]
    joined: list[Span] = []
    for span in sorted(found, key=lambda one: (one.start, -one.end)):
        if joined and span.start < joined[-1].end:
            joined[-1] = Span(joined[-1].kind, joined[-1].start, max(joined[-1].end, span.end))
        else:
            joined.append(span)
    return joined


def redact_personal(text: str, kinds: Sequence[str] = KINDS) -> str:
    """The text with every find replaced by its kind in angle brackets."""
    for span in reversed(find_personal(text, kinds)):
        text = f"{text[: span.start]}<{span.kind}>{text[span.end :]}"
    return text


_SCORE_MIN = {"us_ssn": 0.5}
"""Below this a find is a guess: a number of the right length with nothing that confirms it."""


@cache
def _recogniser(kind: str) -> Any:
    import tldextract
    from presidio_analyzer import predefined_recognizers as known

    # Presidio's own would fetch the list of suffixes from the network at first use.
    suffixes = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class _Email(known.EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return bool(suffixes(pattern_text).top_domain_under_public_suffix)

    makers: dict[str, Any] = {
        "email": _Email,
        "credit_card": known.CreditCardRecognizer,
        "iban": known.IbanRecognizer,
        "phone": known.PhoneRecognizer,
        "ip_address": known.IpRecognizer,
        "us_ssn": known.UsSsnRecognizer,
    }
    return makers[kind]()

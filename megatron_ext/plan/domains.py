"""What share of a source's tokens each domain has, and how that is known.

| known | from |
|---|---|
| counted over the whole source | `tokens_by_domain` of its manifests |
| declared | `domain_shares` of its file, else `domain`: while it is not built, where its manifests do not count, |
|          | and where they count everything as general, as adapters do whose records do not tell |

Worked example: manifests that count 300 tokens of math and 100 of code give math 0.75 and code 0.25.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from data_tools.schema import SourceRecipe

DomainsKnown = Literal["counted over the whole source", "declared"]
_UNTOLD = "general"  # `Document.domain` of an adapter that cannot know better


class SourceDomains(NamedTuple):
    """Of one source.

    Attributes:
        domain_shares: Of its tokens, summing to 1; empty where all of it is the `domain` of its file.
        domains_known: How.
    """

    domain_shares: tuple[tuple[str, float], ...]
    domains_known: DomainsKnown


def domains_of(source: SourceRecipe, tokens_by_domain: Mapping[str, int] | None) -> SourceDomains:
    """The domains of a source.

    Args:
        source: What its file says.
        tokens_by_domain: Counted in its dataset; None where it is not built or does not say it.

    >>> source = SourceRecipe(source="a", prefix="a", validation_prefix="b", domain="math")
    >>> domains_of(source, {"code": 100, "math": 300}).domain_shares
    (('code', 0.25), ('math', 0.75))
    >>> domains_of(source, {"general": 400})
    SourceDomains(domain_shares=(), domains_known='declared')
    """
    known: DomainsKnown = "declared"
    shares = source.domains()
    if tokens_by_domain and set(tokens_by_domain) != {_UNTOLD}:
        known, total = "counted over the whole source", sum(tokens_by_domain.values())
        shares = {domain: tokens / total for domain, tokens in tokens_by_domain.items()}
    return SourceDomains(() if set(shares) == {source.domain} else tuple(shares.items()), known)

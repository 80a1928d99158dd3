"""Strings that end a text, with the borders of tokens anywhere."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ext.rollout.stop_strings import StopStrings

PIECES = ["</", "ans", "wer", ">", "</answer>", "x", "\n", "Que", "stion:"]


def decode(ids: Sequence[int]) -> str:
    return "".join(PIECES[i] for i in ids)


def test_a_string_over_several_tokens_is_seen_with_its_last_one() -> None:
    stops = StopStrings(["</answer>"], decode)
    text = [5, 0, 1, 2, 3]
    assert [stops.are_in(text[:n]) for n in range(1, 6)] == [False, False, False, False, True]


def test_a_string_inside_one_token_is_seen() -> None:
    assert StopStrings(["answer"], decode).are_in([5, 4])


def test_any_of_several_strings_ends_a_text() -> None:
    stops = StopStrings(["\nQuestion:", "</answer>"], decode)
    assert stops.are_in([5, 6, 7, 8])
    assert not stops.are_in([5, 7, 8])


def test_only_the_end_of_a_long_text_is_decoded() -> None:
    decoded: list[int] = []

    def counting(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return decode(ids)

    StopStrings([">x"], counting).are_in([5] * 1000 + [3, 5])
    assert decoded == [3]  # two bytes, two tokens, and one before


def test_a_string_of_many_bytes_is_counted_in_bytes() -> None:
    assert StopStrings(["éé"], lambda ids: bytes(ids).decode(errors="replace")).are_in(list("aéé".encode()))


def test_without_strings_nothing_is_decoded() -> None:
    def never(ids: Sequence[int]) -> str:
        raise AssertionError(ids)

    assert not StopStrings([], never).are_in([1, 2])

"""What functions remember of people's words goes when it is told to."""

from __future__ import annotations

from chatd.safety.medication import drugs_in
from context.memo import forget, remembered, remembers


def test_what_is_remembered_is_computed_once_and_goes_with_forget() -> None:
    """The same argument costs nothing until everything is forgotten."""
    asked = []

    @remembers(4)
    def length(word: str) -> int:
        asked.append(word)
        return len(word)

    assert [length("enalapril"), length("enalapril")] == [9, 9]
    assert asked == ["enalapril"]
    forget()
    assert length("enalapril") == 9
    assert asked == ["enalapril"] * 2


def test_words_of_a_question_do_not_stay_in_the_tables_of_the_rooms() -> None:
    """The medicines' table remembers each word that it has looked up, and none after that."""
    drugs_in("he takes zqxkvwyjz and enalapril")
    assert remembered() > 0
    forget()
    assert remembered() == 0

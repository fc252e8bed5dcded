"""The table of printable code points against Unicode's own data and its published counts."""

import sys
import unicodedata

from quantkit.publish.ollama.printable import is_printable


def test_every_code_point_of_unicode_3_2_is_printable_by_its_category() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.ucd_3_2_0.category(character) != "Cn":
            by_category = character == " " or unicodedata.category(character)[0] in "LMNPS"
            assert is_printable(character) == by_category, f"U+{code:04X}"


def test_the_table_has_as_many_code_points_as_unicode_15_counts() -> None:
    graphic_and_format, format_, spaces_but_one, separators = 149_186, 170, 16, 2
    printable = sum(is_printable(chr(code)) for code in range(sys.maxunicode + 1))
    assert printable == graphic_and_format - format_ - spaces_but_one - separators


def test_unicode_15_is_in_and_what_came_later_is_not() -> None:
    assert is_printable("\U0001fae8")  # the shaking face, 15.0
    assert is_printable("\U00031350")  # CJK extension H, 15.0
    assert not is_printable("\u2ffc")  # an ideographic description character, 15.1
    assert not is_printable("\U0001fae9")  # the face with bags under its eyes, 16.0

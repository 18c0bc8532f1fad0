"""Which characters stand for which Latin letter: those that look alike in other scripts, and the digits and symbols
that are written instead of letters. What Unicode's compatibility forms know (fullwidth, mathematical, circled,
superscript letters) is not here, and of letters with marks only those that are no letter and a mark to Unicode."""

from __future__ import annotations

import unicodedata

# By Latin letter, in lower case (some scripts have capitals alone): what is read as that letter everywhere, in
# words of lists as in prompts, so that Russian and Greek words are still found.
_ALIKE = {
    "a": "аαɑɐᴀәᎪꓮⲁᗅᗩ⍺",
    "ae": "æᴁ",
    "b": "вьβʙᴃƀɓƃҍᏴꓐⲃᗷᏏᑲ",
    "c": "сᴄƈϲҫᏟꓚⅽͻⲥᑕ",
    "d": "ԁɖɗđðᴅƌժᎠꓓⅾᗞᗪᏧᑯ",
    "e": "еєεᴇəǝɇɛҽҿᎬꓰⲉ℮",
    "f": "ƒꜰɟֆᖴꓝ",
    "g": "ɡɢɠǥցԍᏀꓖᏳ",
    "h": "нһհħɦʜɥիᎻꓧⲏᕼᏂ",
    "i": "іιıɨɪɩᴉᎥꓲⲓᛁ",
    "j": "јյɉᴊʝϳᎫꓙᒍ",
    "k": "кκƙᴋʞқҝᏦꓗⲕᛕ",
    "l": "łɫƚʟɭլᏞꓡⳑᒪ",
    "m": "мμɱᴍᎷꓟⲙᗰᛖ",
    "n": "пηŋɲɴɳոռᴎꓠⲛᑎ",
    "o": "оοσøɵөօᴏәⲟꓳ",
    "oe": "œɶ",
    "p": "рρƥᴘքᏢꓑⲣᑭ⍴",
    "q": "ԛɋʠզգᑫ",
    "r": "гɍɽɹʀɾᴦᎡꓣⲅᖇᏒ",
    "s": "ѕʂꜱƨᏚꓢᔕᏕ",
    "t": "тτŧƭʈʇᴛᎢꓔⲧ",
    "u": "υսʉᴜꓴᑌ∪⋃",
    "v": "νʋᴠѵᏙꓦᐯ∨⋁",
    "w": "шщωԝʍᴡⱳաᎳꓪⲱᗯᏔѡ",
    "x": "хχҳᕁꓫⲭ᙭ᚷ",
    "y": "уүұγƴɏʏʎҮᎩꓬ",
    "1": "ӏǀ∣",  # which stands for i and l, see below
    "z": "ƶʐᴢȥᏃꓜⲍᘔ",
}
# Greek capitals that look like another letter than their small ones do. Only prompts are read this way, besides.
GREEK_CAPITALS = str.maketrans("ΗΝΥΒΖΡΧ", "HNYBZPX")

# What is written for letters beside letters. 1 stands for i and l, which are one letter wherever any of these is read.
_SYMBOLS = dict(zip("@$€£¢¥!|+¡§†×©®", "aseicyiitistxcr", strict=True))
WRITTEN_FOR = str.maketrans(dict(zip("0123456789l", "oizeasgtbgi", strict=True)) | _SYMBOLS)
LEET_SYMBOLS = "".join(_SYMBOLS)

# Left out: format characters (zero-width spaces and joiners, marks of direction, the soft hyphen, tags), marks above
# and below Latin, Greek, Cyrillic, Hebrew and Arabic letters, selectors of variants, and letters that show as nothing.
_MARKS: tuple[tuple[int, int], ...] = (
    *((0x0300, 0x036F), (0x0483, 0x0489), (0x0591, 0x05C7), (0x064B, 0x065F), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF)),
    *((0x20D0, 0x20FF), (0xFE00, 0xFE0F), (0xFE20, 0xFE2F), (0xE0100, 0xE01EF)),
)
_BLANK = (0x0640, 0x0670, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0)
_MORE_LETTERS = (0x1F150, 0x1F170, 0x1F1E6)  # white in a black circle and in a square, and those that flags are of


def _read_as() -> dict[int, str | None]:
    table: dict[int, str | None] = {ord(alike): letter for letter, all_alike in _ALIKE.items() for alike in all_alike}
    for first in _MORE_LETTERS:
        table |= {first + number: chr(ord("a") + number) for number in range(26)}
    table |= {code: None for first, last in _MARKS for code in range(first, last + 1)}
    table |= dict.fromkeys(_BLANK)
    for code in (*range(0x80, 0x20000), *range(0xE0000, 0xE0200)):  # no other plane has any
        if (category := unicodedata.category(chr(code))) == "Cf":
            table[code] = None
        elif category == "Nd":
            table[code] = str(unicodedata.digit(chr(code)))
    return table


READ_AS = _read_as()  # of a text in small letters, decomposed by compatibility; digits of other scripts, too

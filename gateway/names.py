"""What people may call their accounts, tokens and finetunes, and when two such names count as the same.

Names are shown in terminals, logs and other people's lists, so nothing invisible or direction-changing gets in, and
two names that look alike to a reader (case, width, composition, letters of other alphabets that are drawn the same,
dashes) count as one. Letters and digits that only resemble each other (l, I and 1, O and 0) are left alone.
"""

import unicodedata
from typing import Final

from gateway.errors import BadInput

MAX_NAME_CHARS: Final = 128

# Controls, format characters (zero width, bidi), surrogates, private use, unassigned, line and paragraph separators.
_REFUSED_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

# Letters of other alphabets beside what each is drawn like; as they are after case folding.
_DRAWN_ALIKE: Final = {
    ord(letter): plain
    for letters, drawn in (
        ("авекмнорстухѕіјԁһӏԛԝьѵүҽҫԍѡ", "abekmhopctyxsijdhlqwbvyecgw"),  # Cyrillic
        ("αβεζηικμνορτυχγσωϳ", "abeznikmvoptuxyowj"),  # Greek
        ("օսոհցıɑɡ", "ounhgiag"),  # Armenian, Latin
        ("ᴀʙᴄᴅᴇɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdeghijklmnoprstuvwyz"),  # Latin, small capitals
        ("ⲃⲉⲏⲓⲕⲙⲛⲟⲣⲥⲧⲩⲭⲍ", "behikmnopctyxz"),  # Coptic
        ("ᎠᎡᎢᎥᎪᎫᎬᎳᎷᎻᏀᏃᏎᏒᏕᏙᏚᏞᏟᏢᏦᏴᏧᏏᎩ", "drtiajewmhgz4rsvslcpkbdby"),  # Cherokee
        ("ꓐꓑꓓꓔꓖꓗꓙꓚꓜꓝꓟꓠꓡꓢꓣꓦꓧꓪꓫꓬꓮꓰꓲꓳꓴ", "bpdtgkjczfmnlsrvhwxyaeiou"),  # Lisu
        ("‐‒–—−⁃‘’ʼ′", "------''''"),  # dashes, apostrophes
    )
    for letter, plain in zip(letters, drawn, strict=True)
}


def checked_name(text: object, what: str, param: str = "name") -> str:
    """`text` in NFC. `what` names it in the sentence. Raises BadInput."""
    if not isinstance(text, str):
        raise BadInput(f"{what} must be a string", param=param)
    name = unicodedata.normalize("NFC", text[: MAX_NAME_CHARS * 4])
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        raise BadInput(f"{what} must have 1 to {MAX_NAME_CHARS} characters", param=param)
    if name != name.strip():
        raise BadInput(f"{what} must not begin or end with a space", param=param)
    if not name.strip("."):
        raise BadInput(f"{what} must not consist of dots only: it could not be named in a path", param=param)
    for character in name:
        if unicodedata.category(character) in _REFUSED_CATEGORIES:
            raise BadInput(f"{what} must not contain the invisible character U+{ord(character):04X}", param=param)
        if character in "/\\":
            raise BadInput(f"{what} must not contain a slash", param=param)
    return name


def likeness(name: str) -> str:
    """Equal for names that a reader takes for the same; never shown."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return folded.translate(_DRAWN_ALIKE)


def printable(text: str, max_chars: int = MAX_NAME_CHARS) -> str:
    """A caller's word, safe to repeat in a message: cut, and without invisible characters."""
    shown = text if len(text) <= max_chars else text[:max_chars] + "…"
    if shown.isascii() and shown.isprintable():  # nearly always, and several times a request
        return shown
    return "".join("�" if unicodedata.category(c) in _REFUSED_CATEGORIES else c for c in shown)

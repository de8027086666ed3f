"""Options of a URL that must never be followed."""

import pytest
from pydantic import ImportString

from dispytch import ConfigError, Connection
from dispytch.url import connect


class Importing(Connection):
    codec: ImportString[object] | None = None
    codecs: tuple[ImportString[object], ...] = ()


@pytest.mark.parametrize("option", ["codec", "codecs"])
def test_option_that_names_code_is_unknown(option: str) -> None:
    """No text in a URL is imported as code, however deep its field's type hides that."""
    with pytest.raises(ConfigError, match=f"unknown option '{option}'"):
        connect(f"x://host?{option}=os.system", Importing)

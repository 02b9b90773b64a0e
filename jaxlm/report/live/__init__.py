"""One page of HTML that runs a model in the browser.

The scripts are ECMAScript modules, which the page has inlined, in the order of their imports.
"""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

_FOLDER = Path(__file__).parent
# Those that repeat code of Python stand beside it.
_SCRIPTS = (
    "../../models/cells.js",
    "model.js",
    "../../scoring/tokenizers.js",
    "../../data/tokens.js",
    "reading.js",
    "ui.js",
)


def page(
    config: dict[str, Any],
    weights: bytes,
    text: str,
) -> str:
    """The page of a model.

    Args:
        config: What `model.js`, `tokens.js` and `ui.js` read.
        weights: The arrays, whose places the config names.
        text: What stands in the field for texts at first.

    Returns:
        HTML, which asks for nothing else.
    """
    code = script()
    style = (_FOLDER / "page.css").read_text("utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return template.from_string((_FOLDER / "page.html").read_text("utf-8")).render(
        title=config["title"],
        text=text,
        config=_for_script(config),
        weights=base64.b64encode(weights).decode(),
        script=code,
        style=style,
        script_hash=content_hash(code),
        style_hash=content_hash(style),
    )


def script() -> str:
    """The script of every page."""
    return "\n".join(_without_imports((_FOLDER / name).read_text("utf-8")) for name in _SCRIPTS)


def _without_imports(module: str) -> str:
    """A module's code, to stand behind those that it imports."""
    code = re.sub(r"^import .*\n", "", module, flags=re.MULTILINE)
    return re.sub(r"^export ", "", code, flags=re.MULTILINE)


def _for_script(tree: Any) -> str:
    """JSON that ends no script element, whatever its texts hold."""
    return json.dumps(tree, allow_nan=False).replace("<", "\\u003c")


def content_hash(content: str) -> str:
    """What a content security policy calls an inlined script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"

"""The charts' library: Vega, Vega-Lite and Vega-Embed as one script, which goes into the page.

It is 0.9 MB, where Bokeh's is 1.3 MB and Plotly's 4.8 MB; it draws SVG, which prints and follows the page's colours.
"""

from importlib import import_module

from jaxlm.errors import JaxlmError

VEGA_LITE = "6.1"


def chart_library() -> str:
    """The library's script, which sets `window.vegaEmbed`.

    Raises:
        JaxlmError: vl-convert, which carries it, is not installed.
    """
    try:
        bundle = import_module("vl_convert").javascript_bundle
    except ImportError as error:
        raise JaxlmError(
            f"a report needs vl-convert, which cannot be imported ({error}): pip install 'jaxlm[report]'"
        ) from None
    script = bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")

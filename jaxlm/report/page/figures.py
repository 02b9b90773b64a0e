"""Charts as they stand in a page: an empty box each, which the page's script fills from the collected data."""

from typing import Any

from jaxlm.report.page.markup import Markup, element


class Figures:
    """Collects what the page's script needs: charts, maps of words and sweeps, by the ids of their boxes."""

    def __init__(self) -> None:
        self.payload: dict[str, list[dict[str, Any]]] = {"charts": [], "maps": [], "sweeps": []}

    def chart(
        self, title: str, spec: dict[str, Any], *, zoom: bool = False, kind: str = "charts", **extra: Any
    ) -> Markup:
        """A box for a chart, with buttons to zoom.

        Args:
            title: what is above it.
            spec: Vega's or Vega-Lite's JSON.
            zoom: whether it can be zoomed and moved (it then has a parameter `zoom`).
            kind: charts, or maps.
            **extra: more for the page's script.

        Returns:
            The box.
        """
        name = f"{kind}-{len(self.payload[kind])}"
        self.payload[kind].append({"id": name, "spec": spec, **extra})
        return self.placed(title, name, zoom)

    def placed(self, title: str, name: str, zoom: bool = True) -> Markup:
        """The box of a chart whose specification the caller adds, by the box's id."""
        buttons = [
            element("button", sign, type="button", data_zoom=what, data_chart=name, aria_label=f"zoom {what}: {title}")
            for sign, what in (("+", "in"), ("\N{MINUS SIGN}", "out"), ("reset", "reset"))
        ]
        return element(
            "figure",
            element("figcaption", title, element("span", *buttons, cls="tools") if zoom else ""),
            element("div", id=name, cls="chart"),
        )

"use strict";
// Fills the page's boxes with charts, and ties search, zoom and filters to them. Text enters the page as text alone.
(() => {
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const views = {};
  const options = {mode: "vega-lite", renderer: "svg", actions: false, ast: true, tooltip: {theme: "page", disableDefaultStyle: true}};
  const draw = async (id, spec, mode = "vega-lite") => {
    const box = document.getElementById(id);
    const result = await window.vegaEmbed(box, spec, {...options, mode});
    box.setAttribute("aria-label", spec.description);
    views[id] = result.view;
    return result.view;
  };
  const find = (name, value) => [...document.querySelectorAll(`[data-${name}]`)].filter(
    (one) => one.getAttribute(`data-${name}`) === value);

  // Zoom: the buttons move the same signals as a drag or the wheel.
  const fields = {x: ["zoom_epoch", "zoom_x"], y: ["zoom_perplexity", "zoom_value", "zoom_y"]};
  const signalOf = (view, axis) => fields[axis].find((name) => {
    try { view.signal(name); return true; } catch { return false; }
  });
  const zoom = (view, factor) => {
    for (const axis of ["x", "y"]) {
      const name = signalOf(view, axis);
      if (!name) continue;
      const scale = view.scale(axis), [start, end] = scale.range();
      const middle = (start + end) / 2, half = (end - start) / 2 * factor;
      view.signal(name, [scale.invert(middle - half), scale.invert(middle + half)]);
    }
    return view.runAsync();
  };
  const reset = (view) => {
    for (const axis of ["x", "y"]) {
      const name = signalOf(view, axis);
      if (name) view.signal(name, null);
    }
    return view.runAsync();
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-zoom]");
    const view = button && views[button.dataset.chart];
    if (!view) return;
    if (button.dataset.zoom === "reset") reset(view);
    else zoom(view, button.dataset.zoom === "in" ? 0.6 : 1 / 0.6);
  });

  // The map of words.
  const startMap = async (map) => {
    const view = await draw(map.id, map.spec);
    const ids = new Map(map.words.map((word, id) => [word, id]));
    const found = document.getElementById(`${map.id}-found`);
    const input = find("search", map.id)[0];
    const empty = found.firstChild.cloneNode(true);
    const places = map.spec.data.values;
    const label = () => {  // the word chosen, its neighbours, then the most frequent words whose labels lie apart
      const x = view.scale("x"), y = view.scale("y"), taken = [], visible = {};
      const near = view.signal("near"), picked = view.signal("picked");
      const rank = ({id}) => id === picked ? 0 : near[id] ? 1 : 2;
      for (const {id, word, x: across, y: down} of [...places].sort((a, b) => rank(a) - rank(b))) {
        const [left, top, half] = [x(across), y(down), word.length * 3.4 + 3];
        if (left < 0 || left > view.width() || top < 0 || top > view.height()) continue;
        if (taken.some((one) => Math.abs(one[0] - left) < one[2] + half && Math.abs(one[1] - top) < 14)) continue;
        taken.push([left, top, half]);
        visible[id] = true;
      }
      view.signal("visible", visible).runAsync();
    };
    const pick = (id) => {
      const near = {};
      for (const [word] of map.neighbors[id]) if (ids.has(word)) near[ids.get(word)] = true;
      view.signal("picked", id).signal("near", near);
      label();
      const title = document.createElement("p");
      title.append("Nearest to ", Object.assign(document.createElement("b"), {textContent: map.words[id]}), ": ");
      for (const [word, cosine] of map.neighbors[id]) {
        const label = `${word} ${cosine.toFixed(2)}`;
        if (!ids.has(word)) { title.append(`${label} (not on the map) `); continue; }
        const button = Object.assign(document.createElement("button"), {type: "button", textContent: label});
        button.addEventListener("click", () => pick(ids.get(word)));
        title.append(button);
      }
      found.replaceChildren(title);
    };
    const clear = () => {
      view.signal("picked", -1).signal("near", {});
      label();
      found.replaceChildren(empty.cloneNode(true));
      input.value = "";
    };
    const search = (exact) => {
      const wanted = input.value.trim();
      const id = ids.has(wanted) ? ids.get(wanted) : exact ? undefined
        : [...ids.keys()].filter((word) => wanted && word.startsWith(wanted)).map((word) => ids.get(word))[0];
      if (id !== undefined) { pick(id); return; }
      if (!exact) found.replaceChildren(Object.assign(document.createElement("p"),
        {textContent: wanted ? `There is no ${wanted} on the map.` : "Write a word first."}));
    };
    input.addEventListener("input", () => search(true));
    find("form", map.id)[0].addEventListener("submit", (event) => { event.preventDefault(); search(false); });
    find("clear", map.id)[0].addEventListener("click", clear);
    view.addEventListener("click", (_, item) => {
      const datum = item && item.datum;
      if (datum && Number.isInteger(datum.id)) pick(datum.id);
    });
    view.addEventListener("keydown", (event) => { if (event.key === "Escape") clear(); });
    for (const axis of ["x", "y"]) view.addSignalListener(signalOf(view, axis), () => setTimeout(label));
    view.addResizeListener(() => setTimeout(label));
    label();
  };

  // A sweep: the form is the one place where the filter is kept; charts write to it and read from it.
  const startSweep = async (sweep) => {
    const form = find("filters", sweep.id)[0];
    const inputs = (axis) => [...form.querySelectorAll("input")].filter((one) => Number(one.dataset.axis) === axis);
    const rows = find("of", sweep.id);
    const categoryOf = (axis, text) => axis.categories.findIndex(([name]) => name === text);
    const heightOf = (axis, text) => axis.categories[categoryOf(axis, text)][1];
    const bounds = (place) => {
      const ends = {from: -Infinity, to: Infinity};
      for (const one of inputs(place)) if (one.value !== "" && Number.isFinite(Number(one.value))) ends[one.dataset.bound] = Number(one.value);
      return ends;
    };
    const passes = (place, at) => {
      const axis = sweep.axes[place], value = axis.values[at];
      if (axis.categories) return inputs(place).some((one) => one.checked && one.value === value);
      const {from, to} = bounds(place);
      if (from === -Infinity && to === Infinity) return true;
      return value !== null && value >= from - 1e-9 * Math.abs(from) && value <= to + 1e-9 * Math.abs(to);
    };
    const placeOf = (axis, value) => {
      const scaled = (x) => axis.log ? Math.log(x) : x;
      const [low, high] = [scaled(axis.low), scaled(axis.high)];
      return Math.min(1, Math.max(0, high > low ? (scaled(value) - low) / (high - low) : 0.5));
    };
    const rangeOf = (place) => {
      const axis = sweep.axes[place];
      if (axis.categories) {
        const chosen = inputs(place).filter((one) => one.checked).map((one) => heightOf(axis, one.value));
        if (chosen.length === inputs(place).length || !chosen.length) return null;
        return [Math.min(...chosen), Math.max(...chosen)];
      }
      const {from, to} = bounds(place);
      if (from === -Infinity && to === Infinity) return null;
      return [from === -Infinity ? 0 : placeOf(axis, Math.max(from, axis.low)), to === Infinity ? 1 : placeOf(axis, to)];
    };
    const apply = () => {
      const kept = {};
      sweep.trials.forEach((trial, at) => { if (sweep.axes.every((_, place) => passes(place, at))) kept[trial] = true; });
      const filtered = sweep.axes.some((_, place) => rangeOf(place)) || Object.keys(kept).length < sweep.trials.length;
      let shown = 0;
      for (const row of rows) {
        row.hidden = filtered && !kept[row.dataset.trial];
        shown += !row.hidden;
      }
      document.getElementById(`${sweep.id}-count`).textContent = ` ${shown} of ${rows.length} trials`;
      const parallel = views[`${sweep.id}-parallel`];
      if (parallel) parallel.signal("kept", filtered ? kept : null).signal("ranges", sweep.axes.map((_, place) => rangeOf(place))).runAsync();
      for (const one of [sweep.curves, ...sweep.slices]) if (views[one.id]) views[one.id].signal("kept", filtered ? kept : null).runAsync();
    };
    const write = (place, low, high) => {  // null, null: all
      const axis = sweep.axes[place];
      for (const one of inputs(place)) {
        if (axis.categories) one.checked = low === null || (heightOf(axis, one.value) >= low && heightOf(axis, one.value) <= high);
        else {
          const bound = one.dataset.bound === "from" ? low : high;
          const [from, to] = axis.log ? [Math.log(axis.low), Math.log(axis.high)] : [axis.low, axis.high];
          const value = bound === null ? null : from + bound * (to - from);
          one.value = value === null ? "" : Number((axis.log ? Math.exp(value) : value).toPrecision(5));
        }
      }
    };
    const choose = (place, range) => {  // what a slice has brushed
      const axis = sweep.axes[place];
      for (const one of inputs(place)) {
        if (axis.categories) one.checked = !range || range.includes(categoryOf(axis, one.value));
        else one.value = !range ? "" : Number((one.dataset.bound === "from" ? Math.min(...range) : Math.max(...range)).toPrecision(5));
      }
    };
    const parallel = await draw(`${sweep.id}-parallel`, sweep.parallel, "vega");
    parallel.addSignalListener("brush", (_, brush) => {
      if (brush) { write(brush.axis, brush.low, brush.high); apply(); }
    });
    await draw(sweep.curves.id, sweep.curves.spec);
    for (const one of sweep.slices) {
      const view = await draw(one.id, one.spec);
      view.addSignalListener("brush", (_, brush) => {
        choose(one.axis, brush.value);
        choose(sweep.axes.length - 1, brush.perplexity);
        apply();
      });
    }
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    find("all", sweep.id)[0].addEventListener("click", () => {
      sweep.axes.forEach((_, place) => write(place, null, null));
      apply();
    });
    apply();
  };

  // On paper the facts of each run are open.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open]):has(> .facts)")];
    for (const one of opened) one.open = true;
  });
  window.addEventListener("afterprint", () => { for (const one of opened) one.open = false; });

  const start = async () => {
    const parts = [...payload.charts.map((chart) => () => draw(chart.id, chart.spec)),
      ...payload.maps.map((map) => () => startMap(map)), ...payload.sweeps.map((sweep) => () => startSweep(sweep))];
    for (const part of parts) await part().catch((error) => console.error(error));  // the others are drawn still
    document.documentElement.dataset.ready = "yes";
  };
  start();
})();

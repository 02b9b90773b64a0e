"use strict";
// Ties search, zoom and filters to the page's pictures. Text enters the page as text alone.
(() => {
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const make = (name, text) => Object.assign(document.createElement(name), {textContent: text});

  // The map of words.
  const startMap = ({id, words, neighbors}) => {
    const box = document.getElementById(id), svg = box.querySelector("svg"), found = document.getElementById(`${id}-found`);
    const form = document.querySelector(`form[data-map="${id}"]`), input = form.querySelector("input");
    const empty = found.firstChild.cloneNode(true);
    const ids = new Map(words.map((word, place) => [word, place]));
    const labels = [...svg.querySelectorAll("[data-key]")];
    const light = (picked, near) => {
      svg.classList.toggle("chosen", picked !== null);
      for (const one of labels) {
        one.classList.toggle("picked", Number(one.dataset.key) === picked);
        one.classList.toggle("near", near.has(Number(one.dataset.key)));
      }
    };
    const pick = (place) => {
      const title = make("p", "Nearest to ");
      title.append(make("b", words[place]), ": ");
      for (const [word, cosine] of neighbors[place]) {
        const text = `${word} ${cosine.toFixed(2)}`;
        if (!ids.has(word)) { title.append(`${text} (not on the map) `); continue; }
        const button = Object.assign(make("button", text), {type: "button"});
        button.addEventListener("click", () => pick(ids.get(word)));
        title.append(button);
      }
      found.replaceChildren(title);
      light(place, new Set(neighbors[place].map(([word]) => ids.get(word))));
    };
    const clear = () => { light(null, new Set()); found.replaceChildren(empty.cloneNode(true)); };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const wanted = input.value.trim();
      const place = ids.get(wanted) ?? words.findIndex((word) => wanted && word.startsWith(wanted));
      if (place >= 0) pick(place);
      else found.replaceChildren(make("p", wanted ? `There is no ${wanted} on the map.` : "Write a word first."));
    });
    input.addEventListener("input", () => { if (ids.has(input.value.trim())) pick(ids.get(input.value.trim())); });
    form.addEventListener("reset", clear);
    box.addEventListener("keydown", (event) => { if (event.key === "Escape") clear(); });
    box.addEventListener("click", (event) => {
      const label = event.target.closest("[data-key]");
      if (label) pick(Number(label.dataset.key));
    });
    for (const button of form.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => {
      const width = svg.getBoundingClientRect().width, wanted = Math.min(8000, Math.max(box.clientWidth, width * Number(button.dataset.zoom)));
      const [x, y] = [box.scrollLeft + box.clientWidth / 2, box.scrollTop + box.clientHeight / 2];
      svg.style.width = `${wanted}px`;
      box.scrollTo(x * wanted / width - box.clientWidth / 2, y * wanted / width - box.clientHeight / 2);
    });
  };

  // A sweep: the form is the one place where the filter is kept; a drag over a chart writes to it.
  const startSweep = ({id, axes}) => {
    const root = document.getElementById(id), form = root.querySelector("form");
    const inputs = axes.map((_, place) => [...form.querySelectorAll(`[data-axis="${place}"] input`)]);
    const rows = [...root.querySelectorAll("tr[data-key]")], marks = [...root.querySelectorAll("svg [data-key]")];
    const passes = (axis, place, key) => {
      if (axis.choices.length) return inputs[place].some((one) => one.checked && one.value === axis.values[key]);
      const [from, to] = inputs[place].map((one) => one.value), value = axis.values[key];
      return (from === "" || value >= Number(from)) && (to === "" || value <= Number(to));
    };
    const apply = () => {
      const filtered = inputs.flat().some((one) => one.type === "checkbox" ? !one.checked : one.value !== "");
      const out = ({dataset: {key}}) => filtered && !axes.every((axis, place) => key in axis.values && passes(axis, place, key));
      for (const row of rows) row.hidden = out(row);
      for (const mark of marks) mark.classList.toggle("faint", out(mark));
      form.querySelector("output").textContent = ` ${rows.filter((row) => !row.hidden).length} of ${rows.length} trials`;
    };
    const limit = (place, keys) => {  // the filter of one field: from the least to the greatest of these trials' values
      const values = keys.map((key) => axes[place].values[key]);
      if (axes[place].choices.length) for (const one of inputs[place]) one.checked = values.includes(one.value);
      else inputs[place].forEach((one, end) => { one.value = end ? Math.max(...values) : Math.min(...values); });
    };
    const centre = (mark) => {
      const {left, right, top, bottom} = mark.getBoundingClientRect();
      return [(left + right) / 2, (top + bottom) / 2];
    };
    for (const box of root.querySelectorAll("[data-axis].chart")) {
      if (box.dataset.axis === "") continue;
      const own = [...box.querySelectorAll("[data-key]")], all = box.dataset.axis === "all";
      const crossing = (mark, place) => centre(mark.querySelectorAll("use")[place]);
      const nearest = (x) => axes.map((_, place) => [Math.abs(crossing(own[0], place)[0] - x), place]).sort((a, b) => a[0] - b[0])[0][1];
      let start = null;
      const select = ({clientX: x, clientY: y}) => {
        const within = (at, axis) => at[axis] >= Math.min(start[axis], [x, y][axis]) && at[axis] <= Math.max(start[axis], [x, y][axis]);
        const place = all ? nearest(start[0]) : Number(box.dataset.axis);
        const chosen = own.filter((mark) => all ? within(crossing(mark, place), 1) : within(centre(mark), 0) && within(centre(mark), 1));
        const keys = chosen.map((mark) => mark.dataset.key);
        if (!keys.length) return;
        limit(place, keys);
        if (!all) limit(axes.length - 1, keys);
        apply();
      };
      box.addEventListener("pointerdown", (event) => { start = [event.clientX, event.clientY]; event.preventDefault(); });
      window.addEventListener("pointermove", (event) => { if (start) select(event); });
      for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, () => { start = null; });
      if (all) box.addEventListener("dblclick", (event) => {
        for (const one of inputs[nearest(event.clientX)]) { one.value = one.type === "checkbox" ? one.value : ""; one.checked = true; }
        apply();
      });
    }
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(apply));
    apply();
  };

  // On paper the facts of each run are open.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open]):has(> .facts)")];
    for (const one of opened) one.open = true;
  });
  window.addEventListener("afterprint", () => { for (const one of opened) one.open = false; });

  for (const part of payload) (part.kind === "map" ? startMap : startSweep)(part);
  document.documentElement.dataset.ready = "yes";
})();

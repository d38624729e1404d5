// The page: reads window.ISOUQ (data.js), keeps its state in the address after #, draws with draw.js.
"use strict";
(() => {
  const { number, significant, estimate, ranks, html, svg, words, drawing, table, figure, mark, icon, path } = window.DRAW;
  const { colours, picture, tick, vertical, horizontal, border, lowest, rowChart } = window.DRAW;
  const $ = (id) => document.getElementById(id);
  const D = window.ISOUQ;
  if (!D) {
    $("verdict").className = "verdict bad";
    $("verdict").textContent = "data.js is missing; write it with: python -m experiments.explorer OUT";
    return;
  }

  const STATISTICS = { pearson: "Pearson’s r", spearman: "Spearman’s ρ" };
  const SERIES = [
    ["epistemic", "epistemic ‖g‖²", "circle"],
    ["laplace", "Laplace gᵀH⁻¹g", "square"],
    ["aleatoric", "aleatoric p(1 − p)", "triangle"],
  ];
  const TERMS = {
    whole: "whole, corr(V, I)",
    taylor_pooled: "Taylor, Σ pooled",
    taylor_within: "Taylor, Σ within chains",
    taylor_aligned: "Taylor, Σ aligned",
    isotropy_pooled: "isotropy, Σ pooled",
    isotropy_within: "isotropy, Σ within chains",
    isotropy_aligned: "isotropy, Σ aligned",
  };
  const PANELS = {
    epistemic: [["reference", "Reference, HMC: Var[p]"], ["epistemic", "Estimate, one gradient: ‖g‖²"]],
    aleatoric: [["aleatoric_reference", "Reference, HMC: E[p(1 − p)]"], ["aleatoric", "Estimate, at θ*: p(1 − p)"]],
  };
  const POINTS = [
    ["circle", { fill: "#fff", stroke: "#000" }],
    ["square", { fill: "#000", stroke: "#fff" }],
    ["triangle", { fill: "#d55e00", stroke: "#fff" }],
  ];
  const ALEATORIC_LIMITS = { low: 0, high: 0.25 };
  const colour = colours(D.palette);
  const unique = (list) => [...new Set(list)];

  // Models and state
  const priorOf = (m) => `${m.prior}-${m.sigma}`;
  const priorText = (m) => `${m.prior.replace("_", "-")} σ = ${m.sigma}`;
  const of = (problem) => D.models.filter((m) => m.problem === problem);
  const isSwept = (m) => of(m.problem).length > 1;
  const isPlanar = (m) => m.grid.low.length === 2;
  const DEFAULT = {
    problem: "multiclass/rings", prior: "unit-1", width: "32", statistic: "pearson", scale: "range", points: "yes",
    at1: "25", at2: "25",
  };
  let state = { ...DEFAULT };
  const chosen = () => of(state.problem).find((m) => priorOf(m) === state.prior && m.width === Number(state.width));

  /** Makes the state one that exists: the nearest width that was run; unknown words fall back. */
  function settle() {
    if (!of(state.problem).length) state.problem = DEFAULT.problem;
    const models = of(state.problem);
    if (!models.some((m) => priorOf(m) === state.prior)) state.prior = priorOf(models[0]);
    const widths = models.filter((m) => priorOf(m) === state.prior).map((m) => m.width);
    const wanted = Math.log2(Number(state.width) + 1) || 0;
    const far = (w) => Math.abs(Math.log2(w + 1) - wanted);
    state.width = String(widths.reduce((best, w) => (far(w) < far(best) ? w : best)));
    if (!(state.statistic in STATISTICS)) state.statistic = DEFAULT.statistic;
    if (state.scale !== "rank") state.scale = DEFAULT.scale;
    if (state.points !== "no") state.points = DEFAULT.points;
    const last = (chosen().side || 50) - 1;
    for (const at of ["at1", "at2"]) {
      state[at] = String(Math.min(last, Math.max(0, Math.round(Number(state[at])) || 0)));
    }
  }

  function readAddress() {
    const found = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    state = { ...DEFAULT };
    for (const name of Object.keys(DEFAULT)) if (name in found) state[name] = found[name];
    settle();
  }

  function writeAddress() {
    history.replaceState(null, "", `#${Object.entries(state).map(([name, value]) => `${name}=${value}`).join("&")}`);
  }

  // Values of maps
  const cache = new Map();
  function valuesOf(m, name) {
    const one = m.maps[name];
    if (!cache.has(one)) {
      const read = (code) => one.low + (one.high - one.low) * (code / 255) ** 3;
      cache.set(one, one.values || Array.from(atob(one.codes), (c) => read(c.charCodeAt(0))));
    }
    return cache.get(one);
  }

  /** Where each value stands between the colour limits, 0 to 1. */
  function shares(m, name) {
    const values = valuesOf(m, name);
    if (state.scale === "rank") return ranks(values);
    const { low, high } = name.startsWith("aleatoric") ? ALEATORIC_LIMITS : m.maps[name];
    return values.map((v) => (high > low ? (v - low) / (high - low) : 0));
  }

  function unit(m, name) {
    const squared = m.kind === "regression" ? "y²" : "probability²";
    return { reference: ` ${squared}`, epistemic: ` ${squared} / parameter²` }[name] || "";
  }
  const range = (m, name) =>
    `${significant(m.maps[name].low)} to ${significant(m.maps[name].high)}${unit(m, name)}`;
  const inputAt = (m, axis, i) => m.grid.low[axis] + ((m.grid.high[axis] - m.grid.low[axis]) * i) / (m.side - 1);

  // The maps of one seed
  let moves = []; // one function a map: moves its mark to the point that is read

  function drawMap(m, name, title, width) {
    const box = { left: 52, top: 6, width: width - 62, height: width - 62 };
    const edges = [0, 1].map((axis) => {
      const half = (m.grid.high[axis] - m.grid.low[axis]) / (m.side - 1) / 2; // grid points are the middles of pixels
      return [m.grid.low[axis] - half, m.grid.high[axis] + half];
    });
    const position = shares(m, name);
    const href = picture(m.side, m.side, (x, y) => colour(position[(m.side - 1 - y) * m.side + x]));
    const place = { x: box.left, y: box.top, width: box.width, height: box.height, preserveAspectRatio: "none" };
    const image = svg("image", { href, class: "map", ...place });
    const parts = [image];
    const x = horizontal(parts, box, edges[0], "x₁");
    const y = vertical(parts, box, edges[1], "x₂");
    parts.push(border(box));
    const { xs, ys } = D.points[m.problem];
    if (state.points === "yes") {
      xs.forEach((at, i) => {
        const [shape, look] = POINTS[ys[i]];
        parts.push(mark(shape, x(at[0]), y(at[1]), 2.4, { ...look, class: "point" }));
      });
    }
    const rings = ["at under", "at"].map((look) => svg("circle", { r: 7, class: look }));
    moves.push(() => {
      for (const ring of rings) {
        ring.setAttribute("cx", x(inputAt(m, 0, state.at1)));
        ring.setAttribute("cy", y(inputAt(m, 1, state.at2)));
      }
    });
    const read = (event) => {
      const { left, top, width, height } = image.getBoundingClientRect();
      state.at1 = String(Math.floor(((event.clientX - left) / width) * m.side));
      state.at2 = String(m.side - 1 - Math.floor(((event.clientY - top) / height) * m.side));
      settle();
      moved();
    };
    for (const kind of ["pointermove", "pointerdown"]) image.addEventListener(kind, read);
    const top = valuesOf(m, name).indexOf(Math.max(...valuesOf(m, name)));
    const where = `x₁ = ${number(inputAt(m, 0, top % m.side))}, x₂ = ${number(inputAt(m, 1, Math.floor(top / m.side)))}`;
    const label = `Map, ${title}: from ${range(m, name)}, highest at ${where}.`;
    return figure(title + doubt(m, name), drawing(width, width, label, ...parts, ...rings), `from ${range(m, name)}`);
  }

  const doubt = (m, name) => (name.endsWith("reference") && !m.is_accepted ? " (unconverged)" : "");

  function colourBar(text, { low, high }, width) {
    const box = { left: 12, top: 4, width: Math.min(width, 460) - 24, height: 14 };
    const href = picture(256, 1, (x) => colour(x / 255));
    const place = { x: box.left, y: box.top, width: box.width, height: box.height, preserveAspectRatio: "none" };
    const ends = [["start", low], ["middle", (low + high) / 2], ["end", high]];
    const ticks = ends.map(([anchor, value], i) =>
      words(box.left + (i * box.width) / 2, 35, tick(value), { "text-anchor": anchor, class: "quiet" }));
    const label = `Colours from ${low} to ${high}: ${text}`;
    return figure("", drawing(box.width + 24, 40, label, svg("image", { href, ...place }), ...ticks), text);
  }

  function drawCurves(m, width) {
    const box = { left: 56, top: 8, width: width - 68, height: 240 };
    const xs = Array.from({ length: m.side }, (_, i) => inputAt(m, 0, i));
    const ends = [xs[0], xs[m.side - 1]];
    const { xs: points, ys } = D.points[m.problem];
    const curve = (x, y, values, look) => svg("path", { d: path(xs.map(x), [...values].map(y)), class: `${look} line` });
    const plot = (title, limits, yName, label, note, draw) => {
      const parts = [border(box)];
      const x = horizontal(parts, box, ends, "x");
      const y = vertical(parts, box, limits, yName);
      const cross = svg("path", { class: "axis", "stroke-dasharray": "2 3" });
      moves.push(() => cross.setAttribute("d", `M${x(xs[state.at1])},${box.top}v${box.height}`));
      return figure(title, drawing(width, box.height + 54, label, ...parts, ...draw(x, y), cross), note);
    };
    const mean = valuesOf(m, "mean");
    const sd = valuesOf(m, "reference").map(Math.sqrt);
    const [upper, lower] = [mean.map((v, i) => v + 2 * sd[i]), mean.map((v, i) => v - 2 * sd[i])];
    const all = [...upper, ...lower, ...ys];
    const ranges = `reference ${range(m, "reference")}; estimate ${range(m, "epistemic")}`;
    return [
      plot(
        `Reference${doubt(m, "reference")} Var[f(x)], blue, and estimate ‖g‖², orange and dashed`, [-0.04, 1.04],
        state.scale === "rank" ? "rank, 0 to 1" : "share of own range", `Curves over x: ${ranges}.`, ranges,
        (x, y) => ["epistemic", "laplace"].map((look, i) => curve(x, y, shares(m, ["reference", "epistemic"][i]), look)),
      ),
      plot(
        "The fit: HMC mean ± 2 sd, blue, and the prediction at θ*, orange and dashed", [Math.min(...all), Math.max(...all)],
        "y", "The predicted mean over x, with the training data.", "x and y have no unit",
        (x, y) => [
          svg("path", {
            class: "epistemic band",
            d: `${path(xs.map(x), upper.map(y))}L${path([...xs].reverse().map(x), [...lower].reverse().map(y)).slice(1)}z`,
          }),
          ...(state.points === "yes"
            ? points.map((at, i) => mark("circle", x(at[0]), y(ys[i]), 2.2, { class: "point open" })) : []),
          curve(x, y, mean, "epistemic"),
          curve(x, y, valuesOf(m, "probability"), "laplace"),
        ],
      ),
    ];
  }

  function agreementText(m, name) {
    if (!m.seed[name]) return `The noise of y is known (sd ${m.noise}) and the same at every x: there is no map.`;
    const own = `r = ${number(m.seed[name].pearson)}, ρ = ${number(m.seed[name].spearman)}`;
    const against = m.is_accepted ? "" : ", against an unconverged reference";
    const mean = m.agreement[name];
    const count = mean.pearson[3];
    const seeds = `${count} seed${count === 1 ? "" : "s"}`;
    const over = count
      ? `Mean of ${seeds}: r = ${estimate(mean.pearson)}, ρ = ${estimate(mean.spearman)}.`
      : "No seed has an accepted reference: there is no mean.";
    const flat = m.flat && name === "epistemic"
      ? ` Mind that the estimate varies by ${m.flat.toExponential(0)} of its value alone: at θ* the network predicts the same everywhere, and what r and ρ compare are the last digits of its training.`
      : "";
    return `Seed ${D.about.seed}${against}: ${own}. ${over}${flat}`;
  }

  function drawMaps(m) {
    moves = [];
    const room = $("epistemic").clientWidth;
    const wide = window.matchMedia("(min-width: 40rem)").matches;
    const width = Math.min(wide ? (room - 16) / 2 : room, 460);
    const bars = {
      epistemic: ["both maps: share of the map’s own range, 0 its smallest value, 1 its largest", { low: 0, high: 1 }],
      aleatoric: ["both maps: p(1 − p), with the same limits", ALEATORIC_LIMITS],
      rank: ["both maps: rank among the points, 0 the lowest, 1 the highest", { low: 0, high: 1 }],
    };
    for (const [row, panels] of Object.entries(PANELS)) {
      $(`${row}-numbers`).textContent = agreementText(m, row);
      const there = m.maps && m.seed[row];
      const drawn = !there ? [] : isPlanar(m) ? panels.map(([name, title]) => drawMap(m, name, title, width)) : drawCurves(m, width);
      const reason = m.apart
        ? `Run again on another machine, the maps of this model lie up to ${m.apart} from the committed r and ρ: they would show another network than the numbers, and are left out.`
        : m.flat
          ? "A model whose estimate is the same everywhere has no maps to compare."
          : "The maps of this model are not in data.js.";
      const missing = m.maps ? [] : [html("p", {}, reason)];
      $(row).replaceChildren(...drawn, ...missing);
      const bar = there && isPlanar(m) ? [colourBar(...bars[state.scale === "rank" ? "rank" : row], room)] : [];
      $(`${row}-bar`).replaceChildren(...bar);
    }
    $("reader").hidden = $("values").hidden = !m.maps;
    if (!m.maps) return writeAddress();
    const classes = m.kind === "regression" ? [] : unique(D.points[m.problem].ys).sort();
    $("classes").replaceChildren(...classes.map((c) =>
      html("span", {}, icon(POINTS[c][0], { ...POINTS[c][1], stroke: "#808080" }), `class ${c}`)));
    $("second").hidden = !isPlanar(m);
    for (const at of ["at1", "at2"]) $(at).max = m.side - 1;
    $("points").checked = state.points === "yes";
    moved();
  }

  /** The point that is read has moved: the marks, the sliders and the values follow. */
  function moved() {
    const m = chosen();
    moves.forEach((move) => move());
    const index = isPlanar(m) ? Number(state.at2) * m.side + Number(state.at1) : Number(state.at1);
    m.grid.low.forEach((_, axis) => {
      const slider = $(`at${axis + 1}`);
      const text = `${isPlanar(m) ? `x${"₁₂"[axis]}` : "x"} = ${number(inputAt(m, axis, state[slider.id]))}`;
      slider.value = state[slider.id];
      slider.setAttribute("aria-valuetext", text);
      slider.labels[0].textContent = text;
    });
    const names = [...PANELS.epistemic, ...PANELS.aleatoric].filter(([name]) => m.maps[name]);
    const rows = names.map(([name, title]) => {
      const values = valuesOf(m, name);
      return [title + doubt(m, name), significant(values[index]) + unit(m, name), number(ranks(values)[index])];
    });
    $("values").replaceChildren(table("The maps at this point", ["map", "value", "rank, 0 to 1"], rows));
    writeAddress();
  }

  // Correlations: a curve over widths where there is a sweep, a row a problem elsewhere
  function drawWidths(models, widths, width, label) {
    const s = state.statistic;
    const box = { left: 56, top: 10, width: width - 66, height: 290 };
    const seeds = models.flatMap((m) => m.each.map((one) => ({ ...one, width: m.width, value: one[s] })));
    const means = models.flatMap((m) => SERIES.flatMap(([name]) => m.agreement[name][s].slice(0, 3)));
    const low = lowest([...means, ...seeds.map((one) => one.value)]);
    const step = box.width / widths.length;
    const parts = [];
    const ends = [-0.5, widths.length - 0.5];
    const places = horizontal(parts, box, ends, "hidden units", { at: widths.map((w, i) => [i, w]) });
    const x = (m) => places(widths.indexOf(m.width));
    parts.unshift(svg("rect", { x: x(chosen()) - step / 2, y: box.top, width: step, height: box.height, class: "chosen" }));
    const y = vertical(parts, box, [low, 1.03], `${STATISTICS[s]}, mean over seeds`, true);
    parts.push(border(box));
    for (const one of seeds.filter(({ value }) => value !== null)) {
      const shape = one.accepted ? "circle" : "cross";
      parts.push(mark(shape, x(one) - 0.32 * step, y(one.value), 3, { class: "epistemic seed" }));
    }
    SERIES.forEach(([name, , shape], i) => {
      const known = models.filter((m) => m.agreement[name][s][3]);
      const place = (m) => x(m) + (i - 1) * Math.min(7, step / 6);
      const at = (m) => y(m.agreement[name][s][0]);
      parts.push(svg("path", { d: path(known.map(place), known.map(at)), class: `${name} line` }));
      for (const m of known) {
        const [, from, to] = m.agreement[name][s];
        const d = from === null ? "" : `M${place(m)},${y(Math.max(from, low))}V${y(to)}`;
        parts.push(svg("path", { d, class: name, "stroke-width": 1.5 }), mark(shape, place(m), at(m), 4.5, { class: name }));
      }
    });
    for (const m of models.filter((one) => !one.accepted)) {
      const [left, bottom] = [x(m) + 5, box.top + box.height - 8];
      parts.push(words(left, bottom, "no accepted seed", { class: "quiet", transform: `rotate(-90 ${left} ${bottom})` }));
    }
    return drawing(width, box.top + box.height + 46, label, ...parts);
  }

  function drawAcross(m) {
    const s = state.statistic;
    const swept = isSwept(m);
    const width = $("across").clientWidth;
    const models = swept ? of(m.problem).filter((one) => priorOf(one) === state.prior) : D.models.filter((one) => one.is_own);
    const name = (one) => (swept ? one.width : one.problem);
    const widths = unique(of(m.problem).map((one) => one.width)).sort((a, b) => a - b);
    const missing = widths.filter((w) => !models.some((one) => one.width === w)).join(" and ");
    $("across-text").textContent = swept
      ? `${m.problem}, one hidden layer, prior ${priorText(m)}: means over the seeds with an accepted reference, bars ` +
        "their 95 % intervals. Small rings: single seeds of the epistemic estimate; crosses: seeds with an " +
        "unconverged reference, which no mean counts." + (missing && ` ${missing} hidden units were not run here.`)
      : "Each of the eight problems with its own model, prior unit σ = 1: means over the seeds with an accepted " +
        "reference, bars their 95 % intervals. At the right: epistemic. Over widths and priors only " +
        "multiclass/rings was run.";
    $("across-legend").replaceChildren(
      ...SERIES.map(([name, text, shape]) => html("li", {}, icon(shape, { class: name }), text)));
    const spoken = models.map((one) => `${name(one)}: ${estimate(one.agreement.epistemic[s])}`).join("; ");
    const label = `${STATISTICS[s]} of the epistemic estimate by ${swept ? "hidden units" : "problem"}: ${spoken}`;
    const rows = models.map((one) => [
      one.problem,
      SERIES.filter(([name]) => one.agreement[name]).map(([name, , shape]) => [name, shape, one.agreement[name][s]]),
      one === m,
    ]);
    $("across").replaceChildren(
      swept ? drawWidths(models, widths, width, label) : rowChart(rows, width, `${STATISTICS[s]}, mean over seeds`, label));
    const header = [swept ? "hidden units" : "problem", "accepted", ...SERIES.map(([, text]) => text)];
    const body = models.map((one) => [
      name(one), `${one.accepted} of ${one.seeds}`,
      ...SERIES.map(([name]) => (one.agreement[name] ? estimate(one.agreement[name][s]) : "–")),
    ]);
    $("across-table").replaceChildren(table(`${STATISTICS[s]}, mean [95 % interval]`, header, body));
  }

  function drawTerms(m) {
    const s = state.statistic;
    const looks = { whole: ["epistemic", "circle"], taylor: ["laplace", "square"], isotropy: ["aleatoric", "triangle"] };
    const terms = Object.entries(TERMS);
    const rows = terms.map(([name, text]) => [text, [[...looks[name.split("_")[0]], m.decomposition[name][s]]]]);
    const spoken = terms.map(([name, text]) => `${text}: ${estimate(m.decomposition[name][s])}`).join("; ");
    const axis = `${STATISTICS[s]}, mean over seeds`;
    $("terms").replaceChildren(rowChart(rows, $("terms").clientWidth, axis, `Decomposition, ${STATISTICS[s]}: ${spoken}`));
    const body = terms.map(([name, text]) => [text, ...Object.keys(STATISTICS).map((one) => estimate(m.decomposition[name][one]))]);
    $("terms-table").replaceChildren(table("Mean over seeds [95 % interval]", ["term", ...Object.values(STATISTICS)], body));
  }

  // The page
  function fill(select, options, value) {
    select.replaceChildren(...options.map(([key, text, off]) => html("option", { value: key, ...(off && { disabled: "" }) }, text)));
    select.value = value;
  }

  function show() {
    settle();
    const m = chosen();
    const models = of(state.problem);
    const priors = unique(models.map(priorOf)).map((key) => [key, priorText(models.find((one) => priorOf(one) === key))]);
    const widths = unique(models.map((one) => one.width)).sort((a, b) => a - b).map((w) => {
      const run = models.some((one) => one.width === w && priorOf(one) === state.prior);
      return [w, `${w || "none (linear)"}${run ? "" : " (not run)"}`, !run];
    });
    fill($("problem"), unique(D.models.map((one) => one.problem)).map((name) => [name, name]), state.problem);
    fill($("prior"), priors, state.prior);
    fill($("width"), widths, state.width);
    $("statistic").value = state.statistic;
    $("scale").value = state.scale;
    $("hint").textContent = isSwept(m) ? "" : "One width and one prior were run for this problem; multiclass/rings has many.";
    $("verdict").className = m.is_accepted ? "verdict" : "verdict bad";
    $("verdict").textContent = `Reference posterior of seed ${D.about.seed}: ${m.verdict}.` +
      (m.is_accepted ? "" : " Its maps are no yardstick.");
    const layers = m.width ? `one hidden layer of ${m.width} tanh units` : "no hidden layer";
    $("about").textContent = `${m.problem}, ${layers}, ${m.parameters} parameters, prior ${priorText(m)}. ` +
      `${m.accepted} of ${m.seeds} seeds have an accepted reference.`;
    drawMaps(m);
    drawAcross(m);
    drawTerms(m);
  }

  for (const name of ["problem", "prior", "width", "statistic", "scale"]) {
    $(name).addEventListener("change", () => { state[name] = $(name).value; show(); });
  }
  for (const name of ["at1", "at2"]) $(name).addEventListener("input", () => { state[name] = $(name).value; moved(); });
  $("points").addEventListener("change", () => { state.points = $("points").checked ? "yes" : "no"; show(); });
  for (const name of ["controls", "reader"]) $(name).addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", () => { readAddress(); show(); });
  $("source").textContent = `Correlations and decomposition: the tables in results/, preset ${D.about.preset}, finished ` +
    `${D.about.finished}. This page’s data are written by: python -m experiments.explorer OUT`;
  let drawnAt = 0;
  new ResizeObserver(() => {
    const room = $("across").clientWidth;
    if (room === drawnAt || !room) return;
    drawnAt = room;
    show();
  }).observe(document.querySelector("main"));
  readAddress();
})();

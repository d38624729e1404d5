// Numbers as words, colours, and the parts of charts, for explorer.js. Knows nothing of the results. No dependencies.
"use strict";
window.DRAW = (() => {
  // Numbers
  const superscript = (digits) => [...digits].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");

  /** Fixed digits with a true minus; a dash where there is no number. */
  function number(v, digits = 2) {
    if (v === null || v === undefined) return "–";
    const text = v.toFixed(digits);
    return text.replace("-", Number(text) ? "−" : "");
  }

  /** Two significant digits: 0.0012, 34, 5.6 × 10⁻⁷. */
  function significant(v) {
    if (v === 0) return "0";
    const size = Math.abs(v);
    if (size >= 1e-3 && size < 1e4) return String(Number(v.toPrecision(2))).replace("-", "−");
    const [digits, power] = v.toExponential(1).split("e");
    return `${digits.replace("-", "−")} × 10${superscript(power.replace("+", ""))}`;
  }

  /** "0.64 [0.58, 0.67]" of [mean, low, high, seeds]; "unconverged" where no seed was accepted. */
  function estimate([mean, low, high, seeds]) {
    if (!seeds) return "unconverged";
    return low === null ? number(mean) : `${number(mean)} [${number(low)}, ${number(high)}]`;
  }

  /** The place of each value in the order, 0 to 1; equal values share their mean place. */
  function ranks(values) {
    const order = Array.from(values.keys()).sort((a, b) => values[a] - values[b]);
    const found = new Float64Array(values.length);
    for (let i = 0; i < order.length; ) {
      let j = i;
      while (j + 1 < order.length && values[order[j + 1]] === values[order[i]]) j++;
      for (let k = i; k <= j; k++) found[order[k]] = (i + j) / 2 / (order.length - 1);
      i = j + 1;
    }
    return found;
  }

  // Elements
  function filled(made, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    made.append(...children.flat().filter((child) => child !== null));
    return made;
  }
  const html = (name, attributes, ...children) => filled(document.createElement(name), attributes, children);
  const svg = (name, attributes, ...children) =>
    filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
  const words = (x, y, text, attributes = {}) => svg("text", { x, y, ...attributes }, text);

  /** A whole drawing; `label` says in words what it shows. */
  const drawing = (width, height, label, ...parts) =>
    svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...parts);

  function table(caption, header, rows) {
    const cells = (row) => row.map((cell, i) => html(i ? "td" : "th", i ? {} : { scope: "row" }, String(cell)));
    return html(
      "table", {}, html("caption", {}, caption),
      html("thead", {}, html("tr", {}, header.map((name) => html("th", { scope: "col" }, name)))),
      html("tbody", {}, rows.map((row) => html("tr", {}, cells(row)))),
    );
  }

  function figure(title, drawn, note) {
    const caption = title ? html("figcaption", {}, html("strong", {}, title)) : null;
    return html("figure", {}, caption, drawn, note ? html("p", { class: "note" }, note) : null);
  }

  // Marks: every series has a shape of its own beside its colour
  function mark(shape, x, y, size, attributes) {
    if (shape === "circle") return svg("circle", { cx: x, cy: y, r: size, ...attributes });
    if (shape === "square") {
      return svg("rect", { x: x - size, y: y - size, width: 2 * size, height: 2 * size, ...attributes });
    }
    const [one, two] = [2 * size, -2 * size];
    const cross = `M${x - size},${y - size}l${one},${one}m0,${two}l${two},${one}`;
    const triangle = `M${x},${y - 1.2 * size}l${1.15 * size},${2 * size}h${-2.3 * size}z`;
    return svg("path", { d: shape === "cross" ? cross : triangle, ...attributes });
  }

  /** A mark beside its name in a legend. */
  const icon = (shape, attributes) =>
    svg("svg", { width: 14, height: 14, "aria-hidden": "true" }, mark(shape, 7, 7, 5, attributes));

  const path = (xs, ys) => xs.map((v, i) => `${i ? "L" : "M"}${v.toFixed(1)},${ys[i].toFixed(1)}`).join("");

  // Colours
  /** From stops "#rrggbb" to a function of a share in [0, 1]. */
  function colours(hexes) {
    const stops = hexes.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
    return (share) => {
      const place = Math.min(1, Math.max(0, share)) * (stops.length - 1);
      const below = Math.min(stops.length - 2, Math.floor(place));
      return stops[below].map((c, i) => Math.round(c + (place - below) * (stops[below + 1][i] - c)));
    };
  }

  /** An image of columns × rows pixels as an address. */
  function picture(columns, rows, colourAt) {
    const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
    const image = new ImageData(columns, rows);
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < columns; x++) image.data.set([...colourAt(x, y), 255], 4 * (y * columns + x));
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas.toDataURL();
  }

  // Axes
  function ticks(low, high, count = 5) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999);
    const found = [];
    for (let t = Math.ceil(low / step - 1e-9); t * step <= high + 1e-9; t++) found.push(Number((t * step).toPrecision(6)));
    return found;
  }
  const tick = (t) => String(t).replace("-", "−");
  const sideways = (x, y) => ({ "text-anchor": "middle", transform: `rotate(-90 ${x} ${y})` });

  /** Scale, ticks and name of the vertical axis of a box; grid: lines across it. */
  function vertical(parts, box, [low, high], name, grid = false) {
    const y = (v) => box.top + box.height - ((v - low) / (high - low)) * box.height;
    for (const t of ticks(low, high, 6)) {
      const d = grid ? `M${box.left},${y(t)}h${box.width}` : `M${box.left},${y(t)}h-5`;
      parts.push(svg("path", { d, class: grid ? "grid" : "axis" }));
      parts.push(words(box.left - 8, y(t) + 4, tick(t), { "text-anchor": "end", class: "quiet" }));
    }
    const middle = box.top + box.height / 2;
    parts.push(words(14, middle, name, sideways(14, middle)));
    return y;
  }

  /** The same of the horizontal axis; at: [[value, text], ...] instead of ticks. */
  function horizontal(parts, box, [low, high], name, { grid = false, count = 5, at = null } = {}) {
    const x = (v) => box.left + ((v - low) / (high - low)) * box.width;
    const bottom = box.top + box.height;
    for (const [t, text] of at || ticks(low, high, count).map((v) => [v, tick(v)])) {
      if (!at) parts.push(svg("path", { d: grid ? `M${x(t)},${box.top}V${bottom}` : `M${x(t)},${bottom}v5`, class: grid ? "grid" : "axis" }));
      parts.push(words(x(t), bottom + 19, text, { "text-anchor": "middle", class: "quiet" }));
    }
    parts.push(words(box.left + box.width / 2, bottom + 38, name, { "text-anchor": "middle" }));
    return x;
  }

  const border = (box) => svg("rect", { x: box.left, y: box.top, width: box.width, height: box.height, class: "axis" });

  /** The lower end of an axis of correlations: 0, or below the smallest. */
  function lowest(values) {
    const known = values.filter((v) => v !== null && v !== undefined);
    return Math.max(-1, Math.floor(Math.min(0, ...known) * 5) / 5);
  }

  /**
   * A line a row: marks with their intervals as bars, the first mark's numbers at the right.
   * rows: [text, [[class, shape, [mean, low, high, seeds]], ...], chosen].
   */
  function rowChart(rows, width, axisName, label) {
    const narrow = width < 560;
    const [left, right, high, top] = [narrow ? 12 : 200, 132, narrow ? 48 : 34, 6];
    const box = { left, top, width: width - left - right, height: rows.length * high };
    const low = lowest(rows.flatMap(([, marks]) => marks.flatMap(([, , value]) => value.slice(0, 3))));
    const parts = rows.map((row, i) => (row[2] ? svg("rect", { x: 0, y: top + i * high, width, height: high, class: "chosen" }) : null));
    const x = horizontal(parts, box, [low, 1], axisName, { grid: true, count: narrow ? 3 : 5 });
    rows.forEach(([text, marks], i) => {
      const y = top + i * high + (narrow ? 33 : high / 2);
      parts.push(narrow ? words(4, y - 17, text) : words(left - 16, y + 4, text, { "text-anchor": "end" }));
      marks.forEach(([name, shape, [mean, from, to]], j) => {
        const at = y + (j - (marks.length - 1) / 2) * 8;
        if (from !== null) parts.push(svg("path", { d: `M${x(Math.max(low, from))},${at}H${x(to)}`, class: name, "stroke-width": 2 }));
        if (mean !== null) parts.push(mark(shape, x(mean), at, 4.5, { class: name }));
      });
      parts.push(words(left + box.width + 14, y + 4, estimate(marks[0][2])));
    });
    return drawing(width, top + box.height + 44, label, ...parts.filter(Boolean));
  }

  return {
    number, significant, estimate, ranks, html, svg, words, drawing, table, figure, mark, icon, path, colours, picture,
    tick, vertical, horizontal, border, lowest, rowChart,
  };
})();

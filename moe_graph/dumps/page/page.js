"use strict";
// Draws the graph in #data. Text of the graph goes to the page by textContent and fillText alone.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const canvas = get("graph"), pen = canvas.getContext("2d");
  const map = get("map"), panel = get("panel"), hits = get("hits"), search = get("search");
  const KINDS = ["input", "compute", "conversion", "constant", "shape", "moe", "output"];
  const WORDS = { conversion: "cast, layout, view", shape: "shape arithmetic", moe: "MoE", between: "between MoE nodes" };
  const DETAIL = 0.45, TEXT = 0.22, MOST_HITS = 60;
  const hidden = new Set(data.hidden);
  let view, scale = 1, left = 0, top = 0, selected = -1, hover = -1, width = 1, height = 1, colors = {}, mapImage = null;
  let mapScale = 1, asked = false, drawCurve = null;

  const readers = data.nodes.map(() => []);
  data.nodes.forEach((node, at) => node.inputs.forEach((input) => {
    if (input && input.at >= 0 && !readers[input.at].includes(at)) readers[input.at].push(at);
  }));
  const words = data.nodes.map((node) => [node.name, node.type, node.fx, ...node.source].join("\n").toLowerCase());
  const costs = data.costs, sending = new Set(costs ? costs.sends : []);
  const moe = data.nodes.flatMap((node, at) => (node.kind === "moe" ? [at] : []));

  // ---- the picture ----

  function prepare() {
    const found = data.views[[...hidden].sort().join(" ")];
    if (found.box) return found;
    found.box = new Map();
    found.nodes.forEach((at, place) => {
      const node = data.nodes[at];
      found.box.set(at, { x: found.x[place], y: found.y[place], w: node.width, h: node.height });
    });
    found.paths = found.lines.map(([start, end, carries, points]) => {
      const path = new Path2D();
      let low = points[0], high = points[0];
      path.moveTo(points[0], points[1]);
      for (let at = 2; at < points.length; at += 2) {
        const x = points[at], y = points[at + 1], middle = (points[at - 1] + y) / 2;
        if ((at / 2) % 2 === 0) path.lineTo(x, y);
        else path.bezierCurveTo(points[at - 2], middle, x, middle, x, y);
        low = Math.min(low, x);
        high = Math.max(high, x);
      }
      const ys = [points[1], points[points.length - 1]];
      return {
        start, end, carries, path, low, high, upper: Math.min(...ys), lower: Math.max(...ys), x: points[points.length - 2],
        y: points[points.length - 1], moe: data.nodes[start].path && data.nodes[end].path,
      };
    });
    return found;
  }

  function readColors() {
    // A custom property keeps light-dark() as it is written; a color property gives what holds.
    const style = getComputedStyle(document.documentElement);
    const probe = document.body.appendChild(document.createElement("i"));
    colors = {};
    for (const name of ["ground", "rule", "ink", "soft", "line", "focus", "path", "cost", "sends", ...KINDS.flatMap((kind) => [kind, `${kind}-edge`])]) {
      probe.style.color = `var(--${name})`;
      colors[name] = getComputedStyle(probe).color;
    }
    probe.remove();
    colors.sans = style.getPropertyValue("--sans");
    colors.mono = style.getPropertyValue("--mono");
    drawLegend();
    mapImage = null;
    if (drawCurve) drawCurve();
  }

  function drawLegend() {
    const kinds = new Set(view.nodes.map((at) => data.nodes[at].kind));
    const between = view.nodes.some((at) => data.nodes[at].path && data.nodes[at].kind !== "moe");
    get("legend").replaceChildren(...[...KINDS.filter((kind) => kinds.has(kind)), ...(between ? ["between"] : [])].map((kind) => {
      const item = make("span"), sample = item.appendChild(make("i"));
      sample.style.background = colors[kind] || "none";
      sample.style.borderColor = colors[`${kind}-edge`] || colors.path;
      item.append(WORDS[kind] || kind);
      return item;
    }));
  }

  function ask() {
    if (!asked) {
      asked = true;
      requestAnimationFrame(() => { asked = false; draw(); });
    }
  }

  function draw() {
    const ratio = devicePixelRatio || 1, showPath = get("moe").checked;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = colors.ground;
    pen.fillRect(0, 0, width, height);
    pen.setTransform(ratio * scale, 0, 0, ratio * scale, -left * ratio * scale, -top * ratio * scale);
    const right = left + width / scale, bottom = top + height / scale;
    const groups = { line: [], path: [], focus: [] };
    for (const line of view.paths) {
      if (line.high < left || line.low > right || line.lower < top || line.upper > bottom) continue;
      const near = line.start === selected || line.end === selected;
      groups[near ? "focus" : showPath && line.moe ? "path" : "line"].push(line);
    }
    for (const [name, group] of Object.entries(groups)) {
      pen.strokeStyle = pen.fillStyle = colors[name];
      pen.lineWidth = (name === "line" ? 1.2 : 1.9) / Math.min(1, Math.max(scale * 2, 0.1));
      for (const line of group) {
        pen.setLineDash(line.carries ? [] : [5, 4]);
        pen.stroke(line.path);
        if (scale > TEXT) arrow(line.x, line.y);
      }
    }
    pen.setLineDash([]);
    for (const [at, box] of view.box) {
      if (box.x + box.w / 2 < left || box.x - box.w / 2 > right || box.y + box.h / 2 < top || box.y - box.h / 2 > bottom) continue;
      drawBox(at, box, showPath);
    }
    drawMap();
  }

  function arrow(x, y) {
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(x - 3.4, y - 6.5);
    pen.lineTo(x + 3.4, y - 6.5);
    pen.fill();
  }

  function drawBox(at, box, showPath) {
    const node = data.nodes[at], x = box.x - box.w / 2, y = box.y - box.h / 2;
    const marked = showPath ? node.kind === "moe" : false;
    pen.beginPath();
    if (scale > TEXT) pen.roundRect(x, y, box.w, box.h, 6);
    else pen.rect(x, y, box.w, box.h);
    const kind = node.kind === "moe" && !showPath ? "compute" : node.kind;
    pen.fillStyle = colors[scale > TEXT ? kind : `${kind}-edge`];  // from far away the pale ones would be lost
    pen.fill();
    if (costs && costs.weight[at]) {
      pen.globalAlpha = 0.15 + 0.75 * costs.weight[at];
      pen.fillStyle = colors.cost;
      pen.fill();
      pen.globalAlpha = 1;
    }
    if (sending.has(at)) { pen.strokeStyle = colors.sends; pen.lineWidth = 3 / Math.min(1, scale * 1.4); }
    else if (at === selected) { pen.strokeStyle = colors.focus; pen.lineWidth = 2.5 / Math.min(1, scale * 1.4); }
    else if (at === hover) { pen.strokeStyle = colors.soft; pen.lineWidth = 1.6; }
    else if (marked) { pen.strokeStyle = colors["moe-edge"]; pen.lineWidth = 2 / Math.min(1, scale * 1.4); }
    else if (showPath && node.path) { pen.strokeStyle = colors.path; pen.lineWidth = 1.6; }
    else { pen.strokeStyle = colors[`${kind}-edge`]; pen.lineWidth = 1; }
    pen.setLineDash(node.kind === "shape" && scale > TEXT ? [4, 3] : []);
    pen.stroke();
    pen.setLineDash([]);
    if (scale <= TEXT) return;
    pen.textAlign = "center";
    node.lines.forEach((text, line) => {
      if (line > 0 && scale < DETAIL) return;
      pen.fillStyle = line ? colors.soft : colors.ink;
      pen.font = line === 0 ? `600 12.5px ${colors.sans}` : line === node.lines.length - 1 ? `10px ${colors.mono}` : `11px ${colors.sans}`;
      pen.fillText(text, box.x, y + 18 + 15 * line, box.w - 8);
    });
  }

  function drawMap() {
    const ratio = devicePixelRatio || 1;
    mapScale = Math.min(150 / view.width, 190 / view.height);
    const w = Math.max(24, Math.round(view.width * mapScale)), h = Math.max(24, Math.round(view.height * mapScale));
    const all = view.width * scale <= width && view.height * scale <= height;
    map.hidden = all || height < 320;
    if (map.hidden) return;
    const ink = map.getContext("2d");
    if (!mapImage || mapImage.of !== view) {
      mapImage = document.createElement("canvas");
      mapImage.of = view;
      mapImage.width = w * ratio;
      mapImage.height = h * ratio;
      const own = mapImage.getContext("2d");
      own.scale(ratio, ratio);
      for (const kind of ["", "moe"]) {  // MoE nodes last, large enough to be seen
        for (const [at, box] of view.box) {
          const node = data.nodes[at];
          if ((node.kind === "moe") !== (kind === "moe")) continue;
          const least = kind ? 3 : 1;
          own.fillStyle = colors[kind ? "moe-edge" : node.path ? "path" : `${node.kind}-edge`];
          const bw = Math.max(least, box.w * mapScale), bh = Math.max(least, box.h * mapScale);
          own.fillRect(box.x * mapScale - bw / 2, box.y * mapScale - bh / 2, bw, bh);
        }
      }
      map.width = mapImage.width;
      map.height = mapImage.height;
      map.style.width = `${w}px`;
      map.style.height = `${h}px`;
    }
    ink.setTransform(1, 0, 0, 1, 0, 0);
    ink.clearRect(0, 0, map.width, map.height);
    ink.drawImage(mapImage, 0, 0);
    ink.scale(ratio, ratio);
    ink.strokeStyle = colors.focus;
    ink.lineWidth = 1.5;
    const x = Math.max(1, left * mapScale), y = Math.max(1, top * mapScale);
    const far = Math.min(w - 1, (left + width / scale) * mapScale), low = Math.min(h - 1, (top + height / scale) * mapScale);
    if (far > x && low > y) ink.strokeRect(x, y, Math.max(far - x, 3), Math.max(low - y, 3));
  }

  // ---- where one looks ----

  function zoom(factor, x = width / 2, y = height / 2) {
    const next = Math.min(3, Math.max(Math.min(width / view.width, height / view.height, 0.5) * 0.8, scale * factor));
    left += x / scale - x / next;
    top += y / scale - y / next;
    scale = next;
    ask();
  }

  function fit() {
    scale = Math.min(1.4, (width - 20) / view.width, (height - 60) / view.height);
    left = view.width / 2 - width / 2 / scale;
    top = view.height / 2 - (height + 30) / 2 / scale;
    ask();
  }

  function centre(at) {
    const box = view.box.get(at);
    if (!box) return;
    scale = Math.max(scale, 0.8);
    left = box.x - width / 2 / scale;
    top = box.y - height / 2 / scale;
    ask();
  }

  function open() {
    fit();
    if (scale >= 0.55) return;
    scale = 0.8;
    const first = moe.find((at) => view.box.has(at)), box = view.box.get(first ?? view.nodes[0]);
    left = box.x - width / 2 / scale;
    top = first === undefined ? -40 / scale : box.y - height / 2 / scale;
    ask();
  }

  function change() {
    const before = view && selected >= 0 ? view.box.get(selected) : null;
    view = prepare();
    drawLegend();
    get("constants").checked = !hidden.has("constant");
    get("shapes").checked = !hidden.has("shape");
    const less = data.nodes.length - view.nodes.length;
    get("counts").textContent = `${data.nodes.length} nodes` + (less ? `, ${less} collapsed` : "") + (data.stage ? ` · ${data.stage}` : "");
    const after = view.box.get(selected);
    if (before && after) { left += after.x - before.x; top += after.y - before.y; }
    else if (after) centre(selected);
    ask();
  }

  function toggle(kind, shown) {
    const looked = { x: left + width / 2 / scale, y: top + height / 2 / scale };
    const old = view;
    // Without a selection what is nearest to the middle stays where it is.
    let anchor = selected;
    if (!old.box.has(anchor)) {
      let best = Infinity;
      for (const [at, box] of old.box) {
        const far = Math.hypot(box.x - looked.x, box.y - looked.y);
        if (far < best && data.nodes[at].kind !== kind) { best = far; anchor = at; }
      }
    }
    const before = old.box.get(anchor);
    if (shown) hidden.delete(kind); else hidden.add(kind);
    const kept = selected;
    selected = -1;
    change();
    selected = kept;
    const after = view.box.get(anchor);
    if (before && after) { left += after.x - before.x; top += after.y - before.y; }
    if (selected >= 0) show(selected);
    ask();
  }

  // ---- the panel ----

  function make(tag, text, kind) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  }

  function link(at, text) {
    const element = make("button", text, "go");
    element.addEventListener("click", () => select(at, true));
    return element;
  }

  function section(title, rows) {
    if (!rows.length) return;
    panel.append(make("h3", title));
    for (const row of rows) panel.append(row);
  }

  function row(head, ...rest) {
    const element = make("div", undefined, "row");
    if (head) element.append(make("b", head));
    element.append(...rest);
    return element;
  }

  function show(at) {
    const node = data.nodes[at];
    panel.hidden = false;
    panel.replaceChildren();
    const close = make("button", "×", "close");
    close.setAttribute("aria-label", "Close");
    close.addEventListener("click", () => select(-1));
    panel.append(close, make("h2", node.type), make("div", node.name, "name"));
    const mark = make("span", WORDS[node.kind] || node.kind, "mark");
    mark.style.borderColor = colors[`${node.kind}-edge`];
    panel.append(mark);
    if (!view.box.has(at)) {
      const reveal = make("button", "collapsed: show it", "go");
      reveal.addEventListener("click", () => { toggle(node.kind, true); centre(at); });
      panel.append(" ", reveal);
    }
    section("Costs", ((costs && costs.rows[at]) || []).map(([name, text]) => row(name, make("code", text))));
    section("Inputs", node.inputs.map((input, place) => {
      if (!input) return row(node.inputNames[place] || String(place), make("span", "not fed"));
      const from = input.output < 0 ? `${input.node} (order only)` : input.output ? `${input.node} : ${input.output}` : input.node;
      const origin = data.nodes[input.at];
      const own = row(input.output < 0 ? "" : node.inputNames[place] || String(place), input.at < 0 ? from : link(input.at, from));
      const value = origin && origin.kind === "constant" && origin.attributes.find(([key]) => key === "value");
      if (input.tensor || value) own.append(make("code", input.tensor + (value ? ` = ${value[1].slice(0, 80)}` : "")));
      return own;
    }));
    section("Outputs", node.outputs.map((tensor, place) => row(String(place), make("code", tensor))));
    section("Attributes", node.attributes.map(([key, value]) => row(key, make("pre", value))));
    section("Source", node.source.map((text) => row("", make("code", text))));
    section("FX node", node.fx ? [row("", make("code", node.fx))] : []);
    section("Read by", readers[at].map((other) => row("", link(other, `${data.nodes[other].type}  ${data.nodes[other].name}`))));
    panel.scrollTop = 0;
    resize();
  }

  function select(at, move) {
    selected = at;
    if (at < 0) { panel.hidden = true; resize(); }
    else { show(at); if (move) centre(at); }
    const hash = at < 0 ? "" : `#${encodeURIComponent(data.nodes[at].name.toWellFormed ? data.nodes[at].name.toWellFormed() : data.nodes[at].name)}`;
    if (hash !== location.hash) try { history.replaceState(null, "", hash || "#"); } catch { /* a page without an address */ }
    ask();
  }

  // ---- the search ----

  let found = [], chosen = -1;

  function seek() {
    const parts = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = [];
    chosen = -1;
    if (parts.length) data.nodes.forEach((_, at) => { if (parts.every((part) => words[at].includes(part))) found.push(at); });
    // Whole names and types first, then types that begin so.
    const rank = (at) => {
      const name = data.nodes[at].name.toLowerCase(), type = data.nodes[at].type.toLowerCase(), text = parts.join(" ");
      return name === text || type === text ? 0 : type.startsWith(text) || name.startsWith(text) ? 1 : 2;
    };
    found = found.map((at) => [rank(at), at]).sort((one, other) => one[0] - other[0] || one[1] - other[1]).map(([, at]) => at);
    hits.replaceChildren(...found.slice(0, MOST_HITS).map((at, place) => {
      const node = data.nodes[at], item = make("div", node.type);
      item.id = `hit${place}`;
      item.setAttribute("role", "option");
      item.append(make("span", node.name + (node.source.length ? `  ·  ${node.source[node.source.length - 1]}` : "")));
      item.addEventListener("pointerdown", (event) => { event.preventDefault(); select(at, true); closeHits(); });
      return item;
    }));
    if (found.length > MOST_HITS) hits.append(make("div", `${found.length - MOST_HITS} more`, "more"));
    if (parts.length && !found.length) hits.append(make("div", "no node", "more"));
    hits.hidden = !parts.length;
    search.setAttribute("aria-expanded", String(!hits.hidden));
  }

  function closeHits() {
    hits.hidden = true;
    search.setAttribute("aria-expanded", "false");
  }

  function step(by) {
    const count = Math.min(found.length, MOST_HITS);
    if (!count) return;
    chosen = (chosen + by + count) % count;
    [...hits.children].forEach((item, at) => item.classList.toggle("chosen", at === chosen));
    hits.children[chosen].scrollIntoView({ block: "nearest" });
    search.setAttribute("aria-activedescendant", `hit${chosen}`);
    select(found[chosen], true);
  }

  search.addEventListener("input", seek);
  search.addEventListener("focus", () => { if (search.value) hits.hidden = false; });
  search.addEventListener("blur", closeHits);
  search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") { step(1); event.preventDefault(); }
    else if (event.key === "ArrowUp") { step(-1); event.preventDefault(); }
    else if (event.key === "Enter") { if (chosen < 0) step(1); closeHits(); canvas.focus(); }
    else if (event.key === "Escape") { closeHits(); canvas.focus(); }
    event.stopPropagation();
  });

  // ---- the mouse and the keys ----

  function under(event) {
    const frame = canvas.getBoundingClientRect();
    const x = left + (event.clientX - frame.left) / scale, y = top + (event.clientY - frame.top) / scale;
    for (const [at, box] of view.box) if (Math.abs(x - box.x) <= box.w / 2 && Math.abs(y - box.y) <= box.h / 2) return at;
    return -1;
  }

  const pointers = new Map();
  let travelled = 0;
  canvas.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, event);
    travelled = 0;
    try { canvas.setPointerCapture(event.pointerId); } catch { /* the pointer is gone already */ }
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) {
      const at = under(event);
      if (at !== hover) { hover = at; canvas.classList.toggle("hit", at >= 0); ask(); }
      return;
    }
    const other = [...pointers.values()].find((one) => one.pointerId !== event.pointerId);
    if (other) {
      const gap = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
      const frame = canvas.getBoundingClientRect();
      zoom(gap(event) / gap(last), (event.clientX + other.clientX) / 2 - frame.left, (event.clientY + other.clientY) / 2 - frame.top);
    } else {
      left -= (event.clientX - last.clientX) / scale;
      top -= (event.clientY - last.clientY) / scale;
    }
    travelled += Math.abs(event.clientX - last.clientX) + Math.abs(event.clientY - last.clientY);
    canvas.classList.toggle("pan", travelled > 3);
    pointers.set(event.pointerId, event);
    ask();
  });
  const release = (event) => {
    if (pointers.delete(event.pointerId) && event.type === "pointerup" && travelled <= 3) select(under(event));
    canvas.classList.remove("pan");
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("dblclick", (event) => { const frame = canvas.getBoundingClientRect(); zoom(1.6, event.clientX - frame.left, event.clientY - frame.top); });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const unit = event.deltaMode === 1 ? 18 : event.deltaMode === 2 ? height : 1;
    const frame = canvas.getBoundingClientRect();
    if (event.ctrlKey || event.metaKey) zoom(Math.exp(-event.deltaY * unit * 0.004), event.clientX - frame.left, event.clientY - frame.top);
    else {
      left += ((event.shiftKey ? event.deltaY : event.deltaX) * unit) / scale;
      top += ((event.shiftKey ? 0 : event.deltaY) * unit) / scale;
      ask();
    }
  }, { passive: false });
  map.addEventListener("pointerdown", (event) => {
    const go = (one) => {
      const frame = map.getBoundingClientRect();
      left = (one.clientX - frame.left) / mapScale - width / 2 / scale;
      top = (one.clientY - frame.top) / mapScale - height / 2 / scale;
      ask();
    };
    go(event);
    map.setPointerCapture(event.pointerId);
    map.onpointermove = go;
    map.onpointerup = () => { map.onpointermove = null; };
  });

  function nextMoe() {
    const shown = moe.filter((at) => view.box.has(at));
    if (shown.length) select(shown.find((at) => at > selected) ?? shown[0], true);
  }

  get("constants").addEventListener("change", (event) => toggle("constant", event.target.checked));
  get("shapes").addEventListener("change", (event) => toggle("shape", event.target.checked));
  get("moe").addEventListener("change", ask);
  get("next").addEventListener("click", nextMoe);
  get("in").addEventListener("click", () => zoom(1.3));
  get("out").addEventListener("click", () => zoom(1 / 1.3));
  get("fit").addEventListener("click", fit);
  get("theme").addEventListener("click", () => {
    const root = document.documentElement.classList;
    const dark = root.contains("dark") || (!root.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches);
    root.toggle("dark", !dark);
    root.toggle("light", dark);
    readColors();
    ask();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColors(); ask(); });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === search) return;
    const pan = { ArrowUp: [0, -80], ArrowDown: [0, 80], ArrowLeft: [-80, 0], ArrowRight: [80, 0] }[event.key];
    if (pan) { left += pan[0] / scale; top += pan[1] / scale; ask(); }
    else if (event.key === "/") { search.focus(); search.select(); }
    else if (event.key === "f") fit();
    else if (event.key === "m") nextMoe();
    else if (event.key === "+" || event.key === "=") zoom(1.3);
    else if (event.key === "-") zoom(1 / 1.3);
    else if (event.key === "Escape") select(-1);
    else return;
    event.preventDefault();
  });

  function resize() {
    const frame = canvas.getBoundingClientRect();
    // The middle stays when the panel opens.
    left += (width - frame.width) / 2 / scale;
    width = frame.width;
    height = frame.height;
    ask();
  }

  function start() {
    document.title = data.name || "graph";
    get("name").textContent = get("name").title = data.name || "graph";
    for (const [id, kind] of [["constants", "constant"], ["shapes", "shape"]]) get(id).disabled = !data.nodes.some((node) => node.kind === kind);
    get("moe").disabled = get("next").disabled = !moe.length;
    view = prepare();
    if (costs) drawCurve = memoryCurve(get("curve"), costs, () => colors, (at) => select(at, true));
    readColors();
    change();
    ({ width, height } = canvas.getBoundingClientRect());
    open();
    let asked = "";
    try { asked = decodeURIComponent(location.hash.slice(1)); } catch { /* not an address this page wrote */ }
    const at = asked ? data.nodes.findIndex((node) => node.name === asked) : -1;
    if (at >= 0) select(at, true);
    new ResizeObserver(resize).observe(canvas);
  }

  if (data.nodes.length) start();
  else get("counts").textContent = "no nodes";
})();

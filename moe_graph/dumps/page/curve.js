"use strict";
// Memory over the nodes, in the order of the run: `costs` as in #data, `colors()` are those of the theme, `select(at)` shows a node.
// Returns what draws it.
function memoryCurve(canvas, costs, colors, select) {
  const points = costs.curve, sending = new Set(costs.sends), pen = canvas.getContext("2d");

  function draw() {
    const ratio = devicePixelRatio || 1, { cost, sends, ink, sans } = colors();
    const wide = canvas.clientWidth, high = canvas.clientHeight, most = Math.max(1, ...points.map(([, live]) => live));
    canvas.width = wide * ratio;
    canvas.height = high * ratio;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = cost;
    pen.globalAlpha = 0.45;
    pen.beginPath();
    pen.moveTo(0, high);
    points.forEach(([, live], place) => {
      const y = high - (high - 18) * live / most;
      pen.lineTo(wide * place / points.length, y);
      pen.lineTo(wide * (place + 1) / points.length, y);
    });
    pen.lineTo(wide, high);
    pen.fill();
    pen.globalAlpha = 1;
    pen.fillStyle = sends;
    points.forEach(([at], place) => {
      if (sending.has(at)) pen.fillRect(wide * (place + 0.5) / points.length - 1, high - 5, 2, 5);
    });
    pen.fillStyle = ink;
    pen.font = `11px ${sans}`;
    pen.fillText(costs.title, 8, 13, wide - 16);
  }

  canvas.hidden = false;
  canvas.addEventListener("click", (event) => {
    const place = Math.floor(event.offsetX / canvas.clientWidth * points.length);
    if (points[place]) select(points[place][0]);
  });
  new ResizeObserver(draw).observe(canvas);
  return draw;
}

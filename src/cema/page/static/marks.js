/** What is drawn on a chart beside its lines: versions below, domains behind. */

/** @type {Map<string, string>} */
let colours = new Map();
/** @type {HTMLElement|null} */
let probe = null;

/** A colour of the style sheet as canvas wants it. @param {string} name */
export function colour(name) {
  let found = colours.get(name);
  if (!found) {
    if (!probe) {
      probe = document.createElement("i");
      probe.hidden = true;
      document.body.append(probe);
    }
    probe.style.color = `var(--${name})`;
    found = getComputedStyle(probe).color;
    colours.set(name, found);
  }
  return found;
}

/** The same colour, more or less of it. @param {string} name @param {number} share */
export function faded(name, share) {
  const parts = colour(name).match(/[\d.]+/g) ?? ["0", "0", "0"];
  return `rgba(${parts[0]}, ${parts[1]}, ${parts[2]}, ${share})`;
}

/** @type {Set<() => void>} */
const redraws = new Set();

/** Call a function whenever light becomes dark or the reverse. @param {() => void} redraw */
export function onTheme(redraw) {
  redraws.add(redraw);
  return () => {
    redraws.delete(redraw);
  };
}

export function themeChanged() {
  colours = new Map();
  for (const redraw of redraws) redraw();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themeChanged);

/** Bits of the canvas for one unit of the style sheet. */
const ratio = () => devicePixelRatio || 1;

/**
 * Draw domains behind the lines: each one from a change to the next, every second one shaded.
 *
 * @param {any} u the uPlot
 * @param {{at: number, until?: number, name?: string}[]} domains
 */
export function drawDomains(u, domains) {
  if (!domains.length) return;
  const { left, top, width, height } = u.bbox;
  const ctx = u.ctx;
  ctx.save();
  ctx.beginPath();
  // Names are above the lines, where a chart with names has left room.
  const line = domains.some((domain) => domain.name) ? top - 9 * ratio() : top + 5 * ratio();
  ctx.rect(left - 5 * ratio(), Math.min(top, line - 8 * ratio()), width + 5 * ratio(), height + 20 * ratio());
  ctx.clip();
  const place = (/** @type {number} */ at) => u.valToPos(at, "x", true);
  domains.forEach((domain, i) => {
    const from = Math.max(left, place(domain.at));
    const next = domain.until ?? domains[i + 1]?.at;
    const to = next === undefined ? left + width : Math.min(left + width, place(next));
    if (to < left || from > left + width) return;
    ctx.fillStyle = faded("ink", i % 2 ? 0.025 : 0.06);
    ctx.fillRect(from, top, to - from, height);
    if (domain.name && to - from > 40 * ratio()) label(ctx, domain.name, from + 8 * ratio(), line + 4 * ratio(), to - from - 12 * ratio());
    // One that began before what is shown has no mark.
    if (place(domain.at) < left - 1) return;
    ctx.strokeStyle = faded("ink", 0.4);
    ctx.lineWidth = ratio();
    ctx.setLineDash([3 * ratio(), 3 * ratio()]);
    ctx.beginPath();
    ctx.moveTo(from, top);
    ctx.lineTo(from, top + height);
    ctx.stroke();
    ctx.setLineDash([]);
    diamond(ctx, from, line, 4 * ratio());
  });
  ctx.restore();
}

/** @param {CanvasRenderingContext2D} ctx @param {number} x @param {number} y @param {number} size */
function diamond(ctx, x, y, size) {
  ctx.fillStyle = colour("muted");
  ctx.beginPath();
  ctx.moveTo(x, y - size);
  ctx.lineTo(x + size, y);
  ctx.lineTo(x, y + size);
  ctx.lineTo(x - size, y);
  ctx.fill();
}

/** @param {CanvasRenderingContext2D} ctx @param {string} text @param {number} x @param {number} y @param {number} room */
function label(ctx, text, x, y, room) {
  ctx.font = `${10.5 * ratio()}px system-ui, sans-serif`;
  ctx.fillStyle = colour("muted");
  ctx.textAlign = "left";
  let shown = text;
  while (shown.length > 2 && ctx.measureText(shown).width > room) shown = `${shown.slice(0, -2)}…`;
  ctx.fillText(shown, x, y);
}

/**
 * Draw a triangle below for each version, and its number where there is room.
 *
 * @param {any} u the uPlot
 * @param {{at: number, version: number, kind?: string}[]} versions
 * @param {boolean} numbered
 */
export function drawVersions(u, versions, numbered) {
  if (!versions.length) return;
  const { left, top, width, height } = u.bbox;
  const ctx = u.ctx;
  const scale = ratio();
  const foot = top + height;
  let last = Infinity;
  let drawn = Infinity;
  ctx.save();
  ctx.font = `${10.5 * scale}px system-ui, sans-serif`;
  ctx.textAlign = "center";
  // The newest first, so that it is the one whose number is sure to have room.
  for (const version of [...versions].reverse()) {
    const x = u.valToPos(version.at, "x", true);
    if (x < left || x > left + width) continue;
    const taken = isTaken(version.kind);
    // Where many came one after another, some of the marks: those of versions that went back are among them.
    if (!taken && drawn - x < 7 * scale) continue;
    drawn = x;
    ctx.fillStyle = colour(taken ? "bad" : "muted");
    ctx.beginPath();
    if (taken) ctx.rect(x - 3 * scale, foot - 6 * scale, 6 * scale, 6 * scale);
    else {
      ctx.moveTo(x, foot - 7 * scale);
      ctx.lineTo(x + 4 * scale, foot);
      ctx.lineTo(x - 4 * scale, foot);
    }
    // A border in the colour of the ground: marks are read on filled charts too.
    ctx.strokeStyle = colour("surface");
    ctx.lineWidth = 2.5 * scale;
    ctx.lineJoin = "round";
    ctx.stroke();
    ctx.fill();
    if (!numbered || last - x < 34 * scale) continue;
    last = x;
    ctx.strokeText(`v${version.version}`, x, foot - 10 * scale);
    ctx.fillText(`v${version.version}`, x, foot - 10 * scale);
  }
  ctx.restore();
}

/** Whether a version gave back earlier content. @param {string|undefined} kind */
export const isTaken = (kind) => ["reverted", "rollback", "stop", "taken back"].includes(kind ?? "");

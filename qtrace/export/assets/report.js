// The page of `qtrace report`: reads the data in it, draws the timeline, fills the tables. Names come
// from a traced process: they are only ever written as text.
'use strict';
(async () => {
const NONE = 0xffff, NO_VERDICT = 255;
const D = JSON.parse(document.getElementById('data').textContent);
const $ = (id) => document.getElementById(id);
const el = (tag, props = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), props);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
};
const count = (n) => Number(n).toLocaleString('en');
const plural = (n, what) => `${count(n)} ${what}${n === 1 ? '' : 's'}`;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const TONES = {
  'stuck': 'bad', 'request-stuck': 'bad', 'stranded': 'bad', 'vcpu-poll': 'bad', 'foreign-poll': 'bad',
  'inconclusive': 'warn', 'pending': 'warn',
  // What did not happen is neither good nor bad.
  'not-seen': 'none',
};
const tone = (verdict) => TONES[verdict] || 'good';
const BAD = new Set(['vcpu-poll', 'foreign-poll', 'stranded']);

const short = (text, most) => (text.length > most ? `${text.slice(0, most)}…` : text);

// Times, in nanoseconds.
function show(ns) {
  const units = [[1e9, 's'], [1e6, 'ms'], [1e3, 'us']];
  for (const [size, unit] of units) if (ns >= size) return `${Number((ns / size).toPrecision(3))} ${unit}`;
  return `${Math.round(ns)} ns`;
}
function moment(ns, step) {
  const digits = Math.min(9, Math.max(3, Math.ceil(-Math.log10(Math.max(step, 1) / 1e9))));
  return `${(ns / 1e9).toFixed(digits)} s`;
}

// Columns and bytes, compressed.
async function inflate(text) {
  const raw = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Response(stream).arrayBuffer();
}
const KINDS = {f8: Float64Array, u4: Uint32Array, i4: Int32Array, u2: Uint16Array, u1: Uint8Array};
async function columns(packed) {
  const bytes = await inflate(packed.data);
  const found = {length: packed.length};
  let at = 0;
  for (const [name, kind] of packed.columns) {
    found[name] = new KINDS[kind](bytes, at, packed.length);
    at += packed.length * KINDS[kind].BYTES_PER_ELEMENT;
  }
  return found;
}
async function unpack(one) {
  if (one.ready) return one;
  one.runs = await columns(one.runs);
  one.marks = await columns(one.marks);
  one.pending = await Promise.all(one.pending.map(async (packed) =>
    ({...await columns(packed), most: packed.most, step: packed.step})));
  one.busy = await Promise.all(one.busy.map(async (text) => new Uint8Array(await inflate(text))));
  one.unshown = new Uint32Array(await inflate(one.unshown));
  const runs = one.runs, open = one.threads.map(() => []);
  runs.depth = new Uint8Array(runs.length);
  one.deepest = one.threads.map(() => 0);
  one.ran = one.busy.map((busy) => busy.some((part) => part));
  for (let i = 0; i < runs.length; i++) {
    const above = open[runs.thread[i]];
    if (!above) continue;
    one.ran[runs.thread[i]] = true;
    while (above.length && above[above.length - 1] <= runs.begin[i]) above.pop();
    runs.depth[i] = Math.min(above.length, 5);
    one.deepest[runs.thread[i]] = Math.max(one.deepest[runs.thread[i]], runs.depth[i]);
    if (runs.took[i] > 0) above.push(runs.begin[i] + runs.took[i]);
  }
  one.instances = new Map();
  for (let i = 0; i < runs.length; i++) if (runs.instance[i] >= 0) one.instances.set(runs.instance[i], i);
  one.rows = new Map();
  for (let i = 0; i < runs.length; i++) one.rows.set(runs.row[i], i);
  one.ready = true;
  return one;
}

let R = null;          // the recording that is shown
let lanes = [];        // what stands where on the canvas
let view = [0, 1];     // the part of it that is seen, in ns
let selected = null;   // {run: number} or {span: object}
let current = -1;      // the finding that was chosen last
const canvas = $('timeline'), pen = canvas.getContext('2d');
const GUTTER = 168, AXIS = 24, LEVEL = 15, GAP = 9, SPAN = 14, PENDING = 34;
const narrow = () => canvas.clientWidth < 700;
const left = () => (narrow() ? 0 : GUTTER);
const labelled = () => (narrow() ? 14 : 0);
const xOf = (ns) => left() + (ns - view[0]) / (view[1] - view[0]) * (canvas.clientWidth - left());
const nsAt = (x) => view[0] + (x - left()) / (canvas.clientWidth - left()) * (view[1] - view[0]);

// What stands where.
function sublanes(items) {
  const free = [];
  return items.map((item) => {
    let lane = free.findIndex((until) => until <= item.begin);
    if (lane < 0) lane = free.length < 6 ? free.length : 5;
    free[lane] = Math.max(item.end, item.begin + 1);
    return lane;
  });
}
function layout() {
  lanes = [];
  let y = AXIS;
  const add = (lane, height) => {
    y += labelled();
    lanes.push({...lane, y, height});
    y += height + GAP;
  };
  const spans = (label, items, colour) => {
    if (!items.length) return;
    const ordered = [...items].sort((a, b) => a.begin - b.begin);
    const places = sublanes(ordered);
    const rows = Math.max(...places) + 1;
    add({kind: 'spans', label, items: ordered, places, colour}, rows * SPAN);
  };
  spans('findings', R.findings.shown.map((one) => ({...one, title: `${one.what}: ${one.name}`})), '--bad');
  spans('seen to wait', [...R.waits.shown, ...R.held.shown], '--warn');
  spans('QMP commands', R.commands.shown, '--foreign-poll');
  spans('jobs', R.jobs.shown, '--iothread');
  R.threads.forEach(([tid, name, role], thread) => {
    // One that only scheduled needs no room for bars.
    const label = R.ran[thread] ? {label: name, second: `${role} ${tid}`} : {label: `${name} ${role} ${tid}`};
    add({kind: 'thread', thread, ...label}, R.ran[thread] ? (R.deepest[thread] + 1) * LEVEL + 8 : 13);
  });
  R.contexts.forEach((name, context) => {
    if (R.pending[context].time.length) {
      add({kind: 'pending', context, label: 'pending in', second: name}, PENDING);
    }
  });
  const height = Math.max(y, 80), ratio = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(height * ratio);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
}

// Drawing.
let colours = {};
function readColours() {
  for (const name of ['page', 'panel', 'ink', 'faint', 'line', 'bad', 'warn', 'good', 'link', 'main-loop',
    'iothread', 'nested-poll', 'vcpu-poll', 'foreign-poll', 'stranded', 'other']) colours[name] = css(`--${name}`);
}
const colourOf = (verdict) => colours[verdict] || colours.other;
function hatch(x0, y0, x1, y1, colour) {
  pen.save();
  pen.beginPath();
  pen.rect(x0, y0, x1 - x0, y1 - y0);
  pen.clip();
  pen.strokeStyle = colour;
  pen.globalAlpha = 0.35;
  pen.lineWidth = 1;
  pen.beginPath();
  const high = y1 - y0;
  for (let x = Math.floor((x0 - high) / 9) * 9; x < x1; x += 9) {
    pen.moveTo(x, y1);
    pen.lineTo(x + high, y0);
  }
  pen.stroke();
  pen.restore();
}
function fit(text, width) {
  if (width < 26) return '';
  if (pen.measureText(text).width <= width) return text;
  let cut = Math.floor(text.length * width / pen.measureText(text).width) - 1;
  while (cut > 2 && pen.measureText(`${text.slice(0, cut)}…`).width > width) cut--;
  return cut > 2 ? `${text.slice(0, cut)}…` : '';
}
function step() {
  const rough = (view[1] - view[0]) / Math.max((canvas.clientWidth - left()) / 130, 1);
  const size = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  return [1, 2, 5, 10].map((one) => one * size).find((one) => one >= rough) || rough;
}
function draw() {
  const width = canvas.clientWidth, height = canvas.clientHeight, first = left();
  pen.fillStyle = colours.page;
  pen.fillRect(0, 0, width, height);
  pen.font = '11px system-ui, sans-serif';
  pen.textBaseline = 'middle';
  const unit = step();
  for (let t = Math.ceil(view[0] / unit) * unit; t <= view[1]; t += unit) {
    const x = Math.round(xOf(t)) + 0.5;
    pen.strokeStyle = colours.line;
    pen.beginPath(); pen.moveTo(x, AXIS - 4); pen.lineTo(x, height); pen.stroke();
    pen.fillStyle = colours.faint;
    pen.textAlign = 'center';
    const text = moment(t, unit), half = pen.measureText(text).width / 2;
    pen.fillText(text, Math.min(Math.max(x, half + 2), width - half - 2), AXIS / 2);
  }
  pen.textAlign = 'left';
  pen.save();
  pen.beginPath();
  pen.rect(first, AXIS, width - first, height - AXIS);
  pen.clip();
  for (const loss of R.losses.shown) {
    const x0 = xOf(loss.begin), x1 = Math.max(xOf(loss.end), x0 + 3);
    if (x1 < first || x0 > width) continue;
    pen.fillStyle = colours.bad;
    pen.globalAlpha = 0.12;
    pen.fillRect(x0, AXIS, x1 - x0, height);
    pen.globalAlpha = 1;
    hatch(Math.max(x0, first), AXIS, Math.min(x1, width), height, colours.bad);
  }
  drawUnshown(width);
  for (const lane of lanes) {
    pen.strokeStyle = colours.line;
    pen.beginPath();
    pen.moveTo(first, lane.y + lane.height + GAP / 2 + 0.5);
    pen.lineTo(width, lane.y + lane.height + GAP / 2 + 0.5);
    pen.stroke();
    if (lane.kind === 'spans') drawSpans(lane, width);
    if (lane.kind === 'pending') drawPending(lane, width);
  }
  drawRuns(width);
  pen.restore();
  for (const lane of lanes) {
    if (narrow()) {
      pen.fillStyle = colours.faint;
      pen.fillText(fit([lane.label, lane.second].filter(Boolean).join(' · '), width - 8), 3, lane.y - 7);
    } else {
      const middle = lane.y + lane.height / 2;
      pen.fillStyle = colours.ink;
      pen.fillText(fit(lane.label, first - 14), 6, lane.second ? middle - 6 : middle);
      pen.fillStyle = colours.faint;
      if (lane.second) pen.fillText(fit(lane.second, first - 14), 6, middle + 7);
    }
  }
  canvas.dataset.from = view[0];
  canvas.dataset.to = view[1];
  $('range').textContent = `${moment(Math.max(view[0], 0), unit)} to ${moment(Math.min(view[1], R.lasted), unit)} of ${show(R.lasted)}`;
}
function drawUnshown(width) {
  if (!R.windows) return;
  // How busy each thread was, of all of it; then what is not shown one by one.
  const size = R.lasted / R.unshown.length;
  for (const lane of lanes) {
    if (lane.kind !== 'thread') continue;
    pen.fillStyle = colours.faint;
    const busy = R.busy[lane.thread];
    const from = Math.max(Math.floor(view[0] / size), 0), to = Math.min(Math.ceil(view[1] / size), busy.length);
    for (let at = from; at < to; at++) {
      if (!busy[at]) continue;
      const high = Math.max(busy[at] / 255 * lane.height, 1), x0 = xOf(at * size);
      pen.globalAlpha = 0.4;
      pen.fillRect(x0, lane.y + lane.height - high, Math.max(xOf((at + 1) * size) - x0, 1), high);
    }
    pen.globalAlpha = 1;
  }
  let since = 0;
  for (const [begin, end] of [...R.windows, [R.lasted + R.begin_ns, 0]]) {
    const until = begin - R.begin_ns;
    const x0 = Math.max(xOf(since), left()), x1 = Math.min(xOf(until), width);
    if (x1 - x0 > 6) {
      for (const lane of lanes) {
        if (lane.kind === 'thread') hatch(x0, lane.y, x1, lane.y + lane.height, colours.faint);
      }
      if (x1 - x0 > 190) {
        pen.fillStyle = colours.ink;
        pen.fillText('not run by run here: how busy', x0 + 6, AXIS + 7);
      }
    }
    since = Math.max(since, end - R.begin_ns);
  }
}
function drawSpans(lane, width) {
  lane.items.forEach((item, at) => {
    const x0 = xOf(item.begin), x1 = Math.max(xOf(item.end), x0 + 3);
    if (x1 < left() || x0 > width) return;
    const y = lane.y + lane.places[at] * SPAN;
    const begin = Math.max(x0, left() - 2), end = Math.min(x1, width + 2);
    pen.fillStyle = item.what && !item.verdict ? colours.warn : colours[lane.colour.slice(2)];
    pen.globalAlpha = 0.8;
    pen.fillRect(begin, y, end - begin, SPAN - 2);
    pen.globalAlpha = 1;
    if (selected && selected.span && selected.span.begin === item.begin && selected.span.name === item.name
        && selected.span.what === item.what) outline(begin, y, end - begin, SPAN - 2);
    const text = fit(item.title || item.name, end - begin - 6);
    pen.fillStyle = colours.page;
    if (text) pen.fillText(text, begin + 3, y + SPAN / 2 - 1);
  });
}
function outline(x, y, wide, high) {
  pen.strokeStyle = colours.link;
  pen.lineWidth = 2;
  pen.strokeRect(x - 1, y - 1, wide + 2, high + 2);
  pen.lineWidth = 1;
}
function drawPending(lane, width) {
  const {time, count: counts, most, step: size} = R.pending[lane.context];
  const base = lane.y + lane.height, high = (value) => value / Math.max(most, 1) * (lane.height - 4);
  pen.fillStyle = colours['nested-poll'];
  pen.beginPath();
  let value = 0;
  pen.moveTo(left(), base);
  for (let at = 0; at < time.length; at++) {
    const x = Math.min(Math.max(xOf(time[at]), left() - 1), width + 1);
    pen.lineTo(x, base - high(value));
    value = counts[at];
    pen.lineTo(x, base - high(value));
    if (time[at] > view[1]) break;
  }
  pen.lineTo(Math.min(xOf(R.lasted), width + 1), base - high(value));
  pen.lineTo(Math.min(xOf(R.lasted), width + 1), base);
  pen.closePath();
  pen.globalAlpha = 0.75;
  pen.fill();
  pen.globalAlpha = 1;
  pen.fillStyle = colours.faint;
  pen.fillText(`at most ${count(most)}${size ? `; the most in each ${show(size)}` : ''}`, left() + 4, lane.y + 4);
}
const threadLane = new Map();
function middleOf(thread, depth = 0) {
  const lane = threadLane.get(thread);
  return lane ? lane.y + depth * LEVEL + (LEVEL - 3) / 2 : 0;
}
function drawRuns(width) {
  const runs = R.runs;
  threadLane.clear();
  for (const lane of lanes) if (lane.kind === 'thread') threadLane.set(lane.thread, lane);
  const seen = [];
  const drawn = new Map();
  const bar = (i, always) => {
    const lane = threadLane.get(runs.thread[i]);
    if (!lane) return;
    const x0 = xOf(runs.begin[i]), x1 = runs.took[i] < 0 ? x0 : xOf(runs.begin[i] + runs.took[i]);
    const begin = Math.max(x0, left() - 2), end = Math.min(Math.max(x1, x0 + (always ? 4 : 1)), width + 2);
    const y = lane.y + runs.depth[i] * LEVEL, high = LEVEL - 3;
    const key = runs.thread[i] * 8 + runs.depth[i];
    // Of those within a pixel one is enough.
    if (!always && end - begin <= 1 && drawn.get(key) === Math.round(begin)) return;
    drawn.set(key, Math.round(begin));
    pen.fillStyle = colourOf(R.verdicts[runs.verdict[i]]);
    if (runs.took[i] < 0) {
      pen.beginPath();
      pen.moveTo(x0, y); pen.lineTo(x0 + 5, y + high / 2); pen.lineTo(x0, y + high); pen.lineTo(x0 - 1.5, y + high);
      pen.lineTo(x0 - 1.5, y); pen.closePath(); pen.fill();
    } else {
      pen.fillRect(begin, y, end - begin, high);
    }
    if (runs.poll[i] && end - begin > 2) {
      pen.fillStyle = colours.ink;
      pen.fillRect(begin, y + high - 2, end - begin, 2.5);
    }
    if (end - begin > 40) {
      pen.fillStyle = colours.page;
      pen.fillText(fit(R.names[runs.name[i]] + (runs.open[i] ? ' (had not returned)' : ''), end - begin - 6),
        begin + 3, y + high / 2);
    }
    if (selected && selected.run === i) outline(begin, y, Math.max(end - begin, 2), high);
  };
  const findings = [];
  for (let i = 0; i < runs.length; i++) {
    if (runs.begin[i] > view[1]) break;
    if (runs.begin[i] + Math.max(runs.took[i], 0) < view[0]) continue;
    if (seen.length < 400) seen.push(i);
    if (BAD.has(R.verdicts[runs.verdict[i]]) || (selected && selected.run === i)) findings.push(i);
    else bar(i, false);
  }
  findings.forEach((i) => bar(i, true));
  drawMarks();
  if (seen.length < 150) seen.forEach((i) => arrow(i, 0.7));
  if (selected && selected.run !== undefined) arrow(selected.run, 1);
}
function arrow(i, strength) {
  const runs = R.runs;
  if (runs.wait[i] < 0 || runs.by[i] === NONE) return;
  const from = threadLane.get(runs.by[i]), lane = threadLane.get(runs.thread[i]);
  if (!from || !lane) return;
  const x0 = xOf(runs.begin[i] - runs.wait[i]), x1 = xOf(runs.begin[i]);
  if (x1 < left() || x0 > canvas.clientWidth) return;
  const y0 = from.y + from.height - 4, y1 = middleOf(runs.thread[i], runs.depth[i]);
  pen.globalAlpha = strength;
  pen.strokeStyle = pen.fillStyle = colours.ink;
  pen.beginPath();
  pen.arc(x0, y0, 3, 0, 7);
  pen.stroke();
  const bend = Math.max(Math.min((x1 - x0) / 2, 60), 4);
  pen.beginPath();
  pen.moveTo(x0 + 3, y0);
  pen.bezierCurveTo(x0 + bend, y0, x1 - bend, y1, x1 - 1, y1);
  pen.stroke();
  pen.beginPath();
  pen.moveTo(x1, y1); pen.lineTo(x1 - 6, y1 - 3); pen.lineTo(x1 - 6, y1 + 3);
  pen.closePath();
  pen.fill();
  pen.globalAlpha = 1;
}
function drawMarks() {
  const marks = R.marks, seen = [];
  for (let i = 0; i < marks.length && seen.length <= 1500; i++) {
    if (marks.time[i] > view[1]) break;
    if (marks.time[i] >= view[0]) seen.push(i);
  }
  if (seen.length > 1500) return;
  for (const i of seen) {
    const lane = threadLane.get(marks.thread[i]);
    if (!lane) continue;
    const x = xOf(marks.time[i]), y = lane.y + lane.height - 4, kind = R.kinds[marks.kind[i]];
    pen.strokeStyle = kind === 'call' ? colours['vcpu-poll'] : colours.faint;
    pen.beginPath();
    if (kind === 'schedule') pen.arc(x, y, 2.5, 0, 7);
    else if (kind === 'cancel' || kind === 'delete') {
      pen.moveTo(x - 3, y - 3); pen.lineTo(x + 3, y + 3); pen.moveTo(x + 3, y - 3); pen.lineTo(x - 3, y + 3);
    } else { pen.moveTo(x - 3, y + 3); pen.lineTo(x, y - 3); pen.lineTo(x + 3, y + 3); pen.closePath(); }
    pen.stroke();
  }
}

let asked = false;
function redraw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; draw(); });
}
function look(begin, end) {
  const least = 200, most = R.lasted * 1.04;
  const wide = Math.min(Math.max(end - begin, least), most);
  const middle = (begin + end) / 2;
  const from = Math.min(Math.max(middle - wide / 2, -R.lasted * 0.02), R.lasted * 1.02 - wide);
  view = [from, from + wide];
  redraw();
}
const zoom = (factor, at = (view[0] + view[1]) / 2) =>
  look(at - (at - view[0]) * factor, at + (view[1] - at) * factor);
const move = (part) => look(view[0] + part * (view[1] - view[0]), view[1] + part * (view[1] - view[0]));
const all = () => look(-R.lasted * 0.02, R.lasted * 1.02);

// What is selected.
function facts(pairs) {
  const list = el('dl');
  for (const [name, value] of pairs) {
    if (value !== '' && value !== null && value !== undefined) {
      list.append(el('dt', {textContent: name}), el('dd', {textContent: value}));
    }
  }
  return list;
}
function threadName(thread) {
  if (thread === NONE || !R.threads[thread]) return '';
  const [tid, name, role] = R.threads[thread];
  return `${role || 'thread'} ${name} (tid ${tid})`;
}
const shortName = (thread) => (R.threads[thread] ? `${R.threads[thread][2] || 'thread'} ${R.threads[thread][1]}` : '');
const rowsOf = (rows) => rows.join(', ');
function describe(item) {
  const panel = $('details');
  panel.replaceChildren();
  if (item.run !== undefined) {
    const runs = R.runs, i = item.run;
    const verdict = R.verdicts[runs.verdict[i]] || '';
    panel.append(el('h3', {textContent: R.names[runs.name[i]]}), facts([
      ['verdict', verdict], ['ran on', threadName(runs.thread[i])], ['context', R.contexts[runs.context[i]]],
      ['inside', runs.poll[i] ? 'a nested aio_poll()' : ''],
      ['at', moment(runs.begin[i], 1e3)],
      ['took', runs.took[i] < 0 ? 'its end was not seen' : show(runs.took[i]) + (runs.open[i] ? ' at least: it had not returned' : '')],
      ['waited', runs.wait[i] < 0 ? 'not known' : show(runs.wait[i])],
      ['scheduled by', runs.by[i] === NONE ? 'not known' : threadName(runs.by[i])],
      ['row', `${runs.row[i]} of ${R.path}`],
      ['more', runs.instance[i] < 0 ? '' : `qtrace explain ${R.path} ${runs.instance[i]}`],
    ]));
    const stack = R.stacks[runs.stack[i]];
    panel.append(el('pre', {textContent: stack ? stack.split(';').join('\n<- ') : 'Its stack is not in this file.'}));
  } else {
    const one = item.span;
    panel.append(el('h3', {textContent: one.title || one.name}), facts([
      ['what', one.sentence || ''], ['from', moment(one.begin, 1e3)],
      ['lasted', show(one.end - one.begin) + (one.open ? ' at least: its end was not seen' : '')],
      ['thread', one.tid ? `tid ${one.tid}` : ''], ['rows', one.rows.length ? `${rowsOf(one.rows)} of ${R.path}` : ''],
      ...(one.facts || []).filter(([name]) => name !== 'stack').map(([name, value]) =>
        [name, /^\d+$/.test(value) && name !== 'status' ? `after ${show(Number(value))}` : value]),
      ['more', one.instance === null || one.instance === undefined ? '' : `qtrace explain ${R.path} ${one.instance}`],
    ]));
    const stack = (one.facts || []).find(([name]) => name === 'stack');
    if (stack && stack[1]) panel.append(el('pre', {textContent: stack[1].split(';').reverse().join('\n<- ')}));
  }
}
function select(item) {
  selected = item;
  if (item) describe(item); else $('details').replaceChildren();
  redraw();
}
function goToRun(i, pad = 3) {
  const runs = R.runs, wait = Math.max(runs.wait[i], 0), took = Math.max(runs.took[i], 0);
  const room = Math.max((wait + took) / pad, 2000);
  look(runs.begin[i] - wait - room, runs.begin[i] + took + room);
  select({run: i});
}
function goToFinding(at) {
  const one = R.findings.shown[at];
  if (!one) return;
  current = at;
  const room = Math.max((one.end - one.begin) / 3, 2000);
  look(one.begin - room, one.end + room);
  let run = one.instance === null ? undefined : R.instances.get(one.instance);
  if (run === undefined) run = one.rows.map((row) => R.rows.get(row)).find((found) => found !== undefined);
  select(run === undefined ? {span: {...one, title: `${one.what}: ${one.name}`}} : {run});
  if (run !== undefined) {
    $('details').prepend(el('p', {textContent: `${one.what}: ${one.sentence} (rows ${rowsOf(one.rows)})`}));
  }
  [...$('findings').querySelectorAll('button')].forEach((button, number) =>
    button.setAttribute('aria-current', String(number === at)));
  canvas.scrollIntoView({block: 'nearest'});
  canvas.focus({preventScroll: true});
}
function nextRun(direction) {
  const runs = R.runs;
  if (!runs.length) return;
  let i = selected && selected.run !== undefined ? selected.run : -1;
  const thread = i >= 0 ? runs.thread[i] : -1;
  if (i < 0) {
    // The first that is seen.
    for (i = 0; i < runs.length - 1 && runs.begin[i] < view[0];) i++;
  } else {
    do i += direction; while (i >= 0 && i < runs.length && runs.thread[i] !== thread);
  }
  if (i < 0 || i >= runs.length) return;
  if (runs.begin[i] < view[0] || runs.begin[i] > view[1]) {
    const wide = view[1] - view[0];
    look(runs.begin[i] - wide / 2, runs.begin[i] + wide / 2);
  }
  select({run: i});
}
function hit(x, y) {
  const lane = lanes.find((one) => y >= one.y - labelled() && y < one.y + one.height + GAP / 2);
  if (!lane || x < left()) return null;
  if (lane.kind === 'spans') {
    const row = Math.floor((y - lane.y) / SPAN);
    const at = lane.items.findIndex((item, number) => lane.places[number] === row
      && xOf(item.begin) - 3 <= x && Math.max(xOf(item.end), xOf(item.begin) + 3) + 3 >= x);
    return at < 0 ? null : {span: lane.items[at]};
  }
  if (lane.kind !== 'thread') return null;
  const runs = R.runs, depth = Math.floor((y - lane.y) / LEVEL);
  let best = null, near = 6;
  for (let i = 0; i < runs.length && runs.begin[i] <= view[1]; i++) {
    if (runs.thread[i] !== lane.thread || (runs.depth[i] !== depth && depth <= R.deepest[lane.thread])) continue;
    const x0 = xOf(runs.begin[i]), x1 = xOf(runs.begin[i] + Math.max(runs.took[i], 0));
    const away = x < x0 ? x0 - x : x > x1 ? x - x1 : 0;
    if (away < near || (away === 0 && near === 0)) { best = {run: i}; near = away; }
  }
  return best;
}

// Pointers and keys.
const pointers = new Map();
let dragged = 0, pinch = 0;
canvas.addEventListener('pointerdown', (event) => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event.offsetX);
  dragged = 0;
  pinch = 0;
});
canvas.addEventListener('pointermove', (event) => {
  if (!pointers.has(event.pointerId)) { tip(event); return; }
  const before = pointers.get(event.pointerId), wide = canvas.clientWidth - left();
  pointers.set(event.pointerId, event.offsetX);
  if (pointers.size === 2) {
    const [a, b] = [...pointers.values()], apart = Math.max(Math.abs(a - b), 10);
    if (pinch) zoom(pinch / apart, nsAt((a + b) / 2));
    pinch = apart;
    dragged = 99;
    return;
  }
  dragged += Math.abs(event.offsetX - before);
  const shift = (before - event.offsetX) / wide * (view[1] - view[0]);
  look(view[0] + shift, view[1] + shift);
});
const released = (event) => {
  pointers.delete(event.pointerId);
  if (event.type === 'pointerup' && dragged < 5) select(hit(event.offsetX, event.offsetY));
};
canvas.addEventListener('pointerup', released);
canvas.addEventListener('pointercancel', released);
canvas.addEventListener('pointerleave', () => { $('tip').hidden = true; });
canvas.addEventListener('wheel', (event) => {
  if (event.ctrlKey || event.metaKey || document.activeElement === canvas) {
    event.preventDefault();
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) move((event.deltaX || event.deltaY) / 1000);
    else zoom(Math.exp(event.deltaY / 400), nsAt(event.offsetX));
  }
}, {passive: false});
canvas.addEventListener('dblclick', (event) => zoom(0.25, nsAt(event.offsetX)));
function tip(event) {
  const found = hit(event.offsetX, event.offsetY), box = $('tip');
  box.hidden = !found;
  if (!found) return;
  const runs = R.runs, i = found.run;
  box.textContent = i === undefined
    ? `${found.span.title || found.span.name}\n${show(found.span.end - found.span.begin)}`
    : `${R.names[runs.name[i]]}\n${R.verdicts[runs.verdict[i]] || ''}${runs.took[i] < 0 ? '' : `, took ${show(runs.took[i])}`}`
      + `${runs.wait[i] < 0 ? '' : `, waited ${show(runs.wait[i])}`}\nrow ${runs.row[i]}`;
  box.style.left = `${Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 6)}px`;
  box.style.top = `${Math.min(event.clientY + 16, window.innerHeight - box.offsetHeight - 6)}px`;
}
const KEYS = {
  'ArrowLeft': () => move(-0.2), 'ArrowRight': () => move(0.2),
  '+': () => zoom(0.6), '=': () => zoom(0.6), '-': () => zoom(1 / 0.6), '0': all, 'Home': all,
  'n': () => goToFinding(Math.min(current + 1, R.findings.shown.length - 1)),
  'p': () => goToFinding(Math.max(current - 1, 0)), ']': () => nextRun(1), '[': () => nextRun(-1),
  'Escape': () => select(null),
};
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const onCanvas = document.activeElement === canvas;
  const typing = ['SELECT', 'INPUT'].includes(document.activeElement.tagName);
  if (typing || (!onCanvas && !['n', 'p', '+', '-', '0', ']', '['].includes(event.key))) return;
  if (KEYS[event.key]) { KEYS[event.key](); event.preventDefault(); }
});
for (const [id, action] of Object.entries({
  'zoom-in': () => zoom(0.5), 'zoom-out': () => zoom(2), 'zoom-all': all, 'earlier': () => move(-0.4),
  'later': () => move(0.4), 'previous': () => nextRun(-1), 'next': () => nextRun(1),
})) $(id).addEventListener('click', action);

// The words.
function verdict() {
  const box = $('verdict');
  box.replaceChildren(...D.words.map(([name, sentence]) =>
    el('p', {className: tone(name)}, el('b', {textContent: `${name}:`}), sentence)));
  if (!D.words.length) {
    box.append(el('p', {className: tone(D.verdict)}, el('b', {textContent: `${D.verdict}:`}),
      'no bottom half that was watched was scheduled while the recording ran'));
  }
  if (D.more_words) box.append(el('p', {textContent: `and ${plural(D.more_words, 'more verdict')}: qtrace analyze prints them`}));
  for (const one of D.late_replies) {
    const why = one.waited_for ? `${one.waited_for} ran for ${show(one.ran_ns)} on ${one.role || 'thread'} ${one.thread} first`
      : 'nothing that was recorded ran in between';
    box.append(el('p', {textContent: `${one.command} was done after ${show(one.done_after_ns)} and answered after `
      + `${show(one.replied_after_ns)}${one.count > 1 ? ` (the worst of ${count(one.count)})` : ''}: ${why}`}));
  }
  const notes = [...D.held, ...D.computing,
    ...D.bottom_halves.flatMap((half) => half.notes.map((note) => `${half.name}: ${note}`))];
  for (const note of notes) box.append(el('p', {className: 'warn', textContent: note}));
}
function leftOut() {
  const lines = [];
  const many = D.traces.length + D.more_traces;
  if (D.lost) lines.push(`${plural(D.lost, 'event')} were lost: where the timeline is hatched in red, it does not show all.`);
  if (!D.complete) lines.push('A recording was cut off before its end: what came later is not known.');
  if (D.targets > 1) lines.push(`These ${many} recordings are of ${D.targets} different builds; the verdict is over all of them.`);
  if (D.without_timeline) lines.push(`${plural(D.without_timeline, 'recording')} of ${many} have no timeline here, for want of room: the verdict counts them.`);
  const {runs, moments, of} = R.left_out;
  if (runs) {
    lines.push(`Of ${count(of)} runs ${count(of - runs)} are shown one by one: those around the findings, the longest ones, and `
      + 'those of the beginning. Where it is hatched only how busy each thread was is shown. qtrace export has every one.');
  }
  if (moments) lines.push(`${plural(moments, 'schedule')}, cancels and other moments are not drawn.`);
  for (const [name, what] of [['findings', 'findings'], ['commands', 'QMP commands'], ['jobs', 'jobs'], ['waits', 'waits'], ['losses', 'losses']]) {
    const {of: every, shown} = R[name];
    if (every > shown.length) lines.push(`Of ${count(every)} ${what} ${count(shown.length)} are shown: ${name === 'findings' ? 'some of each kind' : 'the longest'}.`);
  }
  if (R.left_out_names) lines.push(`${plural(R.left_out_names, 'bottom half')} that ran least are not in the table.`);
  for (const text of D.warnings) lines.push(text);
  const box = $('left-out');
  box.hidden = !lines.length;
  box.replaceChildren(...lines.flatMap((line, at) => (at ? [el('br'), line] : [line])));
}
function findings() {
  const list = $('findings');
  list.replaceChildren(...R.findings.shown.map((one, at) => el('li', {},
    el('button', {type: 'button', className: one.verdict ? 'verdict' : '', onclick: () => goToFinding(at)},
      el('span', {className: 'what', textContent: one.what}), one.sentence,
      el('span', {className: 'rows', textContent: ` at ${moment(one.begin, 1e6)}, row${one.rows.length === 1 ? '' : 's'} ${rowsOf(one.rows)}`})))));
  if (!R.findings.shown.length) {
    // That nothing was found says nothing where it could not have been.
    const open = D.lints.filter((one) => one.answers.inconclusive).length;
    list.append(el('li', {textContent: open || D.verdict === 'inconclusive'
      ? `Nothing is proven, which clears nothing: ${plural(open, 'lint')} of ${D.lints.length} cannot tell (see below).`
      : 'None: neither the verdict nor a lint found anything in this recording.'}));
  }
}
function table(place, heads, rows, nothing) {
  if (!rows.length) { $(place).replaceChildren(el('p', {className: 'hint', textContent: nothing})); return; }
  const cell = (value, number, tag) => el(tag, {className: number ? 'number' : ''}, value);
  $(place).replaceChildren(el('table', {},
    el('thead', {}, el('tr', {}, ...heads.map(([name, number]) => cell(name, number, 'th')))),
    el('tbody', {}, ...rows.map((row) => el('tr', {}, ...row.map((value, at) => cell(value, heads[at][1], 'td')))))));
}
const jump = (text, action) => el('button', {type: 'button', textContent: text, onclick: () => {
  action();
  canvas.scrollIntoView({block: 'nearest'});
  canvas.focus({preventScroll: true});
}});
function tables() {
  const runRow = (one) => [jump(one.name, () => {
    const run = R.rows.get(one.row);
    if (run === undefined) look(one.begin - 1e6, one.begin + one.value + 1e6); else goToRun(run);
  }), shortName(one.thread), show(one.value), moment(one.begin, 1e6)];
  const heads = [['bottom half'], ['on'], ['time', true], ['at', true]];
  table('slowest', heads, R.slowest.map(runRow), 'No run with a recorded end.');
  table('longest-waits', heads, R.longest_waits.map(runRow), 'No run whose schedule was recorded.');
  table('slowest-commands', [['command'], ['time', true], ['at', true]], R.slowest_commands.map((one) => [
    jump(one.name, () => {
      const room = Math.max((one.end - one.begin) / 3, 2000);
      look(one.begin - room, one.end + room);
      select({span: one});
    }), show(one.end - one.begin) + (one.open ? ' +' : ''), moment(one.begin, 1e6)]), 'No QMP command was recorded.');
  const figures = (one) => (one ? [show(one.p50_ns), show(one.p99_ns), show(one.max_ns)] : ['', '', '']);
  table('statistics', [['bottom half'], ['context'], ['ran', true], ['waited: median', true], ['99 %', true],
    ['longest', true], ['took: median', true], ['99 %', true], ['longest', true]],
  R.statistics.map((one) => [one.name, one.context, count(one.ran), ...figures(one.wait), ...figures(one.took)]),
  'No bottom half ran in this recording.');
  const words = {finding: 'bad-text', none: 'good-text', inconclusive: 'warn-text'};
  table('lints', [['lint'], ['answer'], ['threshold'], ['why it is open']], D.lints.map((one) => [one.name,
    el('span', {}, ...Object.entries(one.answers).flatMap(([answer, times], at) => [at ? ', ' : '',
      el('span', {className: words[answer] || '', textContent: times > 1 ? `${count(times)} ${answer}` : answer})])),
    one.threshold || '', one.reasons.join('; ')]), 'No lint was asked.');
  const exit = (one) => [one.exit && `the target ended: ${one.exit}`, one.lost && `${plural(one.lost, 'event')} lost`,
    !one.complete && 'cut off', one.silent.length && `never fired: ${one.silent.join(', ')}`].filter(Boolean).join('; ');
  table('environment', [['recording'], ['program'], ['pid', true], ['build id'], ['recorded by'], ['at'], ['']],
    D.traces.map((one) => [one.path, `${one.target.program || 'QEMU'} ${one.target.version || ''}`, one.target.pid || '',
      (one.target.build_id || '').slice(0, 12), one.recorder, one.wall_clock, exit(one)]), 'None.');
  if (D.more_traces) $('environment').append(el('p', {textContent: `and ${plural(D.more_traces, 'more recording')}`}));
}
function legend() {
  const used = new Set(R.runs.verdict);
  $('legend').replaceChildren(...R.verdicts.map((name, at) => [name, at]).filter(([, at]) => used.has(at))
    .map(([name]) => {
      const box = el('i');
      box.style.background = colourOf(name);
      return el('span', {}, box, name);
    }),
  el('span', {textContent: '▁ line below: inside a nested aio_poll()'}), el('span', {textContent: '○→ scheduled, run'}),
  ...(R.windows ? [el('span', {textContent: '▒ how busy'}), el('span', {textContent: '▨ not run by run'})] : []));
}

// How long: the part of runs that took no longer.
const plots = [];
function chart(place, key, curves) {
  const box = $(place);
  box.replaceChildren();
  const own = curves.filter((one) => one[key].length);
  if (!own.length) { box.append(el('p', {className: 'hint', textContent: 'Nothing was recorded of it.'})); return; }
  const joined = uPlot.join(own.map((one) => {
    const highest = new Map();
    one[key].forEach((ns, at) => highest.set(Math.max(ns, 1), at / (one[key].length - 1 || 1) * 100));
    return [[...highest.keys()], [...highest.values()]];
  }));
  const ink = {stroke: colours.faint, grid: {stroke: colours.line, width: 1}, ticks: {stroke: colours.line, width: 1}};
  const kinds = {main: 'main-loop', vcpu: 'vcpu-poll', iothread: 'iothread', worker: 'nested-poll', migration: 'foreign-poll'};
  plots.push(new uPlot({
    width: Math.max(box.clientWidth, 200), height: 220,
    scales: {x: {time: false, distr: 3, log: 10}, y: {range: [0, 100]}},
    series: [{label: 'time', value: (_plot, ns) => (ns === null ? '' : show(ns))},
      ...own.map((one) => ({label: `${one.role} (${count(one.ran)})`, stroke: colours[kinds[one.role]] || colours.other, width: 2,
        spanGaps: true, points: {show: one[key].length < 3 || one[key][0] === one[key].at(-1)},
        value: (_plot, part) => (part === null ? '' : `${part.toFixed(0)} %`)}))],
    // In log scales it labels decades alone, of which there may be one.
    axes: [{...ink, space: 60, filter: (_plot, ticks) => ticks, splits: ticksOf, values: (_plot, ticks) => ticks.map((ns) => (ns === null ? '' : show(ns)))},
      {...ink, size: 56, values: (_plot, ticks) => ticks.map((part) => `${part} %`)}],
  }, joined, box));
}
function ticksOf(plot) {
  const {min, max} = plot.scales.x, found = [], steps = max / min > 2e4 ? [1] : max / min > 300 ? [1, 3] : [1, 2, 5];
  for (let size = 10 ** Math.floor(Math.log10(Math.max(min, 1))); size <= max; size *= 10) {
    for (const one of steps) if (one * size >= min && one * size <= max) found.push(one * size);
  }
  return found;
}
function charts() {
  plots.splice(0).forEach((plot) => plot.destroy());
  const chosen = $('half').value;
  const own = R.curves.filter((one) => `${one.name} in ${one.context}` === chosen);
  chart('waits', 'wait', own);
  chart('durations', 'took', own);
}
function halves() {
  const names = [...new Set(R.curves.map((one) => `${one.name} in ${one.context}`))];
  $('half').replaceChildren(...names.map((name) => el('option', {textContent: short(name, 80), value: name})));
  const judged = R.findings.shown.map((one) => one.name);
  const first = names.find((name) => judged.some((one) => one && name.startsWith(`${one} in `)));
  if (first) $('half').value = first;
  charts();
}
$('half').addEventListener('change', charts);

async function open(at) {
  R = await unpack(D.recordings[at]);
  selected = null;
  current = -1;
  $('details').replaceChildren();
  const target = R.target;
  $('target').textContent = [`${target.program || 'QEMU'} ${target.version || ''}`.trim(), target.pid && `pid ${target.pid}`,
    target.build_id && `build id ${target.build_id.slice(0, 12)}`, R.recorder && `recorded by ${R.recorder}`,
    R.began, `${show(R.lasted)}, ${plural(R.events, 'event')}`, R.path].filter(Boolean).join(' · ');
  readColours();
  leftOut();
  findings();
  layout();
  legend();
  tables();
  halves();
  view = [-R.lasted * 0.02, R.lasted * 1.02];
  draw();
}
function repaint() {
  readColours();
  layout();
  legend();
  charts();
  draw();
}
const dark = window.matchMedia('(prefers-color-scheme: dark)');
dark.addEventListener('change', repaint);
$('theme').addEventListener('click', () => {
  const now = document.documentElement.dataset.theme || (dark.matches ? 'dark' : 'light');
  document.documentElement.dataset.theme = now === 'dark' ? 'light' : 'dark';
  repaint();
});
// Paper is white.
let before = null;
window.addEventListener('beforeprint', () => {
  before = document.documentElement.dataset.theme || '';
  document.documentElement.dataset.theme = 'light';
  repaint();
});
window.addEventListener('afterprint', () => {
  if (before) document.documentElement.dataset.theme = before; else delete document.documentElement.dataset.theme;
  repaint();
});
let wide = 0;
new ResizeObserver(() => {
  if (R && canvas.clientWidth !== wide) { wide = canvas.clientWidth; repaint(); }
}).observe(canvas);

verdict();
$('footer').textContent = `Written by qtrace ${D.version}. This page loads nothing and sends nothing.`;
const ranked = D.recordings.map((one, at) => [one.findings.shown.filter((found) => found.verdict).length, one.findings.of, -at])
  .sort((a, b) => b[0] - a[0] || b[1] - a[1] || b[2] - a[2]);
if (D.recordings.length > 1) {
  $('choose').hidden = false;
  $('recording').append(...D.recordings.map((one, at) => el('option', {value: String(at),
    textContent: `${short(one.path, 80)} (${plural(one.findings.of, 'finding')})`})));
  $('recording').addEventListener('change', () => open(Number($('recording').value)));
}
const first = ranked.length ? -ranked[0][2] : 0;
$('recording').value = String(first);
await open(first);
document.documentElement.dataset.ready = 'yes';
})().catch((error) => {
  document.documentElement.dataset.ready = 'failed';
  const box = document.createElement('p');
  box.className = 'loud';
  box.textContent = `This page cannot be drawn here: ${error}. It needs a browser of 2023 or later.`;
  document.querySelector('main').prepend(box);
  console.error(error);
});

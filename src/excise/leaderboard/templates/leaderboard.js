"use strict";
/* Ranks, filters, sorts and draws what lies in #data. Names are somebody else's: they are only ever
   written as text. The ranking is that of leaderboard/ranking.py, whose head explains it. */
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
const N = D.rows, RESAMPLES = 400, FEW = 10, PAGE = 50;
const ARRAYS = {1: Uint8Array, 2: Uint16Array, 4: Uint32Array};
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const unpack = packed => new ARRAYS[packed.bytes](bytes(packed.base64).buffer);
const coded = column => ({values: column.values, codes: unpack(column.codes)});
const map = (table, f) => Object.fromEntries(Object.entries(table).map(([k, v]) => [k, f(v)]));

const numbers = map(D.numbers, unpack), axes = map(D.axes, coded), words = map(D.words, coded);
const counts = map(D.counts, coded);
const fractions = map(D.fractions, packed => {
  const whole = unpack(packed), found = new Float32Array(N);
  for (let i = 0; i < N; i++) found[i] = whole[i] > D.whole ? NaN : whole[i] / D.whole;
  return found;
});
const amounts = map(D.amounts, text => new Float32Array(bytes(text).buffer));
const figures = {
  der: fractions["der"], acc: fractions["after.acc"], asr: fractions["after.asr"],
  ra: fractions["after.ra"], seconds: amounts.seconds,
  drop: fractions["before.acc"].map((v, i) => v - fractions["after.acc"][i]),
};
const doneCode = words.status.values.indexOf("done");
const isDone = i => words.status.codes[i] === doneCode;
const MEASURES = D.measures, NAMES = D.entrants, E = NAMES.length;
const measure = name => MEASURES.find(m => m.name === name);
const size = array => { let most = -1; for (const v of array) if (v > most) most = v; return most + 1; };
const I = size(numbers.instance), C = size(numbers.cell), V = size(numbers.victim);
const axisNames = Object.keys(axes);
const own = axis => D.by.some(b => axis === b || axis.startsWith(b + "."));

const state = {
  order: D.order, chosen: {}, hidden: new Set(), pick: null, page: 0, open: null,
  board: {key: "rank", down: false}, list: {key: "", down: true}, grid: "der", spc: "der",
};

/* --- words ------------------------------------------------------------------------------- */
const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter(c => c !== null && c !== undefined));
  return node;
};
const percent = v => {
  const text = (100 * v).toFixed(1);
  return text.replace(/^-(?=.*[1-9])/, "\u2212").replace("-", "");
};
const spread = (low, high) => `${percent(low)}\u2013${percent(high)}`;
const time = s => s < 1 ? s.toFixed(2) : s < 100 ? s.toFixed(1) : Math.round(s).toLocaleString("en");
const shown = (name, v) => !Number.isFinite(v) ? "\u2014" : name === "seconds" ? time(v) : percent(v);
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const said = (axis, value) => value === null ? null
  : ["data", "model", "attack", "defense"].includes(axis) ? value
  : axis === "spc" ? `SPC ${value}` : `${axis} ${value}`;
const valueAt = (axis, i) => axes[axis].values[axes[axis].codes[i]];
const cellWords = i => axisNames.filter(a => !own(a) && !["seed", "victim_seed", "victim"].includes(a))
  .map(a => said(a, valueAt(a, i))).filter(Boolean).join(" · ") || "everything";

/* --- ranking ----------------------------------------------------------------------------- */
const STUDENT = [NaN, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201,
  2.179, 2.16, 2.145, 2.131, 2.12, 2.11, 2.101, 2.093, 2.086, 2.08, 2.074, 2.069, 2.064, 2.06,
  2.056, 2.052, 2.048, 2.045, 2.042];
const average = values => values.reduce((a, b) => a + b, 0) / values.length;
const student = values => {
  const n = values.length, mean = average(values);
  if (n < 2) return [NaN, NaN];
  const deviation = Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / (n - 1));
  const half = (n - 1 <= 30 ? STUDENT[n - 1] : 1.96 + 2.4 / (n - 1)) * deviation / Math.sqrt(n);
  return [mean - half, mean + half];
};
const within = (name, [low, high]) => name === "drop" ? [low, high]
  : [Math.max(0, low), name === "seconds" ? high : Math.min(1, high)];
const chance = seed => () => {  // mulberry32: the same drawing for the same choice
  seed = seed + 0x6D2B79F5 | 0;
  let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
  t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
  return ((t ^ t >>> 14) >>> 0) / 4294967296;
};
const places = (values, more) => values.map(v => 1 + values.filter(o => more ? o > v + 1e-9 : o < v - 1e-9).length);
const numbered = (rows, column) => {  // numbers from 0 without gaps
  const seen = new Map(), found = new Uint32Array(rows.length);
  rows.forEach((i, k) => {
    const v = column[i];
    if (!seen.has(v)) seen.set(v, seen.size);
    found[k] = seen.get(v);
  });
  return [found, seen.size];
};

function contest(rows, order, resamples) {
  const attacked = rows.some(i => isDone(i) && Number.isFinite(figures.asr[i]));
  const needed = attacked ? ["acc", "asr", "ra", "der"] : ["acc"];
  const usable = i => isDone(i) && needed.every(name => Number.isFinite(figures[name][i]));
  const there = new Uint8Array(E * I), tried = new Uint8Array(I);
  const covered = new Array(E).fill(0), done = new Array(E).fill(0), failed = new Array(E).fill(0);
  for (const i of rows) {
    const e = numbers.entrant[i], t = numbers.instance[i];
    if (isDone(i)) done[e]++; else failed[e]++;
    if (usable(i)) { covered[e] += 1 - there[e * I + t]; there[e * I + t] = 1; }
    if (usable(i) || !isDone(i)) tried[t] = 1;
  }
  const total = tried.reduce((a, b) => a + b, 0);
  let ranked = NAMES.map((_, e) => e).filter(e => covered[e] >= Math.max(1, D.coverage * total));
  if (!ranked.length) ranked = NAMES.map((_, e) => e).filter(e => covered[e] && covered[e] === Math.max(...covered));
  const common = () => { const s = new Uint8Array(I); for (let t = 0; t < I; t++) s[t] = ranked.length > 0 && ranked.every(e => there[e * I + t]) ? 1 : 0; return s; };
  let shared = common();
  while (ranked.length && !shared.includes(1)) {
    const least = ranked.reduce((a, b) => covered[b] <= covered[a] ? b : a);
    ranked = ranked.filter(e => e !== least);
    shared = common();
  }
  const isRanked = new Uint8Array(E);
  ranked.forEach(e => { isRanked[e] = 1; });
  const kept = rows.filter(i => isRanked[numbers.entrant[i]] && shared[numbers.instance[i]] && usable(i));
  const result = standings(kept, ranked, order, resamples);
  const rest = NAMES.map((_, e) => e).filter(e => !isRanked[e] && done[e] + failed[e]);
  const standing = (e, more) => ({name: NAMES[e], e, done: done[e], failed: failed[e], covered: covered[e], ...more});
  return {
    standings: [...ranked.map(e => standing(e, result.of[e])).sort((a, b) => a.rank - b.rank || a.e - b.e),
      ...rest.map(e => standing(e, {rank: null, figures: {}, rank_shares: [], kept: null}))],
    references: result.references, instances: total, shared: shared.reduce((a, b) => a + b, 0),
    victims: result.victims, cells: result.cells, resamples, rows: kept,
  };
}

function standings(rows, ranked, order, resamples) {
  const R = ranked.length, at = new Int32Array(E).fill(-1), of = {};
  ranked.forEach((e, r) => { at[e] = r; });
  const [victim, victims] = numbered(rows, numbers.victim), [cell, cells] = numbered(rows, numbers.cell);
  const r = rows.map(i => at[numbers.entrant[i]]);
  const measures = MEASURES.filter(m => rows.length && rows.every(i => Number.isFinite(figures[m.name][i])));
  ranked.forEach(e => { of[e] = {rank: null, figures: {}, rank_shares: [], kept: null}; });
  const perVictim = {}, drawn = {};
  const counted = new Float64Array(R * victims);
  rows.forEach((_, k) => { counted[r[k] * victims + victim[k]]++; });
  for (const m of measures) {
    const values = figures[m.name], sums = new Float64Array(R * victims);
    const cellSum = new Float64Array(R * cells), cellCount = new Float64Array(R * cells);
    rows.forEach((i, k) => {
      sums[r[k] * victims + victim[k]] += values[i];
      cellSum[r[k] * cells + cell[k]] += values[i];
      cellCount[r[k] * cells + cell[k]]++;
    });
    perVictim[m.name] = sums;
    drawn[m.name] = Array.from({length: R}, () => new Float64Array(resamples));
    const worstCell = [];
    ranked.forEach((e, q) => {
      let total = 0, n = 0, worst = NaN, which = -1;
      for (let v = 0; v < victims; v++) { total += sums[q * victims + v]; n += counted[q * victims + v]; }
      for (let c = 0; c < cells; c++) {
        const mean = cellSum[q * cells + c] / cellCount[q * cells + c];
        if (Number.isFinite(mean) && !(m.more ? mean >= worst : mean <= worst)) { worst = mean; which = c; }
      }
      worstCell.push(which);
      of[e].figures[m.name] = {mean: total / n, worst, low: null, high: null, victims: new Map(), worst_low: null, worst_high: null};
    });
    rows.forEach((i, k) => {
      if (cell[k] !== worstCell[r[k]]) return;
      const figure = of[ranked[r[k]]].figures[m.name];
      if (!figure.victims.has(victim[k])) figure.victims.set(victim[k], []);
      figure.victims.get(victim[k]).push(values[i]);
      figure.worst_cell_id = numbers.cell[i];
      figure.worst_cell = figure.worst_cell || cellWords(i);
    });
    for (const e of ranked) {
      const figure = of[e].figures[m.name];
      const each = [...figure.victims.values()].map(average), shift = figure.worst - average(each);
      [figure.worst_low, figure.worst_high] = within(m.name, student(each).map(end => end + shift));
    }
  }
  const random = chance(rows.length), shares = Array.from({length: R}, () => new Float64Array(R));
  const name = order.replace(/^worst-/, ""), decisive = measures.find(m => m.name === name) || measures.find(m => m.name === "acc");
  const byWorst = order.startsWith("worst-");
  for (let b = 0; b < resamples && victims > 1; b++) {
    const weight = new Float64Array(victims);
    for (let v = 0; v < victims; v++) weight[Math.floor(random() * victims)]++;
    for (let q = 0; q < R; q++) {
      let n = 0;
      for (let v = 0; v < victims; v++) n += weight[v] * counted[q * victims + v];
      for (const m of measures) {
        const sums = perVictim[m.name];
        let total = 0;
        for (let v = 0; v < victims; v++) total += weight[v] * sums[q * victims + v];
        drawn[m.name][q][b] = total / n;
      }
    }
    let values = ranked.map((_, q) => drawn[decisive.name][q][b]);
    if (byWorst) {
      const sum = new Float64Array(R * cells), n = new Float64Array(R * cells), column = figures[decisive.name];
      for (let k = 0; k < rows.length; k++) {
        const w = weight[victim[k]];
        if (w) { sum[r[k] * cells + cell[k]] += w * column[rows[k]]; n[r[k] * cells + cell[k]] += w; }
      }
      values = ranked.map((_, q) => {
        let worst = NaN;
        for (let c = 0; c < cells; c++) {
          const mean = sum[q * cells + c] / n[q * cells + c];
          if (mean === mean && !(decisive.more ? mean >= worst : mean <= worst)) worst = mean;
        }
        return worst;
      });
    }
    places(values, decisive.more).forEach((place, q) => { shares[q][place - 1] += 1 / resamples; });
  }
  for (const m of measures) {
    ranked.forEach((e, q) => {
      const figure = of[e].figures[m.name];
      if (victims >= FEW) {
        const sorted = drawn[m.name][q].sort();
        figure.low = sorted[Math.round(0.025 * (resamples - 1))];
        figure.high = sorted[Math.round(0.975 * (resamples - 1))];
      } else if (victims > 1) {
        const each = Array.from({length: victims}, (_, v) => perVictim[m.name][q * victims + v] / counted[q * victims + v]);
        const shift = figure.mean - each.reduce((a, b) => a + b, 0) / victims;
        [figure.low, figure.high] = within(m.name, student(each).map(end => end + shift));
      }
    });
  }
  if (decisive) {
    const values = ranked.map(e => of[e].figures[decisive.name][byWorst ? "worst" : "mean"]);
    places(values, decisive.more).forEach((place, q) => {
      Object.assign(of[ranked[q]], {
        rank: place, rank_shares: victims > 1 ? [...shares[q]] : [],
        kept: victims > 1 ? shares[q][place - 1] : null,
      });
    });
  }
  return {of, victims, cells, references: references(rows)};
}

function references(rows) {
  const found = {};
  for (const part of ["before", "floor"]) for (const name of ["acc", "asr", "ra"]) {
    const column = fractions[`${part}.${name}`], total = rows.reduce((a, i) => a + column[i], 0);
    if (rows.length && Number.isFinite(total)) (found[part] ||= {})[name] = total / rows.length;
  }
  return found;
}

/* --- what is chosen ---------------------------------------------------------------------- */
const isChosen = i => {
  if (state.hidden.has(numbers.entrant[i])) return false;
  for (const axis in state.chosen) if (axes[axis].codes[i] !== state.chosen[axis]) return false;
  return true;
};
const all = Array.from({length: N}, (_, i) => i);
let rows = all, current = null;

function choose() {
  const plain = !Object.keys(state.chosen).length && !state.hidden.size;
  rows = plain ? all : all.filter(isChosen);
  const known = plain && state.order === D.order;  // the very figures of the other outputs
  current = contest(rows, state.order, known ? 0 : Math.min(RESAMPLES, Math.max(100, Math.round(2e7 / rows.length))));
  if (known) {
    const told = new Map(D.ranking.standings.map(s => [s.name, s]));
    for (const s of current.standings) {
      const better = told.get(s.name);
      for (const name in s.figures) if (better && better.figures[name]) Object.assign(s.figures[name], better.figures[name]);
      if (better) Object.assign(s, {rank: better.rank, rank_shares: better.rank_shares, kept: better.kept});
    }
    current.resamples = D.ranking.resamples;
  }
  state.page = 0;
  const link = new URLSearchParams();
  if (state.order !== D.order) link.set("order", state.order);
  for (const axis in state.chosen) link.set(`is.${axis}`, axes[axis].values[state.chosen[axis]] ?? "");
  for (const e of state.hidden) link.append("without", NAMES[e]);
  const hash = link.toString();
  if (hash !== location.hash.slice(1) && (hash || location.hash.includes("="))) history.replaceState(null, "", "#" + hash);
  drawAll();
}

function fromLink() {
  const link = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  const order = document.getElementById("order");
  if ([...order.options].some(o => o.value === link.get("order"))) state.order = link.get("order");
  order.value = state.order;
  for (const axis of axisNames) {
    const value = axes[axis].values.indexOf(link.get(`is.${axis}`));
    if (link.has(`is.${axis}`) && value > 0) state.chosen[axis] = value;
  }
  for (const name of link.getAll("without")) if (NAMES.includes(name)) state.hidden.add(NAMES.indexOf(name));
}

function drawFilters() {
  const place = document.querySelector(".choices");
  place.replaceChildren();
  const natural = new Intl.Collator("en", {numeric: true});
  for (const axis of axisNames) {
    const {values, codes} = axes[axis];
    if (own(axis) || values.length > 200) continue;
    const present = new Set(codes);
    const choices = values.map((value, code) => [value, code]).filter(([value, code]) => value !== null && present.has(code));
    choices.sort((a, b) => a[0] - b[0] || natural.compare(a[0], b[0]));
    const select = el("select", {"data-axis": axis, onchange: event => {
      if (event.target.value === "") delete state.chosen[axis]; else state.chosen[axis] = Number(event.target.value);
      choose();
    }}, el("option", {value: ""}, "all"), ...choices.map(([value, code]) => el("option", {value: code}, value)));
    if (axis in state.chosen) select.value = state.chosen[axis];
    place.append(el("label", {}, el("span", {}, axis), select));
  }
  const boxes = el("div", {class: "boxes"}, ...NAMES.map((name, e) => el("label", {},
    el("input", {type: "checkbox", checked: !state.hidden.has(e), onchange: event => {
      if (event.target.checked) state.hidden.delete(e); else state.hidden.add(e);
      choose();
    }}), " ", name)));
  place.append(el("details", {}, el("summary", {}, `Which of the ${E} take part`), boxes));
}

/* --- ranking ----------------------------------------------------------------------------- */
const sorter = (table, key, label, first) => el("th", {
  scope: "col", "aria-sort": table.key === key ? (table.down ? "descending" : "ascending") : null,
}, el("button", {type: "button", "data-key": key, onclick: () => {
  table.down = table.key === key ? !table.down : first;
  table.key = key;
  if (table === state.board) drawBoard(); else { state.page = 0; drawList(); }
  // The table was drawn anew: stay where the reader is.
  document.querySelector(`${table === state.board ? ".board" : ".list"} button[data-key="${CSS.escape(key)}"]`).focus();
}}, label));

const sortValue = (s, key) => key === "rank" ? s.rank ?? Infinity : key === "name" ? s.name
  : key === "kept" ? s.kept ?? -1 : key === "runs" ? s.covered : s.figures[key]?.mean ?? NaN;
const compare = (a, b) => typeof a === "string" ? a.localeCompare(b, "en", {numeric: true})
  : Number.isNaN(a) ? (Number.isNaN(b) ? 0 : 1) : Number.isNaN(b) ? -1 : a - b;

function drawBoard() {
  const decides = state.order.replace(/^worst-/, "");
  const head = el("tr", {}, sorter(state.board, "rank", "#", false), sorter(state.board, "name", D.by.join(" · "), false),
    ...["der", "acc", "asr", "ra"].map(name => {
      const m = measure(name);
      return sorter(state.board, name, `${m.label}, ${m.more ? "higher" : "lower"} is better`, m.more);
    }), sorter(state.board, "kept", "stable", true), sorter(state.board, "runs", "runs", true),
    sorter(state.board, "seconds", "seconds", false));
  ["DER", "ACC", "ASR", "RA"].forEach((label, i) => {
    const button = head.children[i + 2].firstChild;
    button.textContent = label;
    button.setAttribute("title", measure(label.toLowerCase()).more ? "higher is better" : "lower is better");
  });
  const list = [...current.standings].sort((a, b) => {
    const [x, y] = [sortValue(a, state.board.key), sortValue(b, state.board.key)];
    const way = compare(x, y);
    return (Number.isNaN(x) || Number.isNaN(y) ? way : state.board.down ? -way : way) || (a.rank ?? Infinity) - (b.rank ?? Infinity) || a.e - b.e;
  });
  const body = el("tbody", {}, ...list.map(s => el("tr", {class: s.rank === null ? "unranked" : null},
    el("td", {}, el("span", {class: "place"}, s.rank === null ? "\u2014" : String(s.rank))),
    el("th", {scope: "row"}, el("button", {type: "button", class: "link", title: "Show its runs", onclick: () => pick({e: s.e})}, s.name)),
    ...["der", "acc", "asr", "ra"].map(name => figureCell(s, name, name === decides)),
    stableCell(s),
    el("td", {}, el("span", {class: "value"}, `${s.covered.toLocaleString("en")} of ${current.instances.toLocaleString("en")}`),
      s.failed ? el("span", {class: "spread"}, `${s.failed.toLocaleString("en")} failed`) : null,
      s.rank === null ? el("span", {class: "spread"}, "too few to rank") : null),
    el("td", {class: decides === "seconds" ? "decides" : null}, el("span", {class: "value"}, shown("seconds", s.figures.seconds?.mean ?? NaN))))));
  const foot = el("tfoot", {}, ...Object.entries(current.references).map(([part, means]) => el("tr", {}, el("td"),
    el("th", {scope: "row"}, part === "before" ? "before any repair" : "clean twin"),
    ...["der", "acc", "asr", "ra"].map(name => el("td", {}, name in means ? percent(means[name]) : "")), el("td"), el("td"), el("td"))));
  document.querySelector(".board").replaceChildren(el("thead", {}, head), body, foot);
  const rankedCount = current.standings.filter(s => s.rank !== null).length;
  const plain = rows.length === N;
  document.getElementById("said").textContent = `${plain ? "All " : ""}${count(rows.length, "run")}${plain ? "" : ` of ${N.toLocaleString("en")}`}; `
    + (rankedCount ? `ranked on ${current.shared.toLocaleString("en")} of ${count(current.instances, "setting")}: those that all ${rankedCount} ranked finished; ${count(current.victims, "victim")}, ${count(current.cells, "cell")}.`
      : "none of them can be ranked.");
  document.getElementById("reset").hidden = plain;
  document.getElementById("method").textContent = current.victims > 1
    ? `Intervals (95 %): ${current.victims >= FEW ? `${current.resamples.toLocaleString("en")} bootstrap resamples of the ${count(current.victims, "victim")}` : `Student’s t over ${current.victims} victims, few as they are`}. Stable: share of ${current.resamples.toLocaleString("en")} resamples of victims in which the rank stays.`
    : "At most one victim: no interval, and no saying how stable the ranks are.";
}

function figureCell(s, name, decides) {
  const figure = s.figures[name];
  if (!figure) return el("td", {class: decides ? "decides" : null}, el("span", {class: "missing"}, "\u2014"));
  return el("td", {class: decides ? "decides" : null},
    el("span", {class: "value"}, percent(figure.mean)),
    Number.isFinite(figure.low) && figure.low !== null ? el("span", {class: "spread"}, spread(figure.low, figure.high)) : null,
    el("button", {type: "button", class: "link", title: `Worst: ${figure.worst_cell}. Show its runs`,
      onclick: () => pick({e: s.e, cell: figure.worst_cell_id, words: figure.worst_cell})}, `worst ${percent(figure.worst)}`));
}

function stableCell(s) {
  if (s.kept === null) return el("td", {}, el("span", {class: "missing"}, "\u2014"));
  const order = s.rank_shares.map((share, i) => [share, i + 1]).filter(([share]) => share > 0).sort((a, b) => b[0] - a[0]);
  const inside = [];
  let sum = 0;
  for (const [share, place] of order) { if (sum >= 0.95) break; inside.push(place); sum += share; }
  const low = Math.min(...inside), high = Math.max(...inside);
  const each = order.slice(0, 5).map(([share, place]) => `rank ${place} in ${Math.round(100 * share)} %`).join(", ");
  const bar = el("span", {class: "chances", "aria-hidden": "true"}, el("span"));
  bar.firstChild.style.width = `${100 * s.kept}%`;
  return el("td", {title: each}, el("span", {class: "value"}, `${Math.round(100 * s.kept)} %`), bar,
    el("span", {class: "spread"}, low === high ? `rank ${low}` : `ranks ${low}\u2013${high}`));
}

/* --- drawings ---------------------------------------------------------------------------- */
const svg = (tag, attributes = {}, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const short = (text, most = 26) => text.length > most ? text.slice(0, most - 1) + "…" : text;
const color = rank => rank <= 8 ? `s${rank - 1}` : "rest";
const ranked = () => current.standings.filter(s => s.rank !== null);
let drawings = 0;
const sheet = (place, height, title, words) => {
  const width = Math.max(260, place.clientWidth), id = `drawing-${drawings++}`;
  const drawing = svg("svg", {viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-labelledby": `${id}-t ${id}-d`},
    svg("title", {id: `${id}-t`}, title), svg("desc", {id: `${id}-d`}, words));
  return [drawing, width];
};
const steps = (low, high, most) => {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(k => k * power).find(k => k >= rough) || power * 10, found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
  return found;
};

function scatter(place, title, x, y, log) {
  const points = ranked().filter(s => s.figures[x]?.mean !== undefined && s.figures[y] && Number.isFinite(s.figures[x].mean) && (!log || s.figures[x].mean > 0));
  if (!points.length) { place.replaceChildren(el("p", {class: "aside"}, "Not measured.")); return; }
  const best = points.map(s => `${s.rank}. ${s.name}: ${measure(x).label} ${shown(x, s.figures[x].mean)}, ${measure(y).label} ${shown(y, s.figures[y].mean)}`);
  const [drawing, width] = sheet(place, 340, title, best.slice(0, 30).join("; "));
  const box = {left: 46, right: width - 12, top: 12, bottom: 296};
  const ends = (name, s) => [s.figures[name].mean, s.figures[name].low, s.figures[name].high].filter(v => v !== null && Number.isFinite(v));
  const range = name => { const v = points.flatMap(s => ends(name, s)); return [Math.min(...v), Math.max(...v)]; };
  const wide = ([low, high]) => { const more = 0.06 * (high - low) || 0.02; return [low - more, high + more]; };
  const means = points.map(s => s.figures[x].mean);
  const [x0, x1] = log ? [Math.log10(Math.min(...means)) - 0.15, Math.log10(Math.max(...means)) + 0.15] : wide(range(x));
  const [y0, y1] = wide(range(y));
  const px = v => box.left + ((log ? Math.log10(v) : v) - x0) / (x1 - x0) * (box.right - box.left);
  const py = v => box.bottom - (v - y0) / (y1 - y0) * (box.bottom - box.top);
  for (const v of steps(y0, y1, 5)) drawing.append(svg("line", {class: "guide", x1: box.left, x2: box.right, y1: py(v), y2: py(v)}),
    svg("text", {x: box.left - 7, y: py(v) + 4, "text-anchor": "end"}, String(Math.round(1000 * v) / 10)));
  // Of few decades 1, 2 and 5 of each are marked, of many the decades alone.
  const decades = (...marks) => Array.from({length: 12}, (_, k) => k - 3).flatMap(k => marks.map(m => m * 10 ** k))
    .filter(v => Math.log10(v) >= x0 && Math.log10(v) <= x1);
  const scale = !log ? steps(x0, x1, Math.max(3, width / 110)) : decades(1).length > 3 ? decades(1) : decades(1, 2, 5);
  for (const v of scale) drawing.append(svg("line", {class: "guide", x1: px(v), x2: px(v), y1: box.top, y2: box.bottom}),
    svg("text", {x: px(v), y: box.bottom + 17, "text-anchor": "middle"}, log ? String(Number(v.toPrecision(2))) : String(Math.round(1000 * v) / 10)));
  drawing.append(svg("text", {x: (box.left + box.right) / 2, y: 334, "text-anchor": "middle"}, x === "drop" ? "accuracy lost (points)" : "seconds"),
    svg("text", {x: 12, y: (box.top + box.bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(box.top + box.bottom) / 2})`}, `${measure(y).label} (%)`));
  const taken = points.map(s => [px(s.figures[x].mean) - 10, py(s.figures[y].mean) - 10, 20, 20]);
  for (const s of points) {
    const css = color(s.rank), cx = px(s.figures[x].mean), cy = py(s.figures[y].mean), f = s.figures;
    if (Number.isFinite(f[y].low) && f[y].low !== null) drawing.append(svg("line", {class: `whisker ${css}`, x1: cx, x2: cx, y1: py(f[y].low), y2: py(f[y].high)}));
    if (!log && Number.isFinite(f[x].low) && f[x].low !== null) drawing.append(svg("line", {class: `whisker ${css}`, x1: px(f[x].low), x2: px(f[x].high), y1: cy, y2: cy}));
  }
  for (const s of [...points].reverse()) {
    const cx = px(s.figures[x].mean), cy = py(s.figures[y].mean);
    drawing.append(svg("g", {class: color(s.rank)}, svg("title", {}, `${s.rank}. ${s.name}`), svg("circle", {class: "dot", cx, cy, r: 9.5}),
      svg("text", {class: "number", x: cx, y: cy + 4, "text-anchor": "middle"}, String(s.rank))));
  }
  for (const s of points) {
    const cx = px(s.figures[x].mean), cy = py(s.figures[y].mean), name = short(s.name), long = 7 * name.length;
    const spots = [[cx + 13, cy + 4, "start", cx + 12], [cx - 13, cy + 4, "end", cx - 13 - long], [cx, cy - 14, "middle", cx - long / 2], [cx, cy + 23, "middle", cx - long / 2]];
    const spot = spots.find(([, ty, , left]) => left > box.left && left + long < box.right && ty - 11 > box.top && ty < box.bottom
      && !taken.some(([l, t, w, h]) => left < l + w && l < left + long && ty - 11 < t + h && t < ty + 3));
    if (!spot) continue;
    taken.push([spot[3], spot[1] - 11, long, 14]);
    drawing.append(svg("text", {class: "name", x: spot[0], y: spot[1], "text-anchor": spot[2]}, name));
  }
  place.replaceChildren(drawing);
}

function drawBudgets() {
  const place = document.getElementById("plot-spc");
  if (!place || !axes.spc) return;
  const name = state.spc, column = figures[name], {values, codes} = axes.spc;
  const list = ranked();
  const budgets = [...new Set(current.rows.map(i => codes[i]))].filter(c => values[c] !== null)
    .sort((a, b) => (values[a] === "all") - (values[b] === "all") || values[a] - values[b]);
  const at = new Map(list.map((s, k) => [s.e, k]));
  const sums = list.map(() => budgets.map(() => [0, 0]));
  for (const i of current.rows) {
    const k = at.get(numbers.entrant[i]), b = budgets.indexOf(codes[i]);
    if (k !== undefined && b >= 0 && Number.isFinite(column[i])) { sums[k][b][0] += column[i]; sums[k][b][1]++; }
  }
  const means = sums.map(row => row.map(([total, n]) => n ? total / n : NaN));
  const known = means.flat().filter(Number.isFinite);
  if (budgets.length < 2 || !known.length) { place.replaceChildren(el("p", {class: "aside"}, "One budget only: nothing to compare.")); return; }
  const told = list.map((s, k) => `${s.name}: ${budgets.map((b, j) => `${shown(name, means[k][j])} at SPC ${values[b]}`).join(", ")}`);
  const [drawing, width] = sheet(place, 360, `${measure(name).label} by SPC`, told.slice(0, 30).join("; "));
  const labels = Math.min(190, width * 0.36), box = {left: 46, right: width - labels, top: 12, bottom: 316};
  const more = 0.06 * (Math.max(...known) - Math.min(...known)) || 0.02, y0 = Math.min(...known) - more, y1 = Math.max(...known) + more;
  const px = j => box.left + 14 + j / (budgets.length - 1) * (box.right - box.left - 28);
  const py = v => box.bottom - (v - y0) / (y1 - y0) * (box.bottom - box.top);
  for (const v of steps(y0, y1, 5)) drawing.append(svg("line", {class: "guide", x1: box.left, x2: box.right, y1: py(v), y2: py(v)}),
    svg("text", {x: box.left - 7, y: py(v) + 4, "text-anchor": "end"}, name === "seconds" ? time(v) : String(Math.round(1000 * v) / 10)));
  budgets.forEach((b, j) => drawing.append(svg("text", {x: px(j), y: box.bottom + 18, "text-anchor": "middle"}, `SPC ${values[b]}`)));
  const ends = [];
  [...list.keys()].reverse().forEach(k => {
    const s = list[k], css = color(s.rank), path = means[k].map((v, j) => Number.isFinite(v) ? [px(j), py(v)] : null).filter(Boolean);
    if (!path.length) return;
    drawing.append(svg("polyline", {class: `line ${css}`, points: path.map(p => p.join(",")).join(" ")}, svg("title", {}, s.name)));
    for (const [x, y] of path) drawing.append(svg("circle", {class: `dot ${css}`, cx: x, cy: y, r: css === "rest" ? 2.5 : 4}));
    if (css !== "rest") ends.push([path.at(-1)[1], s, path.at(-1)]);
  });
  ends.sort((a, b) => a[0] - b[0]);
  let last = -Infinity;
  const heights = ends.map(([y]) => (last = Math.max(y, last + 16)));
  const over = Math.max(0, (heights.at(-1) ?? 0) - box.bottom);
  ends.forEach(([, s, [x, y]], k) => {
    const ty = heights[k] - over * (k + 1) / ends.length;
    drawing.append(svg("line", {class: `whisker ${color(s.rank)}`, x1: x + 6, y1: y, x2: box.right + 6, y2: ty}),
      svg("text", {class: "name", x: box.right + 10, y: ty + 4}, short(`${s.rank}. ${s.name}`, Math.floor(labels / 7.4))));
  });
  place.replaceChildren(drawing);
}

/* --- attack by attack -------------------------------------------------------------------- */
function drawGrid() {
  const name = state.grid, column = figures[name], table = document.querySelector(".heat-table");
  const attack = axes.attack && !own("attack") ? axes.attack : null;
  const values = attack ? attack.values : [null, "all runs"], code = i => attack ? attack.codes[i] : 1;
  const sums = new Map();
  for (const i of rows) {
    if (!isDone(i) || !Number.isFinite(column[i])) continue;
    const key = numbers.entrant[i] * values.length + code(i), cell = sums.get(key) || [0, 0];
    cell[0] += column[i]; cell[1]++;
    sums.set(key, cell);
  }
  const columns = values.map((_, c) => c).filter(c => values[c] !== null && NAMES.some((_, e) => sums.has(e * values.length + c)))
    .sort((a, b) => values[a].localeCompare(values[b], "en", {numeric: true}));
  const most = new Map(columns.map(c => [c, Math.max(...NAMES.map((_, e) => sums.get(e * values.length + c)?.[1] ?? 0))]));
  const means = [...sums.values()].map(([total, n]) => total / n);
  const low = name === "seconds" || name === "drop" ? Math.min(...means) : 0, high = name === "seconds" || name === "drop" ? Math.max(...means) : 1;
  const head = el("tr", {}, el("th", {scope: "col"}, D.by.join(" · ")), ...columns.map(c => el("th", {scope: "col"}, values[c])));
  const body = current.standings.map(s => el("tr", {}, el("th", {scope: "row"}, (s.rank === null ? "\u2014 " : `${s.rank}. `) + s.name), ...columns.map(c => {
    const cell = sums.get(s.e * values.length + c);
    if (!cell) return el("td", {class: "missing"}, "not run");
    const mean = cell[0] / cell[1], fewer = cell[1] < most.get(c);
    const button = el("button", {type: "button", class: (measure(name).more ? "up" : "down") + (fewer ? " fewer" : ""),
      title: `${s.name}, ${values[c]}: ${count(cell[1], "run")}${fewer ? `, others up to ${most.get(c).toLocaleString("en")}` : ""}`,
      onclick: () => pick({e: s.e, attack: attack ? c : undefined, words: values[c]})}, shown(name, mean));
    button.style.setProperty("--v", `${(100 * Math.min(1, Math.max(0, (mean - low) / (high - low || 1)))).toFixed(1)}%`);
    return el("td", {}, button);
  })));
  table.replaceChildren(el("thead", {}, head), el("tbody", {}, ...body));
}

/* --- runs -------------------------------------------------------------------------------- */
const HEX = "0123456789abcdef";
const keys = D.records.keys ? bytes(D.records.keys) : null;
const path = i => {
  if (!keys) return D.records.paths[i];
  let key = "";
  for (let k = 12 * i; k < 12 * i + 12; k++) key += HEX[keys[k] >> 4] + HEX[keys[k] & 15];
  return `records/${key.slice(0, 2)}/${key}.json`;
};
const linkTo = i => D.records.base === null ? null : `${D.records.base}/${path(i)}`.split("/").map(part => part === ".." || part === "." ? part : encodeURIComponent(part)).join("/");
const listAxes = axisNames.filter(a => !own(a)).slice(0, 8);

function pick(what) {
  state.pick = what; state.page = 0; state.open = null;
  drawList();
  const place = document.getElementById("runs");
  place.scrollIntoView();
  place.focus({preventScroll: true});
}

function listed() {
  const p = state.pick;
  return p === null ? rows : rows.filter(i => numbers.entrant[i] === p.e && (p.cell === undefined || numbers.cell[i] === p.cell)
    && (p.attack === undefined || axes.attack.codes[i] === p.attack));
}

let sorted = {};
function order() {
  const {key, down} = state.list, sign = down ? -1 : 1, list = listed();
  if (sorted.list === list && sorted.key === key && sorted.down === down) return sorted.rows;
  let result = list;
  if (key !== "") {
    let value;
    if (key === "name") value = i => numbers.entrant[i];
    else if (key in figures) value = i => figures[key][i];
    else {
      const column = axes[key], place = new Int32Array(column.values.length);
      const natural = new Intl.Collator("en", {numeric: true});
      column.values.map((v, c) => [v, c]).sort((a, b) => a[0] === null ? -1 : b[0] === null ? 1 : a[0] - b[0] || natural.compare(a[0], b[0]))
        .forEach(([, c], k) => { place[c] = k; });
      value = i => place[column.codes[i]];
    }
    const column = new Float64Array(N);
    for (const i of list) { const v = value(i); column[i] = Number.isFinite(v) ? sign * v : Infinity; }
    result = [...list].sort((a, b) => column[a] < column[b] ? -1 : column[a] > column[b] ? 1 : a - b);
  }
  sorted = {list: state.pick === null ? list : null, key, down, rows: result};
  return result;
}

function drawList() {
  const list = order(), pages = Math.max(1, Math.ceil(list.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  const here = list.slice(state.page * PAGE, (state.page + 1) * PAGE);
  const head = el("tr", {}, sorter(state.list, "name", D.by.join(" · "), false), ...listAxes.map(a => sorter(state.list, a, a, false)),
    ...MEASURES.filter(m => m.name !== "drop").map(m => sorter(state.list, m.name, m.label, m.more)), el("th", {scope: "col"}, "record"));
  [...head.children].slice(0, 1 + listAxes.length).forEach(th => { th.className = "word"; });
  const width = head.children.length, body = el("tbody");
  for (const i of here) {
    const open = state.open === i, href = linkTo(i);
    const names = el("button", {type: "button", class: "link", "aria-expanded": String(open), "data-run": i, onclick: () => {
      state.open = open ? null : i;
      drawList();
      document.querySelector(`[data-run="${i}"]`).focus();
    }}, NAMES[numbers.entrant[i]]);
    body.append(el("tr", {}, el("td", {class: "word"}, names), ...listAxes.map(a => el("td", {class: "word"}, valueAt(a, i) ?? "")),
      ...(isDone(i) ? MEASURES.filter(m => m.name !== "drop").map(m => el("td", {}, shown(m.name, figures[m.name][i])))
        : [el("td", {class: "failed", colspan: MEASURES.length - 1}, "failed")]),
      el("td", {}, href === null ? "" : el("a", {href, "aria-label": `record of ${NAMES[numbers.entrant[i]]}, ${cellWords(i)}`}, "JSON"))));
    if (open) body.append(el("tr", {}, el("td", {class: "more", colspan: width}, essentials(i))));
  }
  document.querySelector(".list").replaceChildren(el("thead", {}, head), body);
  document.getElementById("where").textContent = list.length ? `${(state.page * PAGE + 1).toLocaleString("en")}\u2013${(state.page * PAGE + here.length).toLocaleString("en")} of ${count(list.length, "run")}` : "no runs";
  document.getElementById("previous").disabled = state.page === 0;
  document.getElementById("next").disabled = state.page >= pages - 1;
  const picked = document.getElementById("picked");
  picked.replaceChildren(state.pick === null ? "Every chosen run. Press a name for what its record holds in essence."
    : `Runs of ${NAMES[state.pick.e]}${state.pick.words ? `, ${state.pick.words}` : ""}.`);
  if (state.pick !== null) picked.append(el("button", {type: "button", onclick: () => { state.pick = null; state.page = 0; drawList(); }}, "Show all runs"));
}

const wilson = (p, n) => {
  const z = 1.959964, middle = (p + z * z / (2 * n)) / (1 + z * z / n), half = z / (1 + z * z / n) * Math.sqrt(p * (1 - p) / n + z * z / (4 * n * n));
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
};

function essentials(i) {
  const text = name => words[name].values[words[name].codes[i]], found = [];
  const rate = (name, images) => {
    const [before, after, floor] = ["before", "after", "floor"].map(part => fractions[`${part}.${name}`]?.[i] ?? NaN);
    if (!Number.isFinite(after)) return;
    const n = Number(counts[images].values[counts[images].codes[i]] ?? 0);
    const parts = [percent(after) + (n ? ` (${spread(...wilson(after, n))}; ${n.toLocaleString("en")} images)` : "")];
    if (Number.isFinite(before)) parts.push(`before ${percent(before)}`);
    if (Number.isFinite(floor)) parts.push(`clean twin ${percent(floor)}`);
    found.push([name.toUpperCase(), parts.join("; ")]);
  };
  rate("acc", "after.acc.n"); rate("asr", "after.asr.n"); rate("ra", "after.asr.n");
  if (Number.isFinite(fractions["after.target_recall"][i])) found.push(["Target recall", percent(fractions["after.target_recall"][i])]);
  const [low, high] = [fractions["der.low"][i], fractions["der.high"][i]];
  if (Number.isFinite(figures.der[i])) found.push(["DER", percent(figures.der[i]) + (Number.isFinite(low) ? ` (${spread(low, high)})` : "")]);
  if (text("why")) found.push(["Failed", text("why")]);
  if (text("verdict")) found.push(["Verdict", text("verdict")]);
  if (text("findings")) found.push(["Checks found", text("findings")]);
  if (Number.isFinite(amounts.seconds[i])) found.push(["Seconds", time(amounts.seconds[i])]);
  if (Number.isFinite(amounts.peak_memory_mib[i])) found.push(["Peak memory", `${Math.round(amounts.peak_memory_mib[i]).toLocaleString("en")} MiB`]);
  for (const name of ["device", "revision", "created"]) if (text(name)) found.push([name[0].toUpperCase() + name.slice(1), text(name)]);
  for (const axis of axisNames) if (valueAt(axis, i) !== null) found.push([axis, valueAt(axis, i)]);
  found.push(["Record", path(i)]);
  return el("dl", {}, ...found.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

/* --- together ---------------------------------------------------------------------------- */
function drawPlots() {
  drawings = 0;
  scatter(document.getElementById("plot-drop"), "ASR against accuracy lost", "drop", "asr", false);
  scatter(document.getElementById("plot-seconds"), "DER against seconds", "seconds", "der", true);
  drawBudgets();
}
function drawAll() { drawBoard(); drawPlots(); drawGrid(); drawList(); }

for (const [id, key, draw] of [["spc-measure", "spc", drawBudgets], ["grid-measure", "grid", drawGrid]]) {
  const select = document.getElementById(id);
  if (!select) continue;
  select.append(...MEASURES.map(m => el("option", {value: m.name}, m.label)));
  select.addEventListener("change", () => { state[key] = select.value; draw(); });
}
document.getElementById("order").addEventListener("change", event => { state.order = event.target.value; state.board = {key: "rank", down: false}; choose(); });
document.getElementById("reset").addEventListener("click", () => { state.chosen = {}; state.hidden.clear(); state.pick = null; drawFilters(); choose(); document.querySelector("#filters select, #filters summary").focus(); });
document.getElementById("filters").addEventListener("submit", event => event.preventDefault());
const turn = by => () => { state.page += by; state.open = null; drawList(); };
document.getElementById("previous").addEventListener("click", turn(-1));
document.getElementById("next").addEventListener("click", turn(1));
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawPlots(); } });
fromLink();
drawFilters();
choose();
})();

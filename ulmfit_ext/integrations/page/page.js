// What is typed goes to api/voices, then to api/explain; a file goes to api/file, and its answers come back row by row.
// Nothing that comes from a text or a class name is ever read as HTML: it is put in with textContent.
'use strict';

const byId = id => document.getElementById(id);
const shownAtFirst = 8;                      // classes, the likeliest; a button shows the others
let model = {classes: [], limits: {chars: 0, mb: 0}};

function element(tag, className, text = '') {
  const res = document.createElement(tag);
  res.className = className;
  res.textContent = text;
  return res;
}

function show(id, text) {                    // a message, or nothing
  byId(id).textContent = text;
  byId(id).hidden = !text;
}

const percent = p => (100*p).toFixed(p > .9995 || p < .0005 ? 0 : 1) + ' %';
const count = n => n.toLocaleString('en');

async function problem(response) {           // what the server says went wrong, in words
  try { return await response.json(); }
  catch { return {detail: `The server answered ${response.status} ${response.statusText}.`}; }
}

async function ask(path, body) {
  const response = await fetch(path, {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body)});
  if (!response.ok) throw new Error((await problem(response)).detail);
  return response.json();
}

const inWords = e => e instanceof TypeError ? 'The server does not answer: is it still running?' : e.message;

// One text: while one is being read the next one waits, and only the latest of those that wait is read

let isBusy = false, isWaiting = false, timer = 0;

function changed() {
  const n = Array.from(byId('text').value).length;
  const most = model.limits.chars;
  byId('count').textContent = n ? `${count(n)} of ${count(most)} characters` : '';
  clearTimeout(timer);
  timer = setTimeout(readText, 250);
}

async function readText() {
  const text = byId('text').value;
  if (isBusy) { isWaiting = true; return; }
  isBusy = true;
  try { await tell(text); }
  catch (e) { show('text-error', inWords(e)); byId('answer').hidden = true; }
  isBusy = false;
  if (isWaiting) { isWaiting = false; readText(); }
}

async function tell(text) {
  show('text-error', '');
  if (!text.trim()) { byId('answer').hidden = true; return; }
  const said = await ask('api/voices', {text});
  byId('label').textContent = [].concat(said.label).join(', ') || 'none of the classes';
  byId('time').textContent = `in ${said.seconds.toFixed(said.seconds < 1 ? 3 : 1)} s`;
  drawBars(said);
  byId('answer').hidden = false;
  byId('why').hidden = true;
  if (!isWaiting) await explain(text, likeliest(said));   // else another text is there already
}

function likeliest(said) {
  const together = said.voices[voicesOf(said)[0]];
  return Object.keys(together).reduce((a, b) => together[b] > together[a] ? b : a);
}

async function explain(text, label) {
  const isLong = Array.from(text).length > model.limits.explained;
  const why = isLong ? {label, pieces: null} : await ask('api/explain', {text, label});
  if (byId('text').value !== text) return;   // too late
  byId('long').hidden = !isLong;
  byId('long').textContent = `Only texts of up to ${count(model.limits.explained)} characters are explained.`;
  if (why.pieces) drawTokens(why);
}

function voicesOf(said) {                    // that of all together comes first, and 'both' is a mean like it
  const names = Object.keys(said.voices), together = names.pop();
  return [together, ...names.filter(o => o !== 'both')];
}

function drawBars(said) {
  const voices = voicesOf(said), together = said.voices[voices[0]], chosen = [].concat(said.label).map(String);
  const classes = Object.keys(together).sort((a, b) => together[b] - together[a]);
  const bars = byId('bars');
  bars.style.setProperty('--voices', voices.length);
  bars.replaceChildren(barRow('', voices.map(headCell), 'head'));
  const draw = names => names.forEach(c =>
    bars.append(barRow(c, voices.map(v => barCell(v, said.voices[v][c], v === voices[0])), chosen.includes(c) ? 'chosen' : '')));
  draw(classes.slice(0, shownAtFirst));
  const others = classes.slice(shownAtFirst), more = byId('more');
  more.hidden = !others.length;
  more.textContent = `All ${count(classes.length)} classes`;
  more.onclick = () => { draw(others); more.hidden = true; };
}

function barRow(name, cells, className) {
  const row = element('div', `row ${className}`), head = element('div', 'name');
  if (className !== 'head') head.append(whyButton(name));
  row.setAttribute('role', 'row');
  head.setAttribute('role', className === 'head' ? 'cell' : 'rowheader');
  row.append(head, ...cells);
  return row;
}

function whyButton(name) {
  const button = element('button', '', name);
  button.type = 'button';
  button.title = `What speaks for ${name}?`;
  button.onclick = () => explain(byId('text').value, name).catch(e => show('text-error', inWords(e)));
  return button;
}

function headCell(voice) {
  const names = {all: 'together', both: 'together'};
  const cell = element('div', 'quiet', names[voice] || voice);
  cell.setAttribute('role', 'columnheader');
  return cell;
}

function barCell(voice, p, isTogether) {
  const cell = element('div', isTogether ? 'cell together' : 'cell'), bar = element('span', 'bar'), length = element('span', '');
  cell.setAttribute('role', 'cell');
  length.style.width = `${100*p}%`;
  bar.append(length);
  cell.append(bar, element('span', '', percent(p)));
  return cell;
}

function drawTokens(why) {
  const most = Math.max(...why.pieces.map(o => Math.abs(o.contribution)), 1e-12);
  const spans = why.pieces.map(o => {
    const strength = Math.abs(o.contribution)/most;
    if (strength < .05) return document.createTextNode(o.text);
    const span = element('span', o.contribution > 0 ? 'for' : 'against', o.text);
    const colour = o.contribution > 0 ? '8, 81, 156' : '217, 95, 2';
    span.style.backgroundColor = `rgba(${colour}, ${(.5*strength).toFixed(3)})`;
    span.title = o.contribution.toPrecision(3);
    return span;
  });
  byId('tokens').replaceChildren(...spans);
  byId('why-title').textContent = `Why ${why.label}?`;
  byId('why').hidden = false;
}

// A file: its answers come as CSV, a part after the other

let stopping = null;

async function sendFile(event) {
  event.preventDefault();
  const file = byId('file').files[0];
  show('file-error', '');
  offerColumns([]);
  byId('result').hidden = true;
  if (file.size > model.limits.mb*1e6) {
    show('file-error', `The file has ${(file.size/1e6).toFixed(1)} MB, and ${model.limits.mb} MB are allowed: send it in parts.`);
    return;
  }
  working(true);
  try { await labelFile(file); }
  catch (e) { show('file-error', e.name === 'AbortError' ? 'Stopped.' : inWords(e)); }
  working(false);
}

function working(isOn) {
  byId('send').disabled = isOn;
  byId('stop').hidden = byId('progress').hidden = !isOn;
  byId('done').removeAttribute('value');
  byId('rows').textContent = isOn ? 'reading the first rows' : '';
}

async function labelFile(file) {
  stopping = new AbortController();
  const query = new URLSearchParams({name: file.name, text: byId('column').value});
  const began = performance.now();
  const response = await fetch(`api/file?${query}`, {method: 'POST', body: file, signal: stopping.signal});
  if (!response.ok) {
    const said = await problem(response);
    offerColumns(said.columns || []);
    throw new Error(said.detail);
  }
  const rows = Number(response.headers.get('X-Rows'));
  const how = response.headers.get('X-Read-As');   // only where it had to be found out
  offer(await readParts(response, rows), rows, (performance.now() - began)/1000, how ? `; ${file.name} was read as ${how}` : '');
}

async function readParts(response, total) {
  const parts = [], reader = response.body.getReader(), began = performance.now();
  let done = 0, isQuoted = false;            // a row ends with a line, unless that stands between quotes
  for (;;) {
    const part = await reader.read();
    if (part.done) break;
    parts.push(part.value);
    for (const byte of part.value) {
      if (byte === 34) isQuoted = !isQuoted;
      else if (byte === 10 && !isQuoted) done++;
    }
    showProgress(done - 1, total, (performance.now() - began)/1000);   // the first row is the header
  }
  if (done - 1 !== total) throw new Error(`Only ${count(done - 1)} of ${count(total)} rows came back: the log of the server says why.`);
  return parts;
}

function showProgress(done, total, seconds) {
  const left = seconds*(total - done)/Math.max(done, 1);
  byId('done').value = done/total;
  byId('rows').textContent = `${count(done)} of ${count(total)} rows` + (seconds > 2 ? `, about ${Math.ceil(left)} s left` : '');
}

function offerColumns(names) {              // a button for each: pressed, the file is sent again
  byId('columns').replaceChildren(...names.slice(0, 20).map(name => {
    const button = element('button', 'plain', name);
    button.type = 'button';
    button.onclick = () => { byId('column').value = name; byId('form').requestSubmit(); };
    return button;
  }));
}

function offer(parts, rows, seconds, how) {
  const link = byId('download');
  if (link.href) URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob(parts, {type: 'text/csv'}));
  link.download = byId('file').files[0].name.replace(/\.[^.]*$/, '') + '-labelled.csv';
  byId('summary').textContent = `${count(rows)} ${rows === 1 ? 'row' : 'rows'}, in ${seconds.toFixed(1)} s${how}`;
  byId('result').hidden = false;
}

async function begin() {
  byId('text').addEventListener('input', changed);
  byId('form').addEventListener('submit', sendFile);
  byId('stop').addEventListener('click', () => stopping.abort());
  const response = await fetch('api/model');
  if (!response.ok) { show('text-error', (await problem(response)).detail); return; }
  model = await response.json();
  byId('title').textContent = document.title = model.name;
  byId('about').textContent = `${count(model.classes.length)} classes: ${model.classes.slice(0, 12).join(', ')}${model.classes.length > 12 ? ', …' : ''}`;
  if (byId('text').value) changed();         // a browser keeps what was typed before
}

begin().catch(e => show('text-error', inWords(e)));

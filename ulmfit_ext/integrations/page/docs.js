// The page that describes the server, made from its own openapi.json
'use strict';

function element(tag, text = '', children = []) {
  const res = document.createElement(tag);
  res.textContent = text;
  res.append(...children);
  return res;
}

const nameOf = schema => schema.$ref.split('/').pop();

const short = n => n.toLocaleString('en');

function inWords(schema) {                   // 'list of at most 1,000: string of at most 50,000 characters', 'list: Answer'
  if (schema.$ref) return nameOf(schema);
  if (schema.anyOf) return schema.anyOf.map(inWords).join(' | ');
  if (schema.type === 'array') return `list${schema.maxItems ? ` of at most ${short(schema.maxItems)}` : ''}: ${inWords(schema.items)}`;
  if (schema.type === 'object' && typeof schema.additionalProperties === 'object') return `object: ${inWords(schema.additionalProperties)}`;
  return (schema.type || 'anything') + (schema.maxLength ? ` of at most ${short(schema.maxLength)} characters` : '');
}

function terms(pairs) {                      // [name, schema, description] as a list of definitions
  return element('dl', '', pairs.flatMap(([name, schema, description]) => [
    element('dt', name), element('dd', [inWords(schema), description].filter(Boolean).join('. '))]));
}

const fields = schema => terms(Object.entries(schema.properties || {}).map(([k, v]) => [k, v, v.description]));

function bodyOf(part, schemas) {
  const json = part && part.content && part.content['application/json'];
  if (!json || !json.schema.$ref) return [];
  return [element('h3', nameOf(json.schema)), fields(schemas[nameOf(json.schema)])];
}

function example(path, method, op) {
  const said = op['x-example'];
  return said ? [element('pre', said.replaceAll('SERVER', location.origin))] : [];
}

function section([path, methods], schemas) {
  return Object.entries(methods).map(([method, op]) => element('section', '', [
    element('h2', `${method.toUpperCase()} ${path}`), element('p', op.description || op.summary), ...example(path, method, op),
    ...(op.parameters ? [element('h3', 'Parameters'), terms(op.parameters.map(o => [o.name, o.schema, o.description]))] : []),
    ...bodyOf(op.requestBody, schemas), ...bodyOf(op.responses['200'], schemas)]));
}

async function begin() {
  const api = await (await fetch('openapi.json')).json(), schemas = api.components.schemas;
  const all = Object.entries(api.paths).flatMap(o => section(o, schemas));
  const told = new Set(all.flatMap(o => [...o.querySelectorAll('h3')].map(h => h.textContent)));
  const others = Object.entries(schemas).filter(([k]) => !told.has(k) && !k.endsWith('Error'));
  document.getElementById('paths').append(...all, element('h2', 'What these are made of'),
    ...others.flatMap(([k, v]) => [element('h3', k), element('p', v.description || ''), fields(v)]));
}

begin();

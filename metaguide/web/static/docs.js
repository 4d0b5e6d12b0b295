// The reference of the API, rendered from openapi.json.
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

// Writes a schema as JSON would be written, with types in the place of values.
function written(schema, schemas, indent = "") {
  if (schema.$ref) return written(schemas[schema.$ref.split("/").pop()], schemas, indent);
  const either = schema.anyOf ?? schema.oneOf;
  if (either) return either.map((one) => written(one, schemas, indent)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  if (schema.prefixItems) return `[${schema.prefixItems.map((one) => written(one, schemas, indent)).join(", ")}]`;
  if (schema.type === "array") return `[${written(schema.items ?? {}, schemas, indent)}, …]`;
  if (schema.type !== "object") return schema.type ?? "any";
  if (!schema.properties) return `{text: ${written(schema.additionalProperties ?? {}, schemas, indent)}, …}`;
  const inner = `${indent}  `;
  const lines = Object.entries(schema.properties).map(([name, one]) => {
    const optional = (schema.required ?? []).includes(name) ? "" : "?";
    const note = one.description ? `  // ${one.description}` : "";
    return `${inner}"${name}"${optional}: ${written(one, schemas, inner)}${note}`;
  });
  return `{\n${lines.join("\n")}\n${indent}}`;
}

function operation(path, verb, one, schemas) {
  const schemaOf = (part) => Object.values(part?.content ?? {})[0]?.schema;
  const sent = schemaOf(one.requestBody), back = schemaOf(one.responses["200"]);
  const rows = (one.parameters ?? []).map((parameter) => {
    const { schema } = parameter;
    const range = schema.minimum === undefined ? "" : `, ${schema.minimum} to ${schema.maximum}`;
    const standard = schema.default === undefined ? "" : `, default ${JSON.stringify(schema.default)}`;
    return h("tr", {}, h("td", {}, h("code", {}, parameter.name)), h("td", {}, `${schema.type}${range}${standard}`));
  });
  return h("section", { class: "card" },
    h("h3", {}, h("span", { class: "verb" }, verb.toUpperCase()), h("code", {}, path)),
    h("p", {}, one.summary),
    rows.length ? h("table", {}, h("tbody", {}, rows)) : null,
    sent ? [h("p", { class: "soft small" }, "Body"), h("pre", { tabindex: "0" }, written(sent, schemas))] : null,
    back ? [h("p", { class: "soft small" }, "Answer"), h("pre", { tabindex: "0" }, written(back, schemas))] : null);
}

const response = await fetch("/openapi.json");
const { info, paths, components } = await response.json();
document.getElementById("about").textContent =
  `${info.description} Errors are JSON with "error", "hint" and "code". Bodies are JSON.`;
document.getElementById("paths").replaceChildren(...Object.entries(paths).flatMap(([path, verbs]) =>
  Object.entries(verbs).map(([verb, one]) => operation(path, verb, one, components.schemas))));

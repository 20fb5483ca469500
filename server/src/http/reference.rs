//! The reference page: the OpenAPI document as one HTML page that a person can read.
//!
//! It needs no script and no other file, so that it opens from a server without a way out, and
//! nothing on it is written twice: every word comes from the document, escaped. Which document
//! that is, under which path it is served and with which headers, is left to the routes; whether
//! the document is true is left to the coverage tests.

use serde_json::{Map, Value};

/// The order in which a path's methods are shown: reading before changing before ending.
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// How deep fields are listed. The deepest body here has four levels
/// (`identities[].details.email`, and the verdicts of a batch); a schema that names itself would
/// otherwise never end.
const FIELD_DEPTH_MAX: usize = 5;

/// How many references are followed from one place, for the same reason.
const REFERENCES_MAX: usize = 8;

/// What fits on so many columns of an example stands on one line.
const EXAMPLE_COLUMNS: usize = 58;

/// Renders the parsed document. What the document lacks, the page leaves out.
pub(crate) fn page(document: &Value) -> String {
    let info = document.get("info").unwrap_or(&Value::Null);
    let title = escape(text(info, "title"));
    let tags = tags(document);

    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title} reference</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    );
    html.push_str(&navigation(&title, &tags));
    html.push_str(&format!(
        "<main>\n<header>\n<h1>{title} <small>{}</small></h1>\n{}{}</header>\n",
        escape(text(info, "version")),
        element("p class=\"lead\"", &inline(text(info, "summary"))),
        paragraphs(text(info, "description")),
    ));
    for tag in &tags {
        html.push_str(&format!(
            "<section id=\"{}\" class=\"tag\">\n<h2>{}</h2>\n{}",
            anchor("tag", tag.name),
            escape(tag.name),
            paragraphs(tag.description),
        ));
        for operation in &tag.operations {
            html.push_str(&operation_section(document, operation));
        }
        html.push_str("</section>\n");
    }
    html.push_str(&shared_replies(document));
    html.push_str(&scopes(document));
    html.push_str("</main>\n</body>\n</html>\n");
    html
}

/// One operation with what it inherits from its place in the document.
struct Operation<'a> {
    path: &'a str,
    method: &'a str,
    value: &'a Value,
}

impl Operation<'_> {
    fn anchor(&self) -> String {
        anchor("operation", text(self.value, "operationId"))
    }

    fn badge(&self) -> String {
        let method = escape(&self.method.to_uppercase());
        format!("<span class=\"method {}\">{method}</span>", escape(self.method))
    }
}

/// A tag and its operations.
struct Tag<'a> {
    name: &'a str,
    description: &'a str,
    operations: Vec<Operation<'a>>,
}

/// The document's tags in its order. An operation stands under its first tag; one whose tag the
/// document does not describe comes last, under that name, so that no route can hide.
fn tags(document: &Value) -> Vec<Tag<'_>> {
    let mut tags: Vec<Tag<'_>> = items(document, "tags")
        .map(|tag| Tag {
            name: text(tag, "name"),
            description: text(tag, "description"),
            operations: Vec::new(),
        })
        .collect();
    for (path, item) in fields(document, "paths") {
        for method in METHODS {
            let Some(value) = item.get(method) else {
                continue;
            };
            let name = items(value, "tags").next().and_then(Value::as_str).unwrap_or("Other");
            let operation = Operation { path, method, value };
            match tags.iter_mut().find(|tag| tag.name == name) {
                Some(tag) => tag.operations.push(operation),
                None => tags.push(Tag { name, description: "", operations: vec![operation] }),
            }
        }
    }
    tags.retain(|tag| !tag.operations.is_empty());
    tags
}

fn navigation(title: &str, tags: &[Tag<'_>]) -> String {
    let mut html = format!("<nav aria-label=\"Contents\">\n<p class=\"brand\">{title}</p>\n");
    for tag in tags {
        html.push_str(&format!(
            "<h2><a href=\"#{}\">{}</a></h2>\n<ul>\n",
            anchor("tag", tag.name),
            escape(tag.name),
        ));
        for operation in &tag.operations {
            html.push_str(&format!(
                "<li><a href=\"#{}\">{}<span>{}</span></a></li>\n",
                operation.anchor(),
                operation.badge(),
                inline(text(operation.value, "summary")),
            ));
        }
        html.push_str("</ul>\n");
    }
    html.push_str(
        "<h2><a href=\"#replies\">Shared replies</a></h2>\n\
         <h2><a href=\"#scopes\">Scopes</a></h2>\n</nav>\n",
    );
    html
}

fn operation_section(document: &Value, operation: &Operation<'_>) -> String {
    let value = operation.value;
    let path = escape(operation.path).replace('/', "/<wbr>");
    let mut html = format!(
        "<article id=\"{}\">\n<div class=\"words\">\n<h3>{}</h3>\n\
         <p class=\"route\">{} <code>{path}</code></p>\n{}{}",
        operation.anchor(),
        inline(text(value, "summary")),
        operation.badge(),
        required_scope(value),
        paragraphs(text(value, "description")),
    );
    html.push_str(&parameters(document, value));
    html.push_str(&body_fields(document, value));
    html.push_str(&replies(document, value));
    html.push_str("</div>\n<div class=\"examples\">\n");
    html.push_str(&request_examples(document, operation));
    html.push_str(&reply_examples(document, value));
    html.push_str("</div>\n</article>\n");
    html
}

/// Any one of the scopes in `x-required-scope` opens the operation.
fn required_scope(value: &Value) -> String {
    let scopes: Vec<String> = items(value, "x-required-scope")
        .filter_map(Value::as_str)
        .map(|scope| format!("<a href=\"#scopes\"><code>{}</code></a>", escape(scope)))
        .collect();
    let words = if scopes.is_empty() {
        "No token is needed.".to_owned()
    } else {
        format!("Scope {}", scopes.join(" or "))
    };
    element("p class=\"scope\"", &words)
}

fn parameters(document: &Value, value: &Value) -> String {
    let mut rows = String::new();
    let mut ignored = Vec::new();
    for parameter in items(value, "parameters").map(|parameter| resolve(document, parameter)) {
        if is_ignored(parameter) {
            ignored.push(text(parameter, "name").to_owned());
            continue;
        }
        let schema = parameter.get("schema").unwrap_or(&Value::Null);
        let place = element("span class=\"place\"", &escape(text(parameter, "in")));
        rows.push_str(&row(
            &format!("<code>{}</code> {place}", escape(text(parameter, "name"))),
            is_true(parameter, "required"),
            &kind(document, schema),
            text(parameter, "description"),
        ));
    }
    table("Parameters", &rows, &ignored)
}

fn body_fields(document: &Value, value: &Value) -> String {
    let Some(body) = value.get("requestBody").map(|body| resolve(document, body)) else {
        return String::new();
    };
    let heading = if is_true(body, "required") { "Body" } else { "Body, which may be left out" };
    let mut html = String::new();
    for (media_type, media) in fields(body, "content") {
        let schema = resolve(document, media.get("schema").unwrap_or(&Value::Null));
        let mut listed = Listed::default();
        listed.add(document, schema, "", FIELD_DEPTH_MAX);
        html.push_str(&element("h4", &format!("{heading} <code>{}</code>", escape(media_type))));
        html.push_str(&paragraphs(text(schema, "description")));
        html.push_str(&table("", &listed.rows, &listed.ignored));
    }
    html
}

/// The fields of a body, flattened: `profile.given_name`, `keys[].name`.
#[derive(Default)]
struct Listed {
    rows: String,
    ignored: Vec<String>,
}

impl Listed {
    fn add(&mut self, document: &Value, schema: &Value, before: &str, depth: usize) {
        let Some(depth) = depth.checked_sub(1) else {
            return;
        };
        let required: Vec<&str> = items(schema, "required").filter_map(Value::as_str).collect();
        let mut properties: Vec<(&str, &Value)> = fields(schema, "properties").collect();
        // The sort is stable: what must be sent comes first, the rest keeps its order.
        properties.sort_by_key(|(name, _)| !required.contains(name));
        for (name, property) in properties {
            let target = present(document, property);
            let path = format!("{before}{name}");
            if is_ignored(target) {
                self.ignored.push(path);
                continue;
            }
            let words = match text(property, "description") {
                "" => text(target, "description"),
                nearer => nearer,
            };
            self.rows.push_str(&row(
                &format!("<code>{}</code>", escape(&path)),
                required.contains(&name),
                &kind(document, property),
                words,
            ));
            match target.get("items") {
                Some(item) => {
                    let item = present(document, item);
                    self.add(document, item, &format!("{path}[]."), depth);
                }
                None => self.add(document, target, &format!("{path}."), depth),
            }
        }
    }
}

fn row(name: &str, required: bool, kind: &str, words: &str) -> String {
    let mark = if required { " <em class=\"required\">required</em>" } else { "" };
    format!(
        "<tr><td>{name}{mark}<br><span class=\"kind\">{kind}</span></td><td>{}</td></tr>\n",
        inline(words)
    )
}

fn table(heading: &str, rows: &str, ignored: &[String]) -> String {
    let mut html = String::new();
    if !(heading.is_empty() || rows.is_empty() && ignored.is_empty()) {
        html.push_str(&element("h4", &escape(heading)));
    }
    if !rows.is_empty() {
        html.push_str(&format!("<table><tbody>\n{rows}</tbody></table>\n"));
    }
    if !ignored.is_empty() {
        let names: Vec<String> =
            ignored.iter().map(|name| format!("<code>{}</code>", escape(name))).collect();
        let words = format!("Accepted and ignored: {}.", names.join(", "));
        html.push_str(&element("p class=\"ignored\"", &words));
    }
    html
}

fn replies(document: &Value, value: &Value) -> String {
    let mut html = element("h4", "Replies");
    html.push_str("<dl class=\"replies\">\n");
    for (status, reply) in fields(value, "responses") {
        let target = resolve(document, reply);
        let reference = reply.get("$ref").and_then(Value::as_str);
        // A shared error is told once, at the end of the page: its first sentence is enough here.
        let words = match reference.and_then(|reference| reference.rsplit('/').next()) {
            Some(name) => {
                let sentence = first_sentence(text(target, "description"));
                format!("<a href=\"#{}\">{}</a>", anchor("reply", name), inline(sentence))
            }
            None => {
                let words = text(target, "description").trim_end_matches('.');
                inline(words) + &reply_fields(document, target)
            }
        };
        html.push_str(&format!("<dt>{}</dt><dd>{words}</dd>\n", status_badge(status)));
    }
    html.push_str("</dl>\n");
    html
}

fn reply_fields(document: &Value, reply: &Value) -> String {
    let mut listed = Listed::default();
    for (_, media) in fields(reply, "content") {
        let schema = resolve(document, media.get("schema").unwrap_or(&Value::Null));
        listed.add(document, schema, "", FIELD_DEPTH_MAX);
    }
    if listed.rows.is_empty() {
        String::new()
    } else {
        format!(
            "<details><summary>Fields</summary>\n{}</details>",
            // Everything in a reply is marked by presence, not by duty.
            table("", &listed.rows.replace(">required<", ">always<"), &listed.ignored)
        )
    }
}

fn status_badge(status: &str) -> String {
    let class = match status.chars().next() {
        Some('2') => "good",
        Some('5') => "bad",
        _ => "odd",
    };
    format!("<span class=\"status {class}\">{}</span>", escape(status))
}

fn request_examples(document: &Value, operation: &Operation<'_>) -> String {
    let line = request_line(document, operation);
    let token = match items(operation.value, "x-required-scope").next() {
        Some(_) => "\nAuthorization: Bearer <token>",
        None => "",
    };
    let body = operation.value.get("requestBody").map(|body| resolve(document, body));
    let mut html = String::new();
    for (media_type, media) in body.into_iter().flat_map(|body| fields(body, "content")) {
        for (summary, example) in media_examples(media) {
            let body = match media_type {
                "application/x-www-form-urlencoded" => form(example),
                _ => json(example),
            };
            let caption = if summary.is_empty() { "Request" } else { summary };
            let request = format!("{line}{token}\nContent-Type: {media_type}\n\n{body}");
            html.push_str(&example_block(&inline(caption), &request));
        }
    }
    if html.is_empty() {
        html = example_block("Request", &format!("{line}{token}"));
    }
    html
}

/// `GET /api/v1/user?id=kp_…`: the path with the examples of what must be given.
fn request_line(document: &Value, operation: &Operation<'_>) -> String {
    let mut path = operation.path.to_owned();
    let mut query = form_urlencoded::Serializer::new(String::new());
    for parameter in items(operation.value, "parameters") {
        let parameter = resolve(document, parameter);
        let schema = resolve(document, parameter.get("schema").unwrap_or(&Value::Null));
        let example = items(schema, "examples").next().and_then(Value::as_str).unwrap_or("…");
        let name = text(parameter, "name");
        match text(parameter, "in") {
            "path" => path = path.replace(&format!("{{{name}}}"), example),
            "query" if is_true(parameter, "required") => {
                query.append_pair(name, example);
            }
            _ => {}
        }
    }
    let query = query.finish();
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{} {path}{mark}{query}", operation.method.to_uppercase())
}

fn reply_examples(document: &Value, value: &Value) -> String {
    let mut html = String::new();
    for (status, reply) in fields(value, "responses") {
        let reply = resolve(document, reply);
        if !status.starts_with('2') {
            continue;
        }
        for (_, media) in fields(reply, "content") {
            for (summary, example) in media_examples(media) {
                let caption = format!("{} {}", status_badge(status), inline(summary));
                html.push_str(&example_block(&caption, &json(example)));
            }
        }
    }
    html
}

/// Summary and value of each example of a media type.
fn media_examples(media: &Value) -> Vec<(&str, &Value)> {
    let named = fields(media, "examples")
        .filter_map(|(_, example)| Some((text(example, "summary"), example.get("value")?)));
    media.get("example").map(|example| ("", example)).into_iter().chain(named).collect()
}

fn example_block(caption: &str, example: &str) -> String {
    format!(
        "<figure><figcaption>{caption}</figcaption><pre tabindex=\"0\">{}</pre></figure>\n",
        escape(example)
    )
}

fn shared_replies(document: &Value) -> String {
    let components = document.get("components").unwrap_or(&Value::Null);
    let mut html = "<section id=\"replies\" class=\"tag\">\n<h2>Shared replies</h2>\n".to_owned();
    for (name, reply) in fields(components, "responses") {
        html.push_str(&format!(
            "<article id=\"{}\">\n<div class=\"words\">\n<h3>{}</h3>\n{}",
            anchor("reply", name),
            escape(name),
            paragraphs(text(reply, "description")),
        ));
        let mut rows = String::new();
        for (header, value) in fields(reply, "headers") {
            let schema = value.get("schema").unwrap_or(&Value::Null);
            rows.push_str(&row(
                &format!("<code>{}</code>", escape(header)),
                false,
                &kind(document, schema),
                text(value, "description"),
            ));
        }
        html.push_str(&table("Headers", &rows, &[]));
        html.push_str("</div>\n<div class=\"examples\">\n");
        for (_, media) in fields(reply, "content") {
            for (summary, example) in media_examples(media) {
                let caption = if summary.is_empty() { "Example" } else { summary };
                html.push_str(&example_block(&inline(caption), &json(example)));
            }
        }
        html.push_str("</div>\n</article>\n");
    }
    html.push_str("</section>\n");
    html
}

fn scopes(document: &Value) -> String {
    let schemes = document.pointer("/components/securitySchemes").unwrap_or(&Value::Null);
    let mut rows = String::new();
    for (_, scheme) in schemes.as_object().into_iter().flatten() {
        let flow = scheme.pointer("/flows/clientCredentials").unwrap_or(&Value::Null);
        for (scope, words) in fields(flow, "scopes") {
            rows.push_str(&format!(
                "<tr><td><code>{}</code></td><td>{}</td></tr>\n",
                escape(scope),
                inline(words.as_str().unwrap_or_default()),
            ));
        }
    }
    format!(
        "<section id=\"scopes\" class=\"tag\">\n<h2>Scopes</h2>\n\
         <table><tbody>\n{rows}</tbody></table>\n</section>\n"
    )
}

/// What a value may be, in a few words: `string, 1–255 characters`, `array of object`.
fn kind(document: &Value, schema: &Value) -> String {
    let mut kinds = Vec::new();
    let mut limits = Vec::new();
    collect_kind(document, schema, &mut kinds, &mut limits, REFERENCES_MAX);
    kinds.dedup();
    let mut words = kinds.join(" or ");
    for limit in limits {
        words.push_str(", ");
        words.push_str(&limit);
    }
    words
}

fn collect_kind(
    document: &Value,
    schema: &Value,
    kinds: &mut Vec<String>,
    limits: &mut Vec<String>,
    depth: usize,
) {
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    let schema = resolve(document, schema);
    let choices = items(schema, "enum").chain(schema.get("const"));
    kinds.extend(choices.map(literal));
    if schema.get("enum").is_some() || schema.get("const").is_some() {
        return;
    }
    let types = schema.get("type");
    let listed = types.and_then(Value::as_array).into_iter().flatten();
    for name in listed.chain(types).filter_map(Value::as_str) {
        match (name, schema.get("items")) {
            ("array", Some(item)) => {
                let (mut inner, mut unused) = (Vec::new(), Vec::new());
                collect_kind(document, item, &mut inner, &mut unused, depth);
                inner.dedup();
                kinds.push(format!("array of {}", inner.join(" or ")));
            }
            _ => kinds.push(escape(name)),
        }
    }
    if types.is_none() {
        for choice in items(schema, "anyOf").chain(items(schema, "oneOf")) {
            collect_kind(document, choice, kinds, limits, depth);
        }
    }
    let format = text(schema, "format");
    if !format.is_empty() && format != "int64" {
        limits.push(escape(format));
    }
    limits.extend(range(schema, "minimum", "maximum", ""));
    limits.extend(range(schema, "minLength", "maxLength", " characters"));
    limits.extend(range(schema, "minItems", "maxItems", " items"));
    if let Some(value) = schema.get("default") {
        limits.push(format!("else {}", literal(value)));
    }
}

/// A value as it is written in a body, but a text without its quotes.
fn literal(value: &Value) -> String {
    let words = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    format!("<code>{}</code>", escape(&words))
}

fn range(schema: &Value, least: &str, most: &str, unit: &str) -> Option<String> {
    match (schema.get(least), schema.get(most)) {
        (Some(least), Some(most)) if least == most => Some(format!("{least}{unit}")),
        (Some(least), Some(most)) => Some(format!("{least}–{most}{unit}")),
        (Some(least), None) => Some(format!("at least {least}{unit}")),
        (None, Some(most)) => Some(format!("at most {most}{unit}")),
        (None, None) => None,
    }
}

/// Follows references to what they name.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let mut target = value;
    for _ in 0..REFERENCES_MAX {
        let Some(reference) = target.get("$ref").and_then(Value::as_str) else {
            break;
        };
        let Some(pointer) = reference.strip_prefix('#') else {
            break;
        };
        let Some(next) = document.pointer(pointer) else {
            break;
        };
        target = next;
    }
    target
}

/// What stands there when it is not null.
fn present<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let schema = resolve(document, schema);
    let not_null = |choice: &&Value| choice.get("type").and_then(Value::as_str) != Some("null");
    match items(schema, "anyOf").find(not_null) {
        Some(choice) if schema.get("type").is_none() => resolve(document, choice),
        Some(_) | None => schema,
    }
}

fn is_ignored(value: &Value) -> bool {
    is_true(value, "x-ignored")
}

fn is_true(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn fields<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let object: Option<&Map<String, Value>> = value.get(key).and_then(Value::as_object);
    object.into_iter().flatten().map(|(name, field)| (name.as_str(), field))
}

fn element(tag: &str, html: &str) -> String {
    let name = tag.split(' ').next().unwrap_or(tag);
    if html.is_empty() { String::new() } else { format!("<{tag}>{html}</{name}>\n") }
}

/// A word of the document as a fragment identifier: what is not a letter or digit becomes `-`.
fn anchor(kind: &str, word: &str) -> String {
    let word: String =
        word.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("{kind}-{word}")
}

fn paragraphs(words: &str) -> String {
    words.split("\n\n").map(|paragraph| element("p", &inline(paragraph))).collect()
}

fn first_sentence(words: &str) -> &str {
    match words.find(". ").or_else(|| words.find("; ")) {
        Some(end) => words.get(..end).unwrap_or(words),
        None => words.trim_end_matches('.'),
    }
}

/// The two marks of Markdown that the document uses, code and strong, after escaping. Inside code
/// nothing is a mark. A mark without its partner stays as it is.
fn inline(words: &str) -> String {
    marked(words, "`", "code", |plain| marked(plain, "**", "strong", escape))
}

fn marked(words: &str, mark: &str, tag: &str, plain: impl Fn(&str) -> String) -> String {
    let mut html = String::new();
    let mut rest = words;
    while let Some((before, after)) = rest.split_once(mark) {
        let Some((inside, behind)) = after.split_once(mark) else {
            break;
        };
        html.push_str(&plain(before));
        html.push_str(&format!("<{tag}>{}</{tag}>", escape(inside)));
        rest = behind;
    }
    html + &plain(rest)
}

fn escape(words: &str) -> String {
    let mut html = String::with_capacity(words.len());
    for c in words.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            _ => html.push(c),
        }
    }
    html
}

/// A form as it is sent, but a line for each field.
fn form(example: &Value) -> String {
    let mut lines = Vec::new();
    for (name, value) in example.as_object().into_iter().flatten() {
        let values = value.as_array().into_iter().flatten().chain(Some(value));
        for value in values.filter_map(Value::as_str) {
            let mut line = form_urlencoded::Serializer::new(String::new());
            lines.push(line.append_pair(name, value).finish());
        }
    }
    lines.join("\n&")
}

/// JSON with two spaces, what is short on one line. A text (metrics) stands as it is.
fn json(example: &Value) -> String {
    let mut out = String::new();
    match example.as_str() {
        Some(text) => out.push_str(text),
        None => write_json(&mut out, example, 0),
    }
    out
}

fn write_json(out: &mut String, value: &Value, depth: usize) {
    let line = value.to_string();
    // Spaces after commas and colons are not counted: the width is a matter of looks.
    let is_short = depth > 0 && depth * 2 + line.chars().count() <= EXAMPLE_COLUMNS;
    let indent = "  ".repeat(depth + 1);
    let (open, close, rows): (char, char, Vec<String>) = match value {
        Value::Object(object) if !object.is_empty() => {
            let rows = object.iter().map(|(name, field)| {
                let mut row = format!("{}: ", Value::from(name.as_str()));
                write_json(&mut row, field, depth + 1);
                row
            });
            ('{', '}', rows.collect())
        }
        Value::Array(array) if !array.is_empty() => {
            let rows = array.iter().map(|item| {
                let mut row = String::new();
                write_json(&mut row, item, depth + 1);
                row
            });
            ('[', ']', rows.collect())
        }
        Value::Object(_)
        | Value::Array(_)
        | Value::String(_)
        | Value::Number(_)
        | Value::Bool(_)
        | Value::Null => {
            out.push_str(&line);
            return;
        }
    };
    let (before, between, after) = match (is_short, open) {
        (true, '{') => (" ".to_owned(), ", ".to_owned(), " ".to_owned()),
        (true, _) => (String::new(), ", ".to_owned(), String::new()),
        (false, _) => {
            let end = format!("\n{}", "  ".repeat(depth));
            (format!("\n{indent}"), format!(",\n{indent}"), end)
        }
    };
    out.push(open);
    out.push_str(&before);
    out.push_str(&rows.join(&between));
    out.push_str(&after);
    out.push(close);
}

/// Colours are named once and change with the reader's scheme; the text is at most 38 rem wide,
/// about 75 characters, and examples stand beside it where the window has room.
const STYLE: &str = include_str!("reference.css");

#[cfg(test)]
mod tests;

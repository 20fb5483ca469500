//! The reference page, tried on small documents and on the shipped one.

use super::*;
use serde_json::json;

fn shipped() -> Value {
    serde_json::from_str(include_str!("../../../openapi.json")).expect("the document is JSON")
}

fn with_operation(operation: Value) -> Value {
    json!({ "paths": { "/things/{thing_id}": { "post": operation } } })
}

#[test]
fn every_operation_of_the_document_is_on_the_page_and_in_the_navigation() {
    let document = shipped();
    let html = page(&document);
    let mut count = 0;
    for (path, item) in fields(&document, "paths") {
        for (method, operation) in item.as_object().expect("a path is an object") {
            let anchor = anchor("operation", text(operation, "operationId"));
            assert!(html.contains(&format!("<article id=\"{anchor}\">")), "{method} {path}");
            assert!(html.contains(&format!("href=\"#{anchor}\"")), "{method} {path}");
            for scope in items(operation, "x-required-scope") {
                assert!(html.contains(&format!("<code>{}</code>", text_of(scope))));
            }
            count += 1;
        }
    }
    assert_eq!(html.matches("<p class=\"route\">").count(), count);
}

fn text_of(value: &Value) -> &str {
    value.as_str().expect("a text")
}

#[test]
fn every_link_of_the_page_has_its_target() {
    let html = page(&shipped());
    for link in html.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        let target = link.strip_prefix('#').expect("the page links to nothing but itself");
        assert!(html.contains(&format!("id=\"{target}\"")), "{link} leads nowhere");
    }
}

#[test]
fn the_page_needs_no_script_and_no_other_file() {
    let html = page(&shipped());
    for word in ["<script", "<link", "<img", "<iframe", "src=", "url(", "@import", "onclick"] {
        assert!(!html.contains(word), "the page holds {word}");
    }
}

#[test]
fn markup_anywhere_in_the_document_is_shown_and_not_obeyed() {
    let evil = "<script>alert(\"&'\")</script>";
    let mut document = with_operation(json!({
        "operationId": evil, "tags": [evil], "summary": evil, "description": evil,
        "x-required-scope": [evil],
        "parameters": [
            { "name": evil, "in": evil, "description": evil, "schema": { "type": evil } },
            { "name": evil, "in": "query", "x-ignored": true },
        ],
        "requestBody": { "content": { evil: {
            "schema": {
                "description": evil,
                "properties": { evil: { "enum": [evil], "format": evil, "default": evil } },
            },
            "examples": { evil: { "summary": evil, "value": { evil: evil } } },
        } } },
        "responses": { evil: { "description": evil }, "200": { "description": evil,
            "content": { evil: { "example": evil } } } },
    }));
    let extra = json!({
        "info": { "title": evil, "version": evil, "summary": evil, "description": evil },
        "tags": [{ "name": evil, "description": evil }],
        "components": {
            "responses": { evil: { "description": evil, "headers": { evil: {
                "description": evil, "schema": { "const": evil } } } } },
            "securitySchemes": { "any": { "flows": { "clientCredentials": {
                "scopes": { evil: evil } } } } },
        },
    });
    let object = document.as_object_mut().expect("it is an object");
    object.extend(extra.as_object().expect("it is an object").clone());
    let html = page(&document);
    assert!(!html.contains("<script"), "{html}");
    assert!(html.matches("&lt;script&gt;").count() > 20);
}

#[test]
fn an_operation_of_a_tag_that_is_not_described_is_shown_all_the_same() {
    let html = page(&with_operation(json!({ "operationId": "lost", "tags": ["Unheard"] })));
    assert!(html.contains("<article id=\"operation-lost\">"));
    assert!(html.contains("<h2>Unheard</h2>"));
}

#[test]
fn a_document_without_anything_is_a_page_without_anything() {
    for document in [json!({}), json!(null), json!([]), json!({ "paths": { "/": null } })] {
        assert!(page(&document).ends_with("</html>\n"));
    }
}

#[test]
fn a_schema_that_names_itself_ends() {
    let mut document = with_operation(json!({
        "operationId": "loop",
        "requestBody": { "content": { "application/json": {
            "schema": { "$ref": "#/components/schemas/Tree" } } } },
    }));
    let tree = json!({ "schemas": {
        "Tree": { "properties": {
            "branches": { "type": "array", "items": { "$ref": "#/components/schemas/Tree" } },
            "self": { "$ref": "#/components/schemas/Self" },
        } },
        "Self": { "$ref": "#/components/schemas/Self" },
    } });
    document.as_object_mut().expect("it is an object").insert("components".to_owned(), tree);
    assert!(page(&document).contains("<code>branches[].branches</code>"));
}

#[test]
fn fields_that_mean_nothing_are_named_once_and_not_listed() {
    let html = page(&with_operation(json!({
        "operationId": "paint",
        "requestBody": { "content": { "application/json": { "schema": {
            "required": ["name"],
            "properties": { "colour": { "x-ignored": true }, "name": { "type": "string" } },
        } } } },
    })));
    assert!(html.contains("Accepted and ignored: <code>colour</code>."));
    assert!(html.contains("<td><code>name</code> <em class=\"required\">required</em>"));
    assert!(!html.contains("<td><code>colour</code>"));
}

#[test]
fn kinds_say_what_a_value_may_be() {
    let document = json!({ "components": { "schemas": {
        "Name": { "type": "string", "minLength": 1, "maxLength": 255 },
    } } });
    for (schema, words) in [
        (json!({ "$ref": "#/components/schemas/Name" }), "string, 1–255 characters"),
        (
            json!({ "anyOf": [{ "$ref": "#/components/schemas/Name" }, { "type": "null" }] }),
            "string or null, 1–255 characters",
        ),
        (
            json!({ "type": "integer", "minimum": 1, "maximum": 500, "default": 10 }),
            "integer, 1–500, else <code>10</code>",
        ),
        (
            json!({ "type": "array", "maxItems": 2, "items": { "type": "string" } }),
            "array of string, at most 2 items",
        ),
        (json!({ "enum": ["a", null] }), "<code>a</code> or <code>null</code>"),
        (json!({ "const": "m2m" }), "<code>m2m</code>"),
    ] {
        assert_eq!(kind(&document, &schema), words);
    }
}

#[test]
fn code_and_strong_are_the_only_marks() {
    assert_eq!(inline("**Send** `a<b **c**`."), "<strong>Send</strong> <code>a&lt;b **c**</code>.");
    assert_eq!(inline("one ` and one **"), "one ` and one **");
}

#[test]
fn examples_are_json_that_reads_back_as_it_was() {
    let document = shipped();
    let mut count = 0;
    for (_, item) in fields(&document, "paths") {
        for operation in item.as_object().expect("a path is an object").values() {
            for (_, reply) in fields(operation, "responses") {
                for (_, media) in fields(reply, "content") {
                    for (_, example) in media_examples(media) {
                        if !example.is_string() {
                            let shown = json(example);
                            let read: Value = serde_json::from_str(&shown).expect("JSON");
                            assert_eq!(&read, example);
                            count += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(count > 30, "only {count} examples");
}

#[test]
fn a_request_line_names_what_must_be_given() {
    let document = json!({});
    let operation = json!({ "parameters": [
        { "name": "thing_id", "in": "path", "schema": { "examples": ["thing_1"] } },
        { "name": "id", "in": "query", "required": true, "schema": { "examples": ["a|b"] } },
        { "name": "page_size", "in": "query", "schema": { "type": "integer" } },
    ] });
    let operation = Operation { path: "/things/{thing_id}", method: "get", value: &operation };
    let line = request_line(&document, &operation);
    assert_eq!(line, "GET /things/thing_1?id=a%7Cb");
}

//! One management request on its way to a handler, and the reply on its way back.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use keyward_core::EnvId;
use serde_json::{Value, json};

use super::fields::Fields;
use crate::App;
use crate::directory::Tenant;
use crate::error::Result;
use crate::ops::Context;

/// What goes back over the connection.
pub(crate) type Answer = Response<Full<Bytes>>;

/// A request whose caller may make it, with its body read.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    /// The environment as it is now.
    pub(crate) tenant: Arc<Tenant>,
    /// Its id.
    pub(crate) env: EnvId,
    /// Who asks.
    pub(crate) context: Context,
    /// The path's parameters, percent-decoded.
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) query_text: String,
    pub(crate) body: Bytes,
}

impl Call {
    /// A parameter of the path; empty if the route has none of this name.
    pub(crate) fn path(&self, name: &str) -> &str {
        let found = self.parameters.iter().find(|(parameter, _)| parameter == name);
        found.map_or("", |(_, value)| value)
    }

    /// The query's parameters.
    pub(crate) fn query(&self) -> Result<Fields> {
        Fields::of_query(&self.query_text)
    }

    /// The body's fields; an empty body is an empty object.
    pub(crate) fn body(&self) -> Result<Fields> {
        Fields::of_body(&self.body)
    }
}

/// What a handler replies.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
    /// Whether the body holds a secret, which must be shown only once.
    pub(crate) is_secret: bool,
    /// Instead of JSON: a content type and a text.
    pub(crate) text: Option<(&'static str, Bytes)>,
}

impl Reply {
    /// 200 with `body`.
    pub(crate) fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, body, is_secret: false, text: None }
    }

    /// 201 with `body`.
    pub(crate) fn created(body: Value) -> Self {
        Self { status: StatusCode::CREATED, ..Self::ok(body) }
    }

    /// 200 with a text that is not JSON.
    pub(crate) fn text(content_type: &'static str, text: impl Into<Bytes>) -> Self {
        Self { text: Some((content_type, text.into())), ..Self::ok(Value::Null) }
    }

    /// Adds the change's sequence number.
    pub(crate) fn seq(mut self, seq: i64) -> Self {
        if let Value::Object(fields) = &mut self.body {
            fields.insert("seq".to_owned(), json!(seq));
        }
        self
    }

    /// Marks the body as holding a secret.
    pub(crate) fn secret(mut self) -> Self {
        self.is_secret = true;
        self
    }

    /// The reply as an answer.
    pub(crate) fn into_answer(self) -> Answer {
        let mut answer = match self.text {
            None => json_answer(self.status, &self.body),
            Some((content_type, text)) => {
                let mut answer = Response::new(Full::new(text));
                let value = HeaderValue::from_static(content_type);
                answer.headers_mut().insert(CONTENT_TYPE, value);
                answer
            }
        };
        if self.is_secret {
            answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        answer
    }
}

/// `body` as a JSON answer.
pub(crate) fn json_answer(status: StatusCode, body: &Value) -> Answer {
    json_text(status, body.to_string())
}

/// JSON text as an answer.
pub(crate) fn json_text(status: StatusCode, text: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    let value = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, value);
    answer
}

//! The one table of what can be asked, and the way of every request but a verification.
//!
//! A row names method, path, the scopes of which one is needed, whether there is a query and a
//! body, and the handler; router, authorization, OpenAPI check and coverage tests all read it. A
//! row cannot be written without saying who may ask.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{HeaderMap, Method, Request, StatusCode, Version};

use super::auth::{self, Caller, Connection};
use super::body::Unreadable;
use super::call::{Answer, Call, Reply};
use super::fields::Fields;
use super::{
    apis, applications, body, discovery, error, keys, once, operational, organizations, token,
    users, verify,
};
use crate::App;
use crate::directory::Tenant;
use crate::error::{Error, Kind, Result, UNCONFIRMED};
use crate::ops::{Action, Actor, Context};
use crate::scope::Scope::{self, *};
use crate::store::audit::NewRecord;

pub(super) type Answering = Pin<Box<dyn Future<Output = Result<Reply>> + Send>>;

/// Who may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Public,
    /// Who holds one of these scopes.
    Scopes(&'static [Scope]),
}

/// Whether a request carries a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// It must not.
    None,
    /// A JSON object, or nothing.
    Optional,
    /// A JSON object.
    Required,
    /// A JSON object of up to the larger limit for imports.
    Import,
    /// A form: the token endpoint.
    Form,
}

/// What carries out a request.
#[derive(Clone, Copy)]
enum Handler {
    /// A handler of a resource.
    Call(fn(Call) -> Answering),
    /// The token endpoint, whose errors have words of their own.
    Token,
    /// Verification, which has a way of its own.
    Verify,
}

/// One thing that can be asked.
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, with parameters in braces.
    pub path: &'static str,
    /// Who may ask.
    pub access: Access,
    /// Whether there are query parameters.
    pub has_query: bool,
    /// Whether there is a body.
    pub payload: Payload,
    handler: Handler,
}

impl Route {
    /// Whether the request changes something.
    pub fn is_write(&self) -> bool {
        matches!(self.access, Access::Scopes(_))
            && self.method != Method::GET
            && !self.path.contains("/verify")
    }
}

macro_rules! routes {
    (@query q) => { true };
    (@query _) => { false };
    (@access public) => { Access::Public };
    (@access [$($scope:ident)|+]) => { Access::Scopes(&[$($scope),+]) };
    (@handler token) => { Handler::Token };
    (@handler verify) => { Handler::Verify };
    (@handler $resource:ident :: $handler:ident) => {
        Handler::Call(|call| Box::pin($resource::$handler(call)))
    };
    ($($method:ident $path:literal $access:tt $query:tt $payload:ident
        => $resource:ident $(:: $handler:ident)?;)*) => {
        /// Every route.
        pub static ROUTES: &[Route] = &[
            $(Route {
                method: Method::$method,
                path: $path,
                access: routes!(@access $access),
                has_query: routes!(@query $query),
                payload: Payload::$payload,
                handler: routes!(@handler $resource $(:: $handler)?),
            },)*
        ];
    };
}

routes! {
    POST "/oauth2/token" public _ Form => token;
    GET "/.well-known/jwks" public _ None => discovery::jwks;
    GET "/.well-known/jwks.json" public _ None => discovery::jwks;
    GET "/.well-known/openid-configuration" public _ None => discovery::metadata;
    GET "/.well-known/oauth-authorization-server" public _ None => discovery::metadata;
    GET "/healthz" public _ None => operational::health;
    GET "/readyz" public _ None => operational::ready;
    GET "/metrics" [ReadMetrics] _ None => operational::metrics;
    GET "/openapi.json" public _ None => operational::openapi;
    GET "/reference" public _ None => operational::reference;

    GET "/api/v1/api_keys" [ReadApiKeys] q None => keys::list;
    POST "/api/v1/api_keys" [CreateApiKeys] _ Required => keys::issue;
    POST "/api/v1/api_keys/import" [CreateApiKeys] _ Import => keys::import;
    POST "/api/v1/api_keys/verify" [ReadApiKeys | VerifyApiKeys] _ Required => verify;
    POST "/api/v1/api_keys/verify_batch" [ReadApiKeys | VerifyApiKeys] _ Import => verify::batch;
    GET "/api/v1/api_keys/{key_id}" [ReadApiKeys] _ None => keys::show;
    PUT "/api/v1/api_keys/{key_id}" [UpdateApiKeys] _ Optional => keys::rotate;
    PATCH "/api/v1/api_keys/{key_id}" [UpdateApiKeys] _ Required => keys::update;
    DELETE "/api/v1/api_keys/{key_id}" [DeleteApiKeys] _ None => keys::revoke;

    GET "/api/v1/apis" [ReadApis] q None => apis::list;
    POST "/api/v1/apis" [CreateApis] _ Required => apis::create;
    GET "/api/v1/apis/{api_id}" [ReadApis] _ None => apis::show;
    DELETE "/api/v1/apis/{api_id}" [DeleteApis] _ None => apis::delete;
    GET "/api/v1/apis/{api_id}/scopes" [ReadApiScopes] _ None => apis::list_scopes;
    POST "/api/v1/apis/{api_id}/scopes" [CreateApiScopes] _ Required => apis::create_scope;
    GET "/api/v1/apis/{api_id}/scopes/{scope_id}" [ReadApiScopes] _ None => apis::show_scope;
    PATCH "/api/v1/apis/{api_id}/scopes/{scope_id}" [UpdateApiScopes] _ Optional
        => apis::update_scope;
    DELETE "/api/v1/apis/{api_id}/scopes/{scope_id}" [DeleteApisScopes] _ None
        => apis::delete_scope;
    PATCH "/api/v1/apis/{api_id}/applications" [UpdateApis] _ Required => apis::connect;
    POST "/api/v1/apis/{api_id}/applications/{application_id}/scopes/{scope_id}"
        [CreateApiApplicationScopes] _ None => apis::grant;
    DELETE "/api/v1/apis/{api_id}/applications/{application_id}/scopes/{scope_id}"
        [DeleteApisApplicationScopes] _ None => apis::take;

    GET "/api/v1/applications" [ReadApplications] q None => applications::list;
    POST "/api/v1/applications" [CreateApplications] _ Required => applications::create;
    GET "/api/v1/applications/{application_id}" [ReadApplications] _ None => applications::show;
    PATCH "/api/v1/applications/{application_id}" [UpdateApplications] _ Optional
        => applications::update;
    DELETE "/api/v1/applications/{application_id}" [DeleteApplications] _ None
        => applications::delete;
    POST "/api/v1/applications/{application_id}/secret" [UpdateApplications] _ Optional
        => applications::rotate_secret;

    GET "/api/v1/users" [ReadUsers] q None => users::list;
    GET "/api/v1/user" [ReadUsers] q None => users::show;
    POST "/api/v1/user" [CreateUsers] _ Optional => users::create;
    PATCH "/api/v1/user" [UpdateUsers] q Optional => users::update;
    DELETE "/api/v1/user" [DeleteUsers] q None => users::delete;

    GET "/api/v1/organizations" [ReadOrganizations] q None => organizations::list;
    GET "/api/v1/organization" [ReadOrganizations] q None => organizations::show;
    POST "/api/v1/organization" [CreateOrganizations] _ Required => organizations::create;
    PATCH "/api/v1/organization/{org_code}" [UpdateOrganizations] q Optional
        => organizations::update;
    DELETE "/api/v1/organization/{org_code}" [DeleteOrganizations] _ None
        => organizations::delete;
    GET "/api/v1/organizations/{org_code}/users" [ReadOrganizationUsers] q None
        => organizations::list_members;
    POST "/api/v1/organizations/{org_code}/users" [CreateOrganizationUsers] _ Optional
        => organizations::add_members;
    PATCH "/api/v1/organizations/{org_code}/users" [UpdateOrganizationUsers] _ Optional
        => organizations::update_members;
    DELETE "/api/v1/organizations/{org_code}/users/{user_id}" [DeleteOrganizationUsers] _ None
        => organizations::remove_member;
}

/// The routes of one path.
type Methods = Vec<&'static Route>;

static ROUTER: LazyLock<matchit::Router<Methods>> = LazyLock::new(|| {
    let mut paths: HashMap<&str, Methods> = HashMap::new();
    for route in ROUTES {
        paths.entry(route.path).or_default().push(route);
    }
    let mut router = matchit::Router::new();
    for (path, methods) in paths {
        router.insert(path, methods).expect("the paths of the route table do not contradict");
    }
    router
});

/// Answers a request.
pub(crate) async fn answer(
    app: &Arc<App>,
    connection: &Connection,
    request: Request<Incoming>,
) -> Answer {
    let began = app.clock().boot_us();
    let (head, body) = request.into_parts();
    let request_id = request_id(app, &head.headers);
    let matched = ROUTER.at(head.uri.path());
    // RFC 9110 §9.3.2: HEAD is GET without the content.
    let is_head = head.method == Method::HEAD;
    let method = if is_head { &Method::GET } else { &head.method };
    let route = matched.as_ref().ok().and_then(|m| m.value.iter().find(|r| r.method == *method));
    let mut answer = match (&matched, route) {
        (Err(_), _) => error::plain(StatusCode::NOT_FOUND, "NOT_FOUND", "there is no such route"),
        (Ok(matched), None) => method_not_allowed(matched.value),
        (Ok(matched), Some(route)) => {
            let parameters = matched.params.iter().map(|(name, value)| {
                let decoded = percent_encoding::percent_decode_str(value).decode_utf8_lossy();
                (name.to_owned(), decoded.into_owned())
            });
            let request = Incomplete {
                connection,
                version: head.version,
                headers: &head.headers,
                authority: head.uri.authority().map(hyper::http::uri::Authority::as_str),
                parameters: parameters.collect(),
                query: head.uri.query().unwrap_or(""),
                request_id: &request_id,
            };
            run(app, route, request, body).await
        }
    };
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        answer.headers_mut().insert("x-request-id", value);
    }
    if is_head {
        let length = answer.body().size_hint().lower();
        answer.headers_mut().insert(CONTENT_LENGTH, length.into());
        *answer.body_mut() = Full::default();
    }
    let status = answer.status().as_u16();
    app.metrics.answered(status);
    // The route's template, never the path itself: paths hold owners' ids.
    let route = route.map_or("", |route| route.path);
    // Machines ask these every second.
    let is_probe = matches!(route, "/healthz" | "/readyz" | "/metrics");
    if !is_probe || !answer.status().is_success() {
        tracing::info!(
            target: "keyward::request",
            method = %head.method,
            route,
            status,
            request_id,
            duration_us = app.clock().boot_us() - began,
        );
    }
    answer
}

/// A request before its caller is known and its body read.
struct Incomplete<'a> {
    connection: &'a Connection,
    version: Version,
    headers: &'a HeaderMap,
    authority: Option<&'a str>,
    parameters: Vec<(String, String)>,
    query: &'a str,
    request_id: &'a str,
}

fn method_not_allowed(methods: &[&Route]) -> Answer {
    let mut answer = error::plain(
        StatusCode::METHOD_NOT_ALLOWED,
        "METHOD_NOT_ALLOWED",
        "this route does not take this method",
    );
    let mut allow: Vec<&str> = methods.iter().map(|route| route.method.as_str()).collect();
    if allow.contains(&"GET") {
        allow.push("HEAD");
    }
    if let Ok(value) = HeaderValue::from_str(&allow.join(", ")) {
        answer.headers_mut().insert(ALLOW, value);
    }
    answer
}

async fn run(
    app: &Arc<App>,
    route: &'static Route,
    request: Incomplete<'_>,
    body: Incoming,
) -> Answer {
    let directory = app.shared.directory.load_full();
    let host = match host(request.version, request.authority, request.headers) {
        Ok(host) => host,
        Err(refused) => return error::answer(&refused),
    };
    let Some(tenant) = directory.by_host(host).cloned() else {
        // Health and readiness are asked by machines that know no environment's name.
        return match route.path {
            "/healthz" => operational::healthy().into_answer(),
            "/readyz" => {
                operational::readiness(app).map_or_else(|e| error::answer(&e), Reply::into_answer)
            }
            _ => error::nobody_there(&directory),
        };
    };
    if let Handler::Verify = route.handler {
        return verify::answer_for(
            app,
            request.connection,
            &directory,
            &tenant,
            request.headers,
            body,
        )
        .await;
    }
    let context = match context(app, route, &request, &directory, &tenant) {
        Ok(context) => context,
        Err(denied) => return error::answer(&denied),
    };
    if let Err(unknown) = check_query(route, request.query) {
        return refusal(route, &unknown);
    }
    let max = match route.payload {
        Payload::None if route.access != Access::Public => 0,
        Payload::Import => app.limits.import_body_bytes_max,
        Payload::None | Payload::Optional | Payload::Required | Payload::Form => {
            app.limits.body_bytes_max
        }
    };
    let body = match body::read(request.connection, body, max, app.limits.idle_timeout).await {
        Ok(body) => body,
        // What probes send along with a public question does not matter.
        Err(Unreadable::TooLarge) if takes_nothing(route) => Bytes::new(),
        Err(Unreadable::TooLarge) if route.payload == Payload::None => {
            return error::answer(&Error::invalid("BAD_BODY", "this route takes no body"));
        }
        Err(Unreadable::TooLarge) if route.payload == Payload::Form => {
            let message = too_large_message(max);
            return error::oauth(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request", &message);
        }
        Err(Unreadable::TooLarge) => return too_large(max),
        Err(Unreadable::Broken) => {
            return refusal(route, &Error::invalid("BAD_BODY", "the body did not arrive whole"));
        }
    };
    if let Some(refused) = check_payload(route, request.headers, &body) {
        return refused;
    }
    let call = Call {
        app: Arc::clone(app),
        env: tenant.row.env,
        tenant,
        context,
        parameters: request.parameters,
        query_text: request.query.to_owned(),
        body,
    };
    match route.handler {
        Handler::Token => token::issue(call, request.headers).await,
        Handler::Verify => error::plain(StatusCode::NOT_FOUND, "NOT_FOUND", "no such route"),
        Handler::Call(handler) if route.is_write() => {
            once::write(route, handler, call, request.headers).await
        }
        Handler::Call(handler) => finish(handler(call).await),
    }
}

/// Whether everybody may ask and nothing can be said with it. Such a route does not mind what is
/// sent along: probes and caches add things of their own.
fn takes_nothing(route: &Route) -> bool {
    route.access == Access::Public && route.payload == Payload::None
}

/// Refuses parameters of a query where there are none.
fn check_query(route: &Route, query: &str) -> Result<()> {
    if route.has_query || takes_nothing(route) {
        return Ok(());
    }
    Fields::of_query(query)?.finish()
}

/// A refusal in the words of the route: the token endpoint has its own.
fn refusal(route: &Route, error: &Error) -> Answer {
    match route.payload {
        Payload::Form => error::oauth(StatusCode::BAD_REQUEST, "invalid_request", &error.public),
        Payload::None | Payload::Optional | Payload::Required | Payload::Import => {
            error::answer(error)
        }
    }
}

/// The 413 answer, with the limit.
pub(crate) fn too_large(max: usize) -> Answer {
    error::plain(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", &too_large_message(max))
}

fn too_large_message(max: usize) -> String {
    format!("the body is larger than {max} bytes")
}

/// The host that a request is for: the target's own, else the header's; empty when it names none.
///
/// # Errors
/// `Invalid` when it names two (RFC 9112 §3.2, RFC 9113 §8.3.1): a proxy in front may have taken
/// the other for the one that counts. In HTTP/1.1 the absolute form of a target counts, whatever
/// the header says (RFC 9112 §3.2.2).
pub(crate) fn host<'r>(
    version: Version,
    authority: Option<&'r str>,
    headers: &'r HeaderMap,
) -> Result<&'r str> {
    let mut named = headers.get_all(HOST).iter();
    let (first, second) = (named.next(), named.next());
    let differs = authority.zip(first).is_some_and(|(authority, host)| {
        !authority.as_bytes().eq_ignore_ascii_case(host.as_bytes())
    });
    if second.is_some() || (version == Version::HTTP_2 && differs) {
        return Err(Error::invalid("BAD_HOST", "the request names more than one host"));
    }
    Ok(authority.or_else(|| first.and_then(|value| value.to_str().ok())).unwrap_or(""))
}

/// Finds out who asks and whether they may, and records who may not.
fn context(
    app: &App,
    route: &Route,
    request: &Incomplete<'_>,
    directory: &crate::directory::Directory,
    tenant: &Tenant,
) -> Result<Context> {
    let mut context = Context {
        actor: Actor::Stranger,
        address: request.connection.address,
        user_agent: header_text(request.headers, USER_AGENT.as_str()),
        request_id: request.request_id.to_owned(),
        idempotency: None,
    };
    let Access::Scopes(scopes) = route.access else { return Ok(context) };
    let denied = match auth::caller(app, request.connection, directory, tenant, request.headers) {
        Ok(Caller { actor, scopes: held }) => {
            context.actor = actor.clone();
            if (Caller { actor, scopes: held }).may(scopes) {
                return Ok(context);
            }
            let words: Vec<&str> = scopes.iter().map(|scope| scope.word()).collect();
            let public = format!("this needs the scope {}", words.join(" or "));
            Error::forbidden("INSUFFICIENT_SCOPE", public)
        }
        Err(error) => error,
    };
    app.metrics.denied.push(NewRecord::of_access(
        tenant.row.env,
        app.clock().now_us(),
        &context,
        Action::CallDenied,
        "route",
        format!("{} {}", route.method, route.path),
        Some(denied.code.to_owned()),
    ));
    Err(denied)
}

/// Why a body cannot be what the route takes, if it cannot.
fn check_payload(route: &Route, headers: &HeaderMap, body: &Bytes) -> Option<Answer> {
    let bad = |message: &str| Some(error::answer(&Error::invalid("BAD_BODY", message)));
    match route.payload {
        // The token endpoint reads its own content type, in its own words.
        Payload::Form | Payload::None => return None,
        Payload::Optional if body.is_empty() => return None,
        Payload::Required | Payload::Import if body.is_empty() => {
            return bad("the body must be a JSON object");
        }
        Payload::Optional | Payload::Required | Payload::Import => {}
    }
    if is_json(headers) {
        return None;
    }
    let message = "send the body as application/json";
    Some(error::plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", message))
}

/// Whether the body says that it is JSON.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|text| text.split(';').next()).unwrap_or("");
    media_type.trim().eq_ignore_ascii_case("application/json")
}

/// The handler's result as an answer; a failure of ours is logged here, once.
pub(super) fn finish(result: Result<Reply>) -> Answer {
    match result {
        Ok(reply) => reply.into_answer(),
        Err(failure) => {
            // One without a cause was logged where it happened, and so was an unconfirmed change.
            let is_news = failure.kind == Kind::Internal
                || (failure.code != UNCONFIRMED && !failure.chain().is_empty());
            if is_news && matches!(failure.kind, Kind::Internal | Kind::Unavailable) {
                tracing::error!(cause = failure.chain(), "a request failed: {failure}");
            }
            error::answer(&failure)
        }
    }
}

/// The caller's own request id if it is a sane one, else a new one. It goes to the log and is
/// stored, so what has the form of a key is none.
fn request_id(app: &App, headers: &HeaderMap) -> String {
    let given = header_text(headers, "x-request-id").filter(|id| {
        (1..=64).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && keyward_core::shape(id) == keyward_core::Shape::Foreign
    });
    given.unwrap_or_else(|| {
        uuid::Uuid::from_bytes(app.store.entropy.id(app.clock().now_us())).to_string()
    })
}

fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

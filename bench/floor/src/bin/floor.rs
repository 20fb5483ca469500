//! The least a hyper server can do for a verify call: read the whole body, answer a constant.
//! It holds no opinion on what the constant is. `bench/run` takes it from a real answer, so that
//! both servers put the same number of bytes on the wire.
//!
//! Usage: `floor WORKERS BODY_FILE date|no-date [HEADER…]`, each header as `name: value`. hyper
//! adds `content-length` itself, and `date` where it is asked to. The port is the system's choice;
//! the first line of standard output is the address.

use std::convert::Infallible;
use std::error::Error;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(workers), Some(body_file), Some(date)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: floor WORKERS BODY_FILE date|no-date [HEADER…]".into());
    };
    let body = Bytes::from(std::fs::read(body_file)?);
    let mut headers = HeaderMap::new();
    for line in arguments {
        let (name, value) = line
            .split_once(": ")
            .ok_or("a header has the shape `name: value`")?;
        headers.append(
            HeaderName::try_from(name)?,
            HeaderValue::try_from(value.to_owned())?,
        );
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers.parse()?)
        .enable_all()
        .build()?
        .block_on(serve(headers, body, date == "date"))
}

async fn serve(headers: HeaderMap, body: Bytes, with_date: bool) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (headers, body) = (headers.clone(), body.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, headers.clone(), body.clone()));
            // A client that goes away is how every run ends; there is nobody to tell.
            let _ = http1::Builder::new()
                .auto_date_header(with_date)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response<Full<Bytes>>, Infallible> {
    // A body cut short is answered like a whole one: the connection is gone anyway.
    let _ = request.into_body().collect().await;
    let mut response = Response::new(Full::new(body));
    *response.headers_mut() = headers;
    Ok(response)
}

//! Native TLS: what is spoken, and what is said about files that will not do.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::*;

/// A certificate for [`HOST`] by an authority of the test's own, in files.
struct Certificate {
    cert: String,
    key: String,
    roots: Arc<RootCertStore>,
}

impl Certificate {
    fn new(folder: &Path) -> Self {
        let authority_key = KeyPair::generate().expect("a key");
        let mut authority = CertificateParams::new(Vec::new()).expect("no names");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = authority.self_signed(&authority_key).expect("signed");
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).expect("a root");
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(vec![HOST.to_owned()]).expect("a name");
        let leaf = leaf.signed_by(&key, &issuer).expect("signed");
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("written");
            path.to_string_lossy().into_owned()
        };
        Self {
            cert: write("cert.pem", leaf.pem()),
            key: write("key.pem", key.serialize_pem()),
            roots: Arc::new(roots),
        }
    }

    /// A connection that offers `protocols`.
    fn connect(
        &self,
        address: SocketAddr,
        protocols: &[&[u8]],
    ) -> Option<StreamOwned<ClientConnection, std::net::TcpStream>> {
        let mut config = ClientConfig::builder()
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from(HOST).expect("a name");
        let mut tls = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut stream = std::net::TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).ok()?;
        }
        Some(StreamOwned::new(tls, stream))
    }
}

/// A server with TLS, once it is ready.
fn serve(site: &Site, certificate: &Certificate) -> Process {
    let flags = ["--tls-cert", &certificate.cert, "--tls-key", &certificate.key];
    let command = site.serve_command(&flags);
    let mut process = Process::spawn(command, site.address, &site.parent.path().join("log"));
    until("the server is ready", || {
        let ended = process.child.try_wait().expect("a child");
        assert!(ended.is_none(), "{}", process.log());
        let stream = certificate.connect(site.address, &[b"http/1.1"])?;
        let reply = Wire::over(stream).ask("GET", "/readyz", None, "").ok()?;
        (reply.status == 200).then_some(())
    });
    process
}

#[test]
fn keys_are_verified_over_tls_with_http_1_and_2_by_alpn() {
    let site = Site::new(Engine::Sqlite);
    let certificate = Certificate::new(site.parent.path());
    let process = serve(&site, &certificate);
    for (offered, agreed) in [
        (&[b"h2".as_slice(), b"http/1.1"][..], Some(b"h2".as_slice())),
        (&[b"http/1.1"], Some(b"http/1.1")),
        (&[b"http/1.1", b"h2"], Some(b"h2")),
        (&[], None),
    ] {
        let stream = certificate.connect(process.address, offered).expect("a handshake");
        assert_eq!(stream.conn.alpn_protocol(), agreed);
    }
    let stream = certificate.connect(process.address, &[b"http/1.1"]).expect("a handshake");
    let mut wire = Wire::over(stream);
    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "client_credentials")
        .append_pair("client_id", &site.client_id)
        .append_pair("client_secret", &site.client_secret)
        .append_pair("audience", &format!("http://{HOST}/api"))
        .finish();
    let answer = wire.form("/oauth2/token", &form).expect("an answer").expect(200);
    let token = answer["access_token"].as_str().expect("a token").to_owned();
    site.api();
    let key = site.key("ann");
    assert!(wire.verify(&token, &key.secret).expect("an answer").is_valid());
    assert!(over_http_2(&certificate, process.address, &token, &key.secret).contains(&key.id));
    // Nobody is answered without TLS on this port, least of all with a token.
    let plain = process.wire().verify(&token, &key.secret);
    assert!(plain.is_err(), "{plain:?}");
    // A client that says nothing, or nonsense, does not keep others out.
    let silent = process.wire();
    let stream = certificate.connect(process.address, &[b"http/1.1"]).expect("a handshake");
    let health = Wire::over(stream).ask("GET", "/healthz", None, "").expect("an answer");
    assert_eq!(health.status, 200);
    drop(silent);
    process.terminate();
}

/// Verifies a key over HTTP/2; the body of the answer.
fn over_http_2(
    certificate: &Certificate,
    address: SocketAddr,
    token: &str,
    secret: &str,
) -> String {
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let mut config = ClientConfig::builder()
        .with_root_certificates(Arc::clone(&certificate.roots))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        let name = ServerName::try_from(HOST).expect("a name");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await.expect("a handshake");
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("speaks HTTP/2");
        tokio::spawn(connection);
        let request = hyper::Request::post(format!("https://{HOST}/api/v1/api_keys/verify"))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .body(Full::new(bytes::Bytes::from(format!("{{\"api_key\":\"{secret}\"}}"))));
        let answer = sender.send_request(request.expect("a request")).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 200);
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        String::from_utf8(body.to_vec()).expect("a text")
    })
}

#[test]
fn files_that_are_no_certificate_or_key_are_named_and_nothing_is_made() {
    let site = Site::empty(None);
    let folder = site.parent.path();
    let good = Certificate::new(folder);
    let other = folder.join("other");
    std::fs::create_dir(&other).expect("a folder");
    let other = Certificate::new(&other);
    let file = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).expect("written");
        folder.join(name).to_string_lossy().into_owned()
    };
    let key = std::fs::read_to_string(&good.key).expect("a key");
    let canary = key.lines().nth(1).expect("a line of the key").to_owned();
    let (empty, noise) = (file("empty", ""), file("noise", &format!("{canary}\n")));
    let torn = file("torn", &key[..key.len() / 2]);
    let missing = folder.join("missing").to_string_lossy().into_owned();
    for (cert, key, named) in [
        (&missing, &good.key, &missing),
        (&good.cert, &missing, &missing),
        (&empty, &good.key, &empty),
        (&good.cert, &empty, &empty),
        (&noise, &good.key, &noise),
        (&good.cert, &noise, &noise),
        (&good.cert, &torn, &torn),
        (&good.key, &good.key, &good.key),
        (&good.cert, &good.cert, &good.cert),
        (&good.cert, &other.key, &good.cert),
    ] {
        let output = site.serve_command(&["--tls-cert", cert, "--tls-key", key]).output();
        let output = output.expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{cert} {key}: {said}");
        assert!(said.contains(named.as_str()), "{cert} {key}: {said}");
        assert!(!said.contains(&canary), "{said}");
    }
    for one in [["--tls-cert", &good.cert], ["--tls-key", &good.key]] {
        let output = site.serve_command(&one).output().expect("runs");
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("needs the"));
    }
    assert!(!site.folder.join("keyward.db").exists(), "a store was made all the same");
}

#[test]
fn doctor_warns_two_weeks_before_the_certificate_ends() {
    let site = Site::new(Engine::Sqlite);
    let now = keyward::clock::Clock::system().wall_us();
    for (days, state) in [(30, "ok"), (13, "warn"), (-2, "fail")] {
        let on = keyward::clock::rfc3339(now + days * 24 * 3_600 * 1_000_000);
        let part = |from, to| on[from..to].parse::<u8>().expect("a number");
        let year = on[..4].parse().expect("a year");
        let mut params = CertificateParams::new(vec![HOST.to_owned()]).expect("a name");
        params.not_after = rcgen::date_time_ymd(year, part(5, 7), part(8, 10));
        let key = KeyPair::generate().expect("a key");
        let (cert, key_file) = (site.parent.path().join("c.pem"), site.parent.path().join("k.pem"));
        std::fs::write(&cert, params.self_signed(&key).expect("signed").pem()).expect("written");
        std::fs::write(&key_file, key.serialize_pem()).expect("written");
        let output = site
            .command(&["doctor", "--json"])
            .env("KEYWARD_TLS_CERT", &cert)
            .env("KEYWARD_TLS_KEY", &key_file)
            .output()
            .expect("runs");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let checks = report["checks"].as_array().expect("a list");
        let found = checks.iter().find(|one| one["check"] == "certificate").expect("a check");
        assert_eq!(found["state"], state, "{found}");
        assert!(found["message"].as_str().expect("a text").contains(&on[..10]), "{found}");
        assert_eq!(report["is_healthy"], state != "fail");
        let descriptors = checks.iter().find(|one| one["check"] == "descriptors");
        assert!(descriptors.expect("a check")["message"].is_string());
    }
}

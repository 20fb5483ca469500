//! The contract for scripts: `keyward init`, the empty store, and the public URL.

use super::*;

/// The issuer that a server tells under `host`.
fn issuer(process: &Process, host: &str) -> Option<String> {
    let request = format!("GET /.well-known/openid-configuration HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let reply = process.wire().send(request.as_bytes()).expect("an answer");
    (reply.status == 200).then(|| reply.json()["issuer"].as_str().expect("an issuer").to_owned())
}

on_each_engine! {
    fn init_prints_one_object_and_nothing_else_once(engine) {
        let site = Site::empty_on(engine);
        // An existing empty folder is fine.
        std::fs::create_dir(&site.folder).expect("a folder");
        let init = ["init", "--public-url", "https://keys.example.com/", "--json"];
        let made = site.command(&init).env("KEYWARD_LOG", "trace").output().expect("runs");
        assert!(made.status.success());
        let mut documents = serde_json::Deserializer::from_slice(&made.stdout).into_iter::<Value>();
        let object = documents.next().expect("one").expect("JSON");
        assert!(documents.next().is_none(), "more than one document");
        for field in ["client_id", "client_secret", "issuer"] {
            assert!(object[field].as_str().is_some_and(|text| !text.is_empty()), "{field}");
        }
        assert_eq!(object["issuer"], "https://keys.example.com");
        // A secret is seen once: not in what goes to the log, whatever the level.
        let secret = object["client_secret"].as_str().expect("a text");
        assert!(!String::from_utf8_lossy(&made.stderr).contains(secret));
        let again = site.run(&init);
        assert_eq!(again.status.code(), Some(1));
        assert!(again.stdout.is_empty());
        let said = String::from_utf8_lossy(&again.stderr);
        assert!(said.contains("initialised already"), "{said}");
        assert_eq!(site.number("select count(*) from applications"), 1);
    }
}

on_each_engine! {
    fn serve_on_an_empty_store_initialises_it_and_prints_no_credentials(engine) {
        let mut site = Site::empty_on(engine);
        let process = site.serve();
        let said = process.log();
        let list = site.json(&["app", "list"]);
        let app = list["applications"][0]["id"].as_str().expect("an id").to_owned();
        // It says how to get credentials, and what it says works.
        let advice = format!("keyward app rotate-secret {app} --data {}", site.folder.display());
        assert!(said.contains(&advice), "{said}");
        assert!(!said.contains("client_secret") && !said.contains("\"issuer\""), "{said}");
        // No word of the log is a secret: those are 48 letters and digits.
        let is_secret = |word: &str| {
            word.len() >= 40 && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        assert!(!said.split(|c: char| !c.is_ascii_alphanumeric()).any(is_secret), "{said}");
        let rotated = site.json(&["app", "rotate-secret", &app]);
        site.client_id = app;
        site.client_secret = rotated["client_secret"].as_str().expect("a secret").to_owned();
        assert!(is_secret(&site.client_secret), "the check above looks for the wrong thing");
        // Never given, the public URL is http:// and the listen address.
        let address = site.address.to_string();
        assert_eq!(issuer(&process, &address), Some(format!("http://{address}")));
        process.terminate();
    }
}

on_each_engine! {
    fn a_busy_port_leaves_no_store_behind(engine) {
        let site = Site::empty_on(engine);
        let _taken = TcpListener::bind(site.address).expect("the port is free");
        let refused = Ran::of(site.serve_command(&[]).output().expect("the binary runs"));
        assert_eq!(refused.code, Some(1));
        assert!(refused.err.contains("cannot listen on"), "{}", refused.err);
        for file in ["secrets.toml", "keyward.db"] {
            assert!(!site.folder.join(file).exists(), "{file}");
        }
        assert_eq!(site.ran(&["app", "list"]).code, Some(1));
    }
}

/// The base URL of the environment `default`.
fn base_url(site: &Site) -> String {
    let environments = site.json(&["env", "list"]);
    environments["environments"][0]["public_url"].as_str().expect("a URL").to_owned()
}

/// Serves at another address.
fn serve_at(site: &mut Site, flags: &[&str]) -> Process {
    site.address = free_address();
    site.serve_with(flags)
}

on_each_engine! {
    fn a_base_url_that_nobody_gave_goes_with_the_listen_address_until_one_is_given(engine) {
        let mut site = Site::empty_on(engine);
        let records = |site: &Site| {
            site.number("select count(*) from audit_log where action = 'environment.updated'")
        };
        site.serve().terminate();
        assert_eq!((base_url(&site), records(&site)), (format!("http://{}", site.address), 0));
        let process = serve_at(&mut site, &[]);
        let listen = format!("http://{}", site.address);
        assert_eq!(issuer(&process, &site.address.to_string()), Some(listen.clone()));
        assert_eq!(records(&site), 1);
        assert!(process.log().contains("--public-url"), "{}", process.log());
        process.terminate();
        // The same one, given: from now on it stays.
        site.serve_with(&["--public-url", &listen]).terminate();
        serve_at(&mut site, &[]).terminate();
        assert_eq!((base_url(&site), records(&site)), (listen, 1));
    }
}

on_each_engine! {
    fn a_port_that_was_taken_for_port_0_is_in_the_base_url(engine) {
        let site = Site::empty_on(engine);
        let log = site.parent.path().join("log");
        let command = site.command(&["serve", "--listen", "127.0.0.1:0"]);
        let process = Process::spawn(command, site.address, &log);
        let served = until("the server tells where it is", || {
            let log = process.log();
            let (_, rest) = log.split_once("serving at ")?;
            rest.split_whitespace().next().map(str::to_owned)
        });
        assert_eq!(base_url(&site), served);
        assert!(!served.ends_with(":0"), "{served}");
    }
}

on_each_engine! {
    fn another_public_url_is_an_audited_change_and_the_same_is_none(engine) {
        let site = Site::new(engine);
        let records = || site.number("select count(*) from audit_log where change_seq is not null");
        let process = site.serve();
        assert_eq!(issuer(&process, HOST), Some(format!("http://{HOST}")));
        let before = records();
        process.terminate();
        for (url, host, records_more) in [
            (None, HOST, 0),
            (Some("https://new.example"), "new.example", 1),
            (Some("https://new.example/"), "new.example", 1),
            (None, "new.example", 1),
            (Some("http://keys.test"), HOST, 2),
        ] {
            let mut command = site.serve_command(&[]);
            command.args(url.iter().flat_map(|url| ["--public-url", url]));
            let log = site.parent.path().join("log");
            let mut process = Process::spawn(command, site.address, &log);
            process.wait_until_ready();
            assert!(issuer(&process, host).is_some_and(|issuer| issuer.contains(host)), "{url:?}");
            assert_eq!(records() - before, records_more, "{url:?}");
            process.terminate();
        }
    }
}

use serde_json::json;

use super::*;

#[test]
fn each_handler_is_read_with_its_defaults() {
    let text = r#"{
        "/app-health/web/readinessProbe": {"httpGet": {"path": "ready?x=1", "port": 8443,
            "scheme": "HTTPS", "host": "", "httpHeaders": [
                {"name": "X-Probe", "value": "y"}, {"name": "host", "value": "shop.example"},
                {"name": "Host", "value": "second"}, {"name": "Content-Length", "value": "9"}]},
            "timeoutSeconds": 5},
        "/app-health/web/livenessProbe": {"httpGet": {"port": 80}},
        "/app-health/db-0/livenessProbe": {"tcpSocket": {"port": 5432}},
        "/app-health/web/startupProbe": {"grpc": {"port": 9000, "service": "x"}},
        "/app-health/api/startupProbe": {"grpc": {"port": 1, "service": null}}
    }"#;
    let probes = read(text).unwrap();
    let Handler::HttpGet(get) = &probes[0].handler else { panic!("{probes:?}") };
    assert_eq!((get.port, get.path.as_str(), get.https), (8443, "/ready?x=1", true));
    assert_eq!(get.host.as_ref().unwrap(), "shop.example");
    assert_eq!(get.headers.len(), 1, "what is the connection's is not sent: {get:?}");
    assert!(!format!("{get:?}").contains("shop.example"), "a value may be a password");
    assert_eq!(probes[0].timeout, Duration::from_secs(5));
    let Handler::HttpGet(get) = &probes[1].handler else { panic!("{probes:?}") };
    assert_eq!((get.path.as_str(), get.https, &get.host), ("/", false, &None));
    assert_eq!(probes[1].timeout, Duration::from_secs(1));
    assert_eq!(probes[2].handler, Handler::TcpSocket { port: 5432 });
    assert_eq!(probes[3].handler, Handler::Grpc { port: 9000, service: "x".into() });
    assert_eq!(probes[4].handler, Handler::Grpc { port: 1, service: "".into() });
    assert_eq!(read("{}"), Ok(Vec::new()));
}

/// The one problem of a probe of `/app-health/web/livenessProbe`.
fn problem(probe: &str) -> String {
    let text = format!(r#"{{"/app-health/web/livenessProbe": {probe}}}"#);
    let problems = read(&text).expect_err(probe);
    assert_eq!(problems.len(), 1, "{problems:?}");
    let said = problems[0].to_string();
    assert!(said.starts_with("/app-health/web/livenessProbe"), "{said}");
    said
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (probe, place, cure) in [
        (r#"{"httpGet": {"port": 0}}"#, "httpGet.port", "from 1 to 65535"),
        (r#"{"httpGet": {"port": 65536}}"#, "httpGet.port", "from 1 to 65535"),
        (r#"{"tcpSocket": {"port": -1}}"#, "tcpSocket.port", "from 1 to 65535"),
        (r#"{"grpc": {"port": "http"}}"#, "grpc.port", "name means nothing here"),
        (r#"{"httpGet": {"path": "/"}}"#, "httpGet", "missing field `port`"),
        (r#"{"httpGet": {"port": 1, "pth": "/"}}"#, "httpGet", "unknown field `pth`"),
        (r#"{"httpGet": {"port": 1, "port": 2}}"#, "httpGet", "duplicate field `port`"),
        (r#"{"httpGet": {"port": 1, "scheme": "http"}}"#, "scheme", "`HTTP`"),
        (r#"{"httpGet": {"port": 1, "path": "//a/b"}}"#, "httpGet.path", "one slash"),
        (r#"{"httpGet": {"port": 1, "host": "10.0.0.1"}}"#, "httpGet.host", "httpHeaders"),
        (r#"{"tcpSocket": {"port": 1, "host": "a"}}"#, "tcpSocket.host", "leave that probe"),
        (r#"{"grpc": {"port": 1, "host": "a"}}"#, "grpc", "unknown field `host`"),
        (
            r#"{"httpGet": {"port": 1, "httpHeaders": [{"name": "a b", "value": ""}]}}"#,
            "httpHeaders[0].name",
            "`a b`",
        ),
        (
            r#"{"httpGet": {"port": 1, "httpHeaders": [{"name": "a", "value": "s\r\nb"}]}}"#,
            "httpHeaders[0].value",
            "control characters",
        ),
        (r#"{"exec": {"command": ["x"]}}"#, "", "unknown field `exec`"),
        (r#"{}"#, "", "exactly one of"),
        (r#"{"grpc": {"port": 1}, "tcpSocket": {"port": 1}}"#, "", "exactly one of"),
        (r#"{"grpc": {"port": 1}, "timeoutSeconds": 0}"#, "timeoutSeconds", "from 1 to 86400"),
        (r#"{"grpc": {"port": 1}, "timeoutSeconds": 1.5}"#, "timeoutSeconds", "whole seconds"),
        (r#"{"grpc": {"port": 1}, "periodSeconds": 1}"#, "", "unknown field `periodSeconds`"),
    ] {
        let said = problem(probe);
        assert!(said.contains(place) && said.contains(cure), "{probe}: {said}");
    }
}

#[test]
fn a_path_is_the_kubelets_and_is_there_once() {
    let tcp = r#"{"tcpSocket": {"port": 1}}"#;
    for path in [
        "/healthz",
        "/app-health/web",
        "/app-health//livenessProbe",
        "/app-health/web/liveness",
        "/app-health/web/postStart",
        "/app-health/web/preStop",
        "/app-health/Web/livenessProbe",
        "/app-health/-web/livenessProbe",
        "/app-health/web/livenessProbe/",
        "/app-health/a/b/livenessProbe",
    ] {
        let problems = read(&format!(r#"{{"{path}": {tcp}}}"#)).expect_err(path);
        assert!(problems[0].to_string().contains("livenessProbe, readinessProbe"), "{problems:?}");
    }
    let path = "/app-health/web/startupProbe";
    let twice = format!(r#"{{"{path}": {tcp}, "{path}": {tcp}}}"#);
    assert!(read(&twice).unwrap_err()[0].to_string().contains("there twice"));
}

#[test]
fn no_json_and_too_much_of_it_are_refused() {
    for (text, why) in [
        ("[]", "an object from paths"),
        ("{} {}", "after the object"),
        ("{", "EOF"),
        ("tcpSocket", "expected"),
    ] {
        let problems = read(text).expect_err(text);
        assert!(problems[0].to_string().contains(why), "{text}: {problems:?}");
    }
    let many = |count: usize| {
        let one = |n| format!(r#""/app-health/c{n}/startupProbe": {{"tcpSocket": {{"port": 1}}}}"#);
        format!("{{{}}}", (0..count).map(one).collect::<Vec<_>>().join(","))
    };
    assert_eq!(read(&many(MAX_PROBES)).unwrap().len(), MAX_PROBES);
    assert!(read(&many(MAX_PROBES + 1)).unwrap_err()[0].to_string().contains("the most is 64"));
    assert!(read(&" ".repeat(MAX_BYTES + 1)).unwrap_err()[0].to_string().contains("65536"));
}

#[test]
fn the_proxy_is_not_asked_about_itself() {
    let probes = read(r#"{"/app-health/a/startupProbe": {"tcpSocket": {"port": 15021}}}"#).unwrap();
    assert_eq!(of_own_ports(&probes, &[15020]), []);
    let said = of_own_ports(&probes, &[15021]);
    assert!(
        said[0].to_string().starts_with("/app-health/a/startupProbe.tcpSocket.port: 15021"),
        "{said:?}"
    );
}

#[test]
fn every_problem_is_told_at_once() {
    let text = r#"{"/a": {"grpc": {"port": 1}}, "/app-health/web/startupProbe": {}}"#;
    assert_eq!(read(text).unwrap_err().len(), 2);
}

#[test]
fn what_is_written_is_ascii_and_read_again() {
    let path = "/app-health/web/livenessProbe";
    let probes = json!({
        path: {"httpGet": {"port": 80, "path": "/$(A)", "httpHeaders": [
            {"name": "X", "value": "\u{fc}\u{1f600}\u{2028}"}]}, "timeoutSeconds": 3},
        "/app-health/web/startupProbe": {"grpc": {"port": 1, "service": "it's \"\\"}},
    });
    let text = write(probes.as_object().unwrap()).unwrap();
    assert_eq!(
        text,
        r#"{"/app-health/web/livenessProbe": {"httpGet": {"port": 80, "path": "/\u0024(A)", "#
            .to_owned()
            + r#""httpHeaders": [{"name": "X", "value": "\u00fc\ud83d\ude00\u2028"}]}, "#
            + r#""timeoutSeconds": 3}, "/app-health/web/startupProbe": "#
            + r#"{"grpc": {"port": 1, "service": "it's \"\\"}}}"#
    );
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), probes);
    let wrong = json!({path: {"tcpSocket": {"port": 0}}});
    let problems = write(wrong.as_object().unwrap()).unwrap_err();
    let place = [Step::key(path), Step::key("tcpSocket"), Step::key("port")];
    assert_eq!(problems[0].place, place, "{problems:?}");
    assert!(problems[0].what.ends_with("from 1 to 65535"), "{problems:?}");
}

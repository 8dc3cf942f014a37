//! What the kubelet asks for, where a probe's `path` says so.
//!
//! The kubelet takes `path` through Go's `url.Parse` and `URL.RequestURI`: its fragment is not
//! sent, what a path cannot hold is percent-encoded, and what cannot be parsed is taken for a path
//! as it stands.

const HOST: &str = "what follows `//` is a host's name for the kubelet; write one slash";

/// Path and query of the request, from its `/`, in ASCII.
///
/// # Errors
/// `cause; cure` for a path that has a scheme or a host, which the kubelet would leave out: it would
/// ask for something else than what is written.
pub fn request_target(path: &str) -> Result<String, &'static str> {
    let (unparsed, fragment) = path.split_once('#').unwrap_or((path, ""));
    if has_scheme(unparsed) {
        return Err("it has a scheme, or something like one; write the path alone, from its slash");
    }
    if names_host(unparsed) {
        return Err(HOST);
    }
    let (before, query) =
        unparsed.split_once('?').map_or((unparsed, None), |(path, query)| (path, Some(query)));
    let first = before.split('/').next().unwrap_or_default();
    let parsed =
        unescaped(before).filter(|_| !unparsed.bytes().any(|byte| byte.is_ascii_control())).filter(
            |_| unescaped(fragment).is_some() && (path.starts_with('/') || !first.contains(':')),
        );
    let Some(bytes) = parsed else {
        // "It's too late to reject it", says the kubelet, and escapes all of it.
        return Ok(rooted(escaped(path.as_bytes(), stays_in_path)));
    };
    let as_it_is = before.bytes().all(|byte| stays_in_path(byte) || b"%!'()*[]".contains(&byte));
    let target = rooted(if as_it_is { before.to_owned() } else { escaped(&bytes, stays_in_path) });
    if names_host(&target) {
        return Err(HOST);
    }
    Ok(match query {
        None => target,
        // Go sends it as it is; but what no URL can hold is no HTTP either (RFC 9112, 3.2).
        Some(query) => format!("{target}?{}", escaped(query.as_bytes(), stays_in_query)),
    })
}

/// `scheme:`, as Go's `getScheme` finds it (RFC 3986, 3.1).
fn has_scheme(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let end = text.find(|c| !inner(c)).unwrap_or(text.len());
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.get(end..).is_some_and(|rest| rest.starts_with(':'))
}

fn names_host(path: &str) -> bool {
    path.starts_with("//") && !path.starts_with("///")
}

fn rooted(path: String) -> String {
    if path.starts_with('/') { path } else { format!("/{path}") }
}

/// What Go's `shouldEscape` leaves in a path.
fn stays_in_path(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte)
}

fn stays_in_query(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"<>".contains(&byte)
}

fn escaped(bytes: &[u8], stays: fn(u8) -> bool) -> String {
    let one = |&byte: &u8| match byte {
        byte if stays(byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    bytes.iter().map(one).collect()
}

/// Without its percent-encoding; `None` where that is wrong.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digits = str::from_utf8(digits).ok().filter(|d| !d.starts_with('+'))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use http::uri::PathAndQuery;

    use super::*;

    /// By the rules of Go's `net/url`: `Parse`, `EscapedPath`, `RequestURI`.
    #[test]
    fn a_path_is_asked_for_as_the_kubelet_asks() {
        for (path, want) in [
            ("", "/"),
            ("/", "/"),
            ("/healthz", "/healthz"),
            ("ready?x=1", "/ready?x=1"),
            ("ready?at=a:b", "/ready?at=a:b"),
            ("/a b", "/a%20b"),
            ("/\u{fc}/\u{1f600}", "/%C3%BC/%F0%9F%98%80"),
            ("/a%20b", "/a%20b"),
            ("/a%2Fb c", "/a/b%20c"),
            ("/a%2fb", "/a%2fb"),
            ("/%41", "/%41"),
            ("/%zz", "/%25zz"),
            ("/100%", "/100%25"),
            ("/%+1", "/%25+1"),
            ("/%zz?a=b#c", "/%25zz%3Fa=b%23c"),
            ("/a#b", "/a"),
            ("/a#%", "/a%23%25"),
            ("/a?b#c", "/a?b"),
            ("/a?", "/a?"),
            ("/a??b", "/a??b"),
            ("/a?b c=\u{fc}\"<>", "/a?b%20c=%C3%BC%22%3C%3E"),
            ("/a\n?b", "/a%0A%3Fb"),
            ("/!*'()[];:@&=+$,-._~", "/!*'()[];:@&=+$,-._~"),
            ("/!*'()[]|", "/%21%2A%27%28%29%5B%5D%7C"),
            ("///a", "///a"),
            ("*", "/*"),
            ("1a:b", "/1a:b"),
            (":8080/x?y", "/:8080/x%3Fy"),
        ] {
            assert_eq!(request_target(path).as_deref(), Ok(want), "{path}");
        }
    }

    #[test]
    fn a_path_with_a_scheme_or_a_host_is_refused() {
        for path in ["http://db/x", "mailto:x", "a.b+c-1:", "//db/x", "//", "/%2f{", "https:#"] {
            assert!(request_target(path).unwrap_err().contains("; "), "{path}");
        }
    }

    /// What comes out is a target that hyper sends, and the same if it is read once more.
    #[test]
    fn any_path_becomes_a_target() {
        let parts: Vec<String> = (0..128)
            .map(|byte| char::from(byte).to_string())
            .chain(
                ["%41", "%2f", "\u{e9}", "\u{2028}", "\u{1f600}", "//", "?", "#"]
                    .map(str::to_owned),
            )
            .collect();
        for seed in 0..20_000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let path: String =
                (0..rng.usize(0..8)).map(|_| &*parts[rng.usize(..parts.len())]).collect();
            let Ok(target) = request_target(&path) else { continue };
            assert!(target.starts_with('/'), "{path:?}: {target}");
            assert_eq!(request_target(&target).as_ref(), Ok(&target), "{path:?}");
            let sent = PathAndQuery::try_from(target.as_str());
            assert_eq!(sent.map(|it| it.to_string()).ok(), Some(target), "{path:?}");
        }
    }
}

//! `ready`: asks the proxy of this pod whether it is, for a container's health check in an image
//! that has no other program.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use clap::Args;

use crate::config::{self, EXIT_CONFIG, Env};

use super::EXIT_OK;

/// `ready`: the proxy is not ready, or does not answer.
pub const EXIT_NOT_READY: u8 = 1;

/// As the timeouts of the configuration. A deadline must be a time that the clock can have.
const LONGEST_TIMEOUT: Duration = Duration::from_hours(24);

/// Far more than what can be pending.
const MOST_BYTES: u64 = 64 * 1024;

/// Options of `ready`.
#[derive(Debug, Args)]
pub struct ReadyArgs {
    /// How long to wait for the whole answer, with its unit; 24h at most.
    #[arg(long, default_value = "1s", value_parser = timeout)]
    timeout: Duration,
}

fn timeout(text: &str) -> Result<Duration, String> {
    let read = config::parse_duration(text).filter(|d| !d.is_zero() && *d <= LONGEST_TIMEOUT);
    let wanted = "wanted a number above 0 with its unit (ms, s, m or h), such as 1s; 24h at most";
    read.ok_or_else(|| wanted.into())
}

/// Asks; the result is the exit code.
pub(super) fn run(
    args: &ReadyArgs,
    env: &impl Env,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<u8> {
    let listen = match config::health_listen(env) {
        Ok(listen) => listen,
        Err(errors) => {
            write!(err, "{errors}")?;
            return Ok(EXIT_CONFIG);
        }
    };
    let deadline = Instant::now() + args.timeout;
    let mut why = String::new();
    for address in listen.into_iter().map(reachable) {
        match ask(address, deadline) {
            Ok((200, _)) => {
                writeln!(out, "ready")?;
                return Ok(EXIT_OK);
            }
            Ok((status, body)) => {
                writeln!(err, "not ready: {address} answers {status}\n{}", body.trim_end())?;
                return Ok(EXIT_NOT_READY);
            }
            // Without IPv6 in the pod one of two addresses is not there.
            Err(e) => why = format!("{why}{address}: {e}; "),
        }
    }
    writeln!(err, "not ready: {why}is pillion-proxy running, with this PILLION_HEALTH_LISTEN?")?;
    Ok(EXIT_NOT_READY)
}

/// Who listens on every address is asked on loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// The status of `/healthz/ready`, and its body.
fn ask(address: SocketAddr, deadline: Instant) -> io::Result<(u16, String)> {
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&address, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    // Of HTTP/1.0 the answer ends where the connection does.
    let request = format!("GET /healthz/ready HTTP/1.0\r\nHost: {address}\r\n\r\n");
    // In one piece: whoever has answered the first of several may close before the next.
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut limited = (&stream).take(MOST_BYTES);
    loop {
        stream.set_read_timeout(Some(left()?))?;
        let mut piece = [0; 1024];
        match limited.read(&mut piece)? {
            0 => return parse(&answer).ok_or_else(|| io::Error::other("no HTTP answer")),
            read => answer.extend(piece.iter().take(read)),
        }
    }
}

fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response.parse(answer).ok()? else { return None };
    Some((response.code?, String::from_utf8_lossy(answer.get(length..)?).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::net::TcpListener;

    /// What `ready` says of a server that gives `answer` to each of its clients.
    fn says(answer: Option<&'static str>, first: &str, timeout: Duration) -> (u8, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 512];
            let read = stream.read(&mut asked).unwrap();
            assert!(asked[..read].starts_with(b"GET /healthz/ready HTTP/1.0\r\n"));
            match answer {
                Some(answer) => stream.write_all(answer.as_bytes()).unwrap(),
                // Silent until the client has gone.
                None => assert_eq!(stream.read(&mut asked).unwrap(), 0),
            }
        });
        let listen = format!("{first}{address}");
        let env = BTreeMap::from([("PILLION_HEALTH_LISTEN".to_owned(), listen)]);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = run(&ReadyArgs { timeout }, &env, &mut out, &mut err).unwrap();
        serving.join().unwrap();
        (code, String::from_utf8([out, err].concat()).unwrap())
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_timeout_has_a_unit_and_bounds() {
        assert_eq!(timeout("24h"), Ok(LONGEST_TIMEOUT));
        assert_eq!(timeout("1ms"), Ok(Duration::from_millis(1)));
        // The last two are numbers of seconds that fit, and times that do not.
        for bad in ["0s", "1", "s", "-1s", "86401s", "5124095576030430h", "18446744073709551615s"] {
            let why = timeout(bad).unwrap_err();
            assert!(why.contains("24h at most"), "{bad}: {why}");
        }
    }

    #[test]
    fn the_answer_is_the_exit_code() {
        let (code, said) = says(Some("HTTP/1.0 200 OK\r\n\r\nok\n"), "", LONG);
        assert_eq!((code, said.as_str()), (0, "ready\n"));
        let pending = "HTTP/1.0 503 Service Unavailable\r\n\r\npending: policy\n";
        let (code, said) = says(Some(pending), "", LONG);
        assert!(code == 1 && said.contains("503\npending: policy\n"), "{said}");
        for bad in ["SSH-2.0\r\n\r\n", "HTTP/1.0 200", ""] {
            let (code, said) = says(Some(bad), "", LONG);
            assert!(code == 1 && said.contains("no HTTP answer"), "{said}");
        }
    }

    #[test]
    fn a_silent_proxy_is_not_waited_for_beyond_the_deadline() {
        let (code, said) = says(None, "", Duration::from_millis(50));
        assert!(code == 1 && said.contains("PILLION_HEALTH_LISTEN"), "{said}");
    }

    #[test]
    fn an_address_where_nobody_listens_is_passed_over() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let ok = "HTTP/1.0 200 OK\r\n\r\nok\n";
        assert_eq!(says(Some(ok), &format!("{free},"), LONG).0, 0);
        let env = |listen: &str| {
            BTreeMap::from([("PILLION_HEALTH_LISTEN".to_owned(), listen.to_owned())])
        };
        let code = |listen: &str| {
            let args = ReadyArgs { timeout: LONG };
            run(&args, &env(listen), &mut Vec::new(), &mut Vec::new()).unwrap()
        };
        assert_eq!(code(&free.to_string()), EXIT_NOT_READY);
        assert_eq!(code("nowhere"), EXIT_CONFIG);
        assert_eq!(reachable("[::]:1".parse().unwrap()), "[::1]:1".parse().unwrap());
    }
}

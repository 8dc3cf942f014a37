//! What the load and the server say to each other: ports, the HTTP request and its answer.

/// Reads and discards; at the end it answers with how many bytes came, 8 bytes, big-endian.
pub(crate) const SINK: u16 = 9001;
/// Writes until the client ends its side.
pub(crate) const SOURCE: u16 = 9002;
/// Writes back what comes.
pub(crate) const ECHO: u16 = 9003;
/// HTTP/1.1 with keep-alive.
pub(crate) const HTTP: u16 = 9004;
/// All of them.
pub(crate) const PORTS: [u16; 4] = [SINK, SOURCE, ECHO, HTTP];

/// The size of a read or a write of a bulk transfer.
pub(crate) const BULK_CHUNK: usize = 256 * 1024;

/// The request that the load sends.
pub(crate) const REQUEST: &[u8] = b"GET /bench HTTP/1.1\r\nHost: bench\r\n\r\n";

/// The answer to every good request.
pub(crate) const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\
Content-Length: 64\r\n\r\n0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// The answer to a bad one, after which the server closes.
pub(crate) const BAD_REQUEST: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// What the bytes that came so far hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Requests {
    /// So many whole requests, in so many bytes; what follows is the beginning of another.
    Whole { count: usize, bytes: usize },
    /// Something that is not a GET without a body.
    Bad,
}

/// Counts the requests at the beginning of `bytes` (RFC 9112, 9.3.2: they may be pipelined, and
/// the last may be there in part).
pub(crate) fn requests(bytes: &[u8]) -> Requests {
    let (mut count, mut taken) = (0, 0);
    while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(rest) {
            Ok(httparse::Status::Partial) => break,
            Ok(httparse::Status::Complete(length)) if request.method == Some("GET") => {
                if request.headers.iter().any(|header| has_body(header.name)) {
                    return Requests::Bad;
                }
                count += 1;
                taken += length;
            }
            _ => return Requests::Bad,
        }
    }
    Requests::Whole { count, bytes: taken }
}

fn has_body(header: &str) -> bool {
    ["content-length", "transfer-encoding"].iter().any(|name| header.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_may_come_in_parts() {
        for part in 1..REQUEST.len() {
            let found = requests(&REQUEST[..part]);
            assert_eq!(found, Requests::Whole { count: 0, bytes: 0 }, "{part} bytes");
        }
        let whole = Requests::Whole { count: 1, bytes: REQUEST.len() };
        assert_eq!(requests(REQUEST), whole);
    }

    #[test]
    fn requests_may_be_pipelined() {
        let mut bytes = REQUEST.repeat(3);
        let whole = Requests::Whole { count: 3, bytes: bytes.len() };
        assert_eq!(requests(&bytes), whole);
        bytes.extend(&REQUEST[..7]);
        assert_eq!(requests(&bytes), whole, "the beginning of a fourth is left");
    }

    #[test]
    fn anything_else_is_bad() {
        for bad in [
            "POST / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "\x16\x03\x01\x02\x00",
        ] {
            assert_eq!(requests(bad.as_bytes()), Requests::Bad, "{bad:?}");
        }
    }

    #[test]
    fn the_answer_has_the_length_that_it_says() {
        let head = ANSWER.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(ANSWER.len() - head, 64);
    }
}

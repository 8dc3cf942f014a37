//! What an application does with a connection, and how a connection ends.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use crate::{Context, Failure, Pod};

/// How a direction of a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A FIN: the peer said that it is done.
    Fin,
    /// A RST: the connection was broken off.
    Reset,
}

/// What became of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The SYN was answered with a RST.
    Refused,
    /// The connection was made, then reset before any byte came back.
    Reset,
    /// The connection was closed in order before any byte came back.
    Closed,
    /// Bytes came back.
    Served(Vec<u8>),
}

impl Outcome {
    /// Whether the application was turned away as a refused one is, without a byte.
    #[must_use]
    pub fn is_turned_away(&self) -> bool {
        matches!(self, Self::Refused | Self::Reset)
    }
}

/// Sends `request`, then FIN, and reads what comes back until the end.
///
/// # Errors
/// Neither an answer nor an end within 20 s, or an error that is none of a connection's ends.
pub fn ask(pod: &Pod, to: SocketAddr, request: &[u8]) -> Result<Outcome, Failure> {
    let mut stream = match pod.connect(to) {
        Ok(stream) => stream,
        Err(failure) if failure.io_kind() == Some(io::ErrorKind::ConnectionRefused) => {
            return Ok(Outcome::Refused);
        }
        // Established, and reset before connect(2) had returned.
        Err(failure) if failure.io_kind() == Some(io::ErrorKind::ConnectionReset) => {
            return Ok(Outcome::Reset);
        }
        Err(failure) => return Err(failure),
    };
    // A reset may overtake either step; what matters is what reading says then.
    let sent = stream.write_all(request).and_then(|()| stream.shutdown(Shutdown::Write));
    let (bytes, end) = read_to_end(&mut stream)?;
    Ok(match (bytes.is_empty(), end, sent) {
        (false, ..) => Outcome::Served(bytes),
        (true, End::Fin, Ok(())) => Outcome::Closed,
        (true, ..) => Outcome::Reset,
    })
}

/// Reads until the end, and says which end it was.
///
/// # Errors
/// Silence for 20 s, or an error that is no end of a connection.
pub fn read_to_end(stream: &mut TcpStream) -> Result<(Vec<u8>, End), Failure> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok((bytes, End::Fin)),
            Ok(read) => bytes.extend(buffer.iter().take(read)),
            Err(error) if is_reset(&error) => return Ok((bytes, End::Reset)),
            // Who is stopped and goes on is interrupted in a read with a deadline (signal(7)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context(|| "reading to the end"),
        }
    }
}

/// Reads exactly `length` bytes.
///
/// # Errors
/// Silence for 20 s, or the connection ends first.
pub fn read_exactly(stream: &mut TcpStream, length: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).context(|| format!("reading {length} bytes"))?;
    Ok(bytes)
}

/// Writes `message` at one end and checks that it comes out at the other.
///
/// # Errors
/// It does not.
pub fn pass(from: &mut TcpStream, to: &mut TcpStream, message: &[u8]) -> Result<(), Failure> {
    from.write_all(message).context(|| "writing a message")?;
    let came = read_exactly(to, message.len())?;
    if came == message {
        return Ok(());
    }
    Err(Failure::Unexpected(format!(
        "sent {:?}, but {:?} came out",
        String::from_utf8_lossy(message),
        String::from_utf8_lossy(&came)
    )))
}

/// A request with its FIN and an answer with its FIN, all of it checked.
///
/// # Errors
/// It is not passed on so.
pub fn exchange(mut client: TcpStream, mut server: TcpStream) -> Result<(), Failure> {
    say_all(&mut client, &mut server, b"what is the answer?")?;
    say_all(&mut server, &mut client, b"forty-two, as always")
}

/// All that one app says, which the other must get: a message and FIN.
fn say_all(from: &mut TcpStream, to: &mut TcpStream, message: &[u8]) -> Result<(), Failure> {
    from.write_all(message).context(|| "a message of an exchange")?;
    from.shutdown(Shutdown::Write).context(|| "the FIN of an exchange")?;
    let came = read_to_end(to)?;
    if came == (message.to_vec(), End::Fin) {
        return Ok(());
    }
    Err(Failure::Unexpected(format!("{message:?} and FIN became {came:?}")))
}

/// Breaks a connection off with a RST, as a crashed application's kernel does.
///
/// # Errors
/// The kernel refuses the socket option.
pub fn reset(stream: TcpStream) -> Result<(), Failure> {
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &now).context(|| "SO_LINGER 0")?;
    drop(stream);
    Ok(())
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

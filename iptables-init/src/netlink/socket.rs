//! A socket to the kernel's netfilter: asks, lists, commits. What the kernel refuses comes back
//! with its own words (extended acknowledgements, Documentation/userspace-api/netlink/intro.rst).

use std::io;
use std::os::fd::AsRawFd;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::kernel::{
    NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSGERR_ATTR_MSG,
    NLMSGERR_ATTR_OFFS,
};
use super::transaction::{Batch, Purpose};
use super::wire::{Attributes, Malformed, Message, Received, array, messages};

/// The kernel has answered when a request is sent. Where it never does, this ends the wait, in
/// seconds.
const PATIENCE: i64 = 10;
/// No datagram of a list is longer than half of it (`netlink_recvmsg`).
const DATAGRAM: usize = 64 << 10;
/// Room for the errors of a batch in which every rule is refused.
const ERRORS: usize = 4 << 20;
/// What a batch may take beside its bytes, for the kernel's own book-keeping.
const OVERHEAD: usize = 64 << 10;
/// `struct nlmsghdr`, which an error repeats of the request behind its code.
const ERROR_CODE: usize = 4;
const HEADER: usize = 16;

/// Why there is no answer, or not the one that was wanted.
#[derive(Debug)]
pub(super) enum Failure {
    /// The kernel said no.
    Refused {
        /// Its number.
        errno: Errno,
        /// The message's.
        sequence: u32,
        /// What it says besides.
        words: String,
    },
    /// Somebody else changed the rules meanwhile; it may be tried again.
    Changed,
    /// The socket itself failed.
    Io(io::Error),
    /// The answer makes no sense.
    Malformed,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Failure::Io(errno.into())
    }
}

impl From<Malformed> for Failure {
    fn from(_: Malformed) -> Self {
        Failure::Malformed
    }
}

/// One socket.
#[derive(Debug)]
pub(super) struct Connection(Socket);

impl Connection {
    /// Opens it.
    pub(super) fn open() -> Result<Self, io::Error> {
        let socket = Socket::new(NETLINK_NETFILTER)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        // Kernels before 4.12 say less, and serve all the same.
        let _says_less = socket.set_ext_ack(true).and_then(|()| socket.set_cap_ack(true));
        Ok(Self(socket))
    }

    /// The one answer to a request.
    pub(super) fn ask(&self, request: Message) -> Result<Vec<u8>, Failure> {
        self.send(&request.finish())?;
        let answer = self.receive()?;
        for message in messages(&answer)? {
            if let Some(refusal) = refusal(&message)? {
                return Err(refusal);
            }
        }
        Ok(answer)
    }

    /// All of a list.
    pub(super) fn list(&self, request: Message) -> Result<Vec<Vec<u8>>, Failure> {
        self.send(&request.finish())?;
        let mut answers = Vec::new();
        loop {
            let answer = self.receive()?;
            for message in messages(&answer)? {
                if let Some(refusal) = refusal(&message)? {
                    return Err(refusal);
                }
                if message.flags & NLM_F_DUMP_INTR != 0 {
                    return Err(Failure::Changed);
                }
                if message.kind == NLMSG_DONE {
                    return Ok(answers);
                }
            }
            answers.push(answer);
        }
    }

    /// Has a batch carried out or checked; nothing of it is in force when it fails.
    pub(super) fn transact(&self, batch: Batch, purpose: Purpose) -> Result<(), Failure> {
        let last = batch.last_sequence();
        let bytes = batch.acknowledged().finish(purpose);
        // By force: the usual limit is that of all users. Without the right, the kernel says
        // whether the batch is too long for it.
        let room = bytes.len() + OVERHEAD;
        let _limit = setsockopt(&self.0, sockopt::SndBufForce, &room)
            .or_else(|_| setsockopt(&self.0, sockopt::SndBuf, &room));
        let _limit = setsockopt(&self.0, sockopt::RcvBufForce, &ERRORS);
        self.send(&bytes)?;
        // The kernel says what it refused in the order of the messages, when all is over.
        loop {
            let answer = self.receive()?;
            for message in messages(&answer)? {
                if let Some(refusal) = refusal(&message)? {
                    return Err(refusal);
                }
                if message.kind == NLMSG_ERROR && message.sequence == last {
                    return Ok(());
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), io::Error> {
        let kernel = SocketAddr::new(0, 0);
        self.0.send_to(bytes, &kernel, 0).map(|_| ())
    }

    fn receive(&self) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; DATAGRAM];
        let length = recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::MSG_TRUNC)?;
        if length > bytes.len() {
            return Err(Failure::Malformed);
        }
        bytes.truncate(length);
        Ok(bytes)
    }
}

/// The refusal that a message is, if it is one. A list may end with one as well.
fn refusal(message: &Received<'_>) -> Result<Option<Failure>, Malformed> {
    if !matches!(message.kind, NLMSG_ERROR | NLMSG_DONE) || message.body.is_empty() {
        return Ok(None);
    }
    let code = i32::from_ne_bytes(array(message.body, 0)?);
    if code >= 0 {
        return Ok(None);
    }
    Ok(Some(match Errno::from_raw(code.saturating_neg()) {
        Errno::ERESTART | Errno::EINTR => Failure::Changed,
        errno => {
            let words = if message.kind == NLMSG_ERROR { words(message)? } else { String::new() };
            Failure::Refused { errno, sequence: message.sequence, words }
        }
    }))
}

/// What an extended acknowledgement says, and of which byte of the message.
fn words(message: &Received<'_>) -> Result<String, Malformed> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return Ok(String::new());
    }
    let request = if message.flags & NLM_F_CAPPED == 0 {
        let length = u32::from_ne_bytes(array(message.body, ERROR_CODE)?);
        usize::try_from(length).map_err(|_| Malformed)?.next_multiple_of(4)
    } else {
        HEADER
    };
    let rest = message.body.get(ERROR_CODE + request..).ok_or(Malformed)?;
    let attributes = Attributes::of(rest)?;
    let mut words = String::new();
    if let Some(text) = attributes.text(NLMSGERR_ATTR_MSG) {
        words.push_str(&format!(", {text}"));
    }
    // This one has the byte order of the machine.
    if let Some(offset) = attributes.find(NLMSGERR_ATTR_OFFS) {
        let offset = u32::from_ne_bytes(array(offset, 0)?);
        words.push_str(&format!(", at byte {offset} of the message"));
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i32, flags: u16, rest: &[u8]) -> Option<Failure> {
        let body = [&code.to_ne_bytes()[..], &[20, 0, 0, 0], &[0; 12], rest].concat();
        refusal(&Received { kind: NLMSG_ERROR, flags, sequence: 3, body: &body }).unwrap()
    }

    #[test]
    fn an_error_has_its_message_and_its_place() {
        let attributes = [&[8, 0, 2, 0, 40, 0, 0, 0][..], &[7, 0, 1, 0, b'n', b'o', 0, 0]].concat();
        let says = |failure: Option<Failure>| match failure {
            Some(Failure::Refused { errno, sequence, words }) => {
                assert_eq!((errno, sequence), (Errno::EINVAL, 3));
                words
            }
            other => panic!("{other:?}"),
        };
        let whole = ", no, at byte 40 of the message";
        assert_eq!(says(error(-22, NLM_F_ACK_TLVS | NLM_F_CAPPED, &attributes)), whole);
        // Where the request is repeated as a whole, the attributes stand behind it.
        let repeated = [&[0; 4][..], &attributes].concat();
        assert_eq!(says(error(-22, NLM_F_ACK_TLVS, &repeated)), whole);
        assert_eq!(says(error(-22, 0, &[])), "");
    }

    #[test]
    fn an_acknowledgement_is_no_refusal_and_a_change_is_no_error() {
        assert!(error(0, 0, &[]).is_none());
        assert!(matches!(error(-(Errno::ERESTART as i32), 0, &[]), Some(Failure::Changed)));
    }
}
